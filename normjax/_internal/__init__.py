"""Shared by all folders: argument checks, hints in errors, functions with fast derivatives."""
