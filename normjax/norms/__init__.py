"""Activation norms, one family a file."""
