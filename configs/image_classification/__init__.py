"""Image classification with the networks of experiments/models."""
