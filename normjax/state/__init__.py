"""Handles the statistics of a whole model: population statistics, folding, reset, PyTorch."""
