"""Configs: keys and defaults, checks, the models that configs name, the command line."""
