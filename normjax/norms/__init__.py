"""Activation norms, one family per file."""
