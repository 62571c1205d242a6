"""The ledger of claims: rules, records, and the table made from them."""
