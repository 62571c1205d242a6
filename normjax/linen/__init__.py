"""Flax Linen modules over the pure core."""

from normjax.linen._wrap import Normalize, Recurrent

__all__ = ["Normalize", "Recurrent"]
