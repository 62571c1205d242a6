"""Measures, merges, stores and applies statistics, each of which carries its weight.

Apart from the kernels this is the only folder that averages anything.
"""
