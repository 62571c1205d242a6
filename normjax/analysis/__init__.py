"""Tools to see what a normalization does: pure functions that return named tuples of arrays."""

from normjax.analysis._time import GradientThroughTime, gradient_through_time

__all__ = ["GradientThroughTime", "gradient_through_time"]
