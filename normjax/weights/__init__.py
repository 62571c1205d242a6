"""Reparametrizations of weights, and initialization from a batch of data."""
