"""Flax Linen modules over the pure core: generic ones, an RNN, and drop-ins for Flax's norms."""

from normjax.linen._norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from normjax.linen._population import population_update
from normjax.linen._rnn import RNN
from normjax.linen._weights import SpectralNorm, WeightNorm
from normjax.linen._wrap import Normalize, Recurrent

__all__ = [
    "RNN",
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Normalize",
    "RMSNorm",
    "Recurrent",
    "SpectralNorm",
    "WeightNorm",
    "population_update",
]
