"""Flax Linen modules over the pure core: two generic ones, and drop-ins for Flax's own norms."""

from normjax.linen._norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from normjax.linen._weights import SpectralNorm, WeightNorm
from normjax.linen._wrap import Normalize, Recurrent

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Normalize",
    "RMSNorm",
    "Recurrent",
    "SpectralNorm",
    "WeightNorm",
]
