"""Statistics as values with a weight: measured, merged, kept and used here and nowhere else.

Beside the kernels this is the only folder that averages anything.
"""
