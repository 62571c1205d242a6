"""Flax NNX modules over the pure core: two generic ones, and drop-ins for Flax's own norms."""

from normjax.nnx._norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from normjax.nnx._weights import SpectralNorm, WeightNorm
from normjax.nnx._wrap import Normalize, Recurrent

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
