"""Computed, not trained: identities of normalization, and what it does at initialization.

`python -m experiments.computed` computes all of them again. Groups 21, 26, 27, 29 and 36 of the
ledger were claims of this kind and keep their numbers here.
"""
