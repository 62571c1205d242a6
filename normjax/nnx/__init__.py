"""Flax NNX modules over the pure core: generic ones, an RNN, and drop-ins for Flax's norms."""

from normjax.nnx._norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from normjax.nnx._population import accumulate_statistics, finalize_statistics, population_update
from normjax.nnx._rnn import RNN, PerStepCell, StepCarry
from normjax.nnx._weights import SpectralNorm, WeightNorm
from normjax.nnx._wrap import Normalize, Recurrent

__all__ = [
    "RNN",
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Normalize",
    "PerStepCell",
    "RMSNorm",
    "Recurrent",
    "SpectralNorm",
    "StepCarry",
    "WeightNorm",
    "accumulate_statistics",
    "finalize_statistics",
    "population_update",
]
