"""Reparametrizations of weights, and initialization from data."""
