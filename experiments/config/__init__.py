"""Configs: keys and defaults, checks, the models that they name, the command line."""
