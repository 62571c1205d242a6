"""Measurements beside peers, in one run: `python -m benchmarks.hard_inputs`."""
