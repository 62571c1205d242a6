"""A whole model's statistics after and around training: population, folding, names, PyTorch."""
