"""Language models with the networks of experiments/models."""
