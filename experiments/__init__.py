"""Runs experiments: each module at the top is a command, `python -m experiments.NAME`.

It imports normjax, never the other way.
"""
