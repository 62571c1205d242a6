"""Normalization methods for research in JAX and Flax.

A norm is a value with pure functions:

    norm = normjax.batch_norm()
    params, state = norm.init(x.shape)
    y, state = norm.apply(params, state, x, stats="batch")

The subpackages are

- `normjax.recurrent`: normalized recurrent layers (RNN, LSTM, GRU), with statistics per time step,
- `normjax.linen` and `normjax.nnx`: all methods as modules of Flax Linen and Flax NNX,
- `normjax.analysis`: measurements of what a normalization does, and plots of them,
- `normjax.kernels`: Pallas kernels for accelerators, selected by `impl="kernel"`,
- `normjax.base`: the base classes and types, for your own norms,
- `normjax.testing`: sample arguments of all norms, for the test batteries.

Importing normjax does not import Flax.
"""

from normjax._version import __version__
from normjax.base import Affine, DirectionAndGain, Norm, Reparam
from normjax.norms._adain import adain
from normjax.norms._add_norm import add_norm
from normjax.norms._batch import batch_norm
from normjax.norms._dynamic_erf import DynamicErfParams, dynamic_erf
from normjax.norms._dynamic_tanh import DynamicTanhParams, dynamic_tanh
from normjax.norms._evo import EvoNormParams, evo_norm_b0, evo_norm_s0
from normjax.norms._filter_response import FilterResponseParams, filter_response_norm
from normjax.norms._ghost import GhostMoments, ghost_batch_norm
from normjax.norms._global_response import global_response_norm
from normjax.norms._group import group_norm
from normjax.norms._identity import identity
from normjax.norms._instance import instance_norm
from normjax.norms._layer import layer_norm
from normjax.norms._local_response import local_response_norm
from normjax.norms._mean_only import mean_only_batch_norm
from normjax.norms._renorm import batch_renorm, renorm_schedule
from normjax.norms._rms import rms_norm
from normjax.norms._switchable import SwitchableNormParams, switchable_norm
from normjax.norms._unit_length import l2_norm, scale_norm
from normjax.norms._whitening_matrix import Whitening, pca_whitening, whiten, zca_whitening
from normjax.norms._whitening_norms import decorrelated_batch_norm, iterative_norm
from normjax.state._age import statistics_age
from normjax.state._fold import fold, fold_conv, fold_dense
from normjax.state._fold_model import FoldRule, fold_model
from normjax.state._fold_next import fold_next
from normjax.state._population import (
    accumulate_statistics,
    finalize_statistics,
    population_statistics,
)
from normjax.state._torch import (
    decay_from_torch,
    decay_to_torch,
    running_from_torch,
    running_to_torch,
)
from normjax.state._torch_model import from_torch_state_dict, to_torch_state_dict
from normjax.state._whole_model import is_norm_param, reset_statistics, restore_statistics
from normjax.statistics._merge import merge
from normjax.statistics._moments import mean_square, moments, second_moments
from normjax.statistics._normalize import normalize
from normjax.statistics._running import ema
from normjax.statistics._segments import segment_moments
from normjax.statistics._types import (
    Accumulator,
    BatchMeans,
    Means,
    Moments,
    Running,
    RunningCov,
    RunningMean,
    SecondMoments,
)
from normjax.weights._cosine_dense import CosineDense, cosine_dense
from normjax.weights._data_init import data_dependent_init, data_dependent_stack
from normjax.weights._reparametrize import ReparamState, materialize, reparam, reparametrize
from normjax.weights._spectral_norm import SingularVectors, spectral_norm
from normjax.weights._weight_norm import weight_norm
from normjax.weights._weight_standardization import weight_standardization

__all__ = [
    "Accumulator",
    "Affine",
    "BatchMeans",
    "CosineDense",
    "DirectionAndGain",
    "DynamicErfParams",
    "DynamicTanhParams",
    "EvoNormParams",
    "FilterResponseParams",
    "FoldRule",
    "GhostMoments",
    "Means",
    "Moments",
    "Norm",
    "Reparam",
    "ReparamState",
    "Running",
    "RunningCov",
    "RunningMean",
    "SecondMoments",
    "SingularVectors",
    "SwitchableNormParams",
    "Whitening",
    "__version__",
    "accumulate_statistics",
    "adain",
    "add_norm",
    "batch_norm",
    "batch_renorm",
    "cosine_dense",
    "data_dependent_init",
    "data_dependent_stack",
    "decay_from_torch",
    "decay_to_torch",
    "decorrelated_batch_norm",
    "dynamic_erf",
    "dynamic_tanh",
    "ema",
    "evo_norm_b0",
    "evo_norm_s0",
    "filter_response_norm",
    "finalize_statistics",
    "fold",
    "fold_conv",
    "fold_dense",
    "fold_model",
    "fold_next",
    "from_torch_state_dict",
    "ghost_batch_norm",
    "global_response_norm",
    "group_norm",
    "identity",
    "instance_norm",
    "is_norm_param",
    "iterative_norm",
    "l2_norm",
    "layer_norm",
    "local_response_norm",
    "materialize",
    "mean_only_batch_norm",
    "mean_square",
    "merge",
    "moments",
    "normalize",
    "pca_whitening",
    "population_statistics",
    "renorm_schedule",
    "reparam",
    "reparametrize",
    "reset_statistics",
    "restore_statistics",
    "rms_norm",
    "running_from_torch",
    "running_to_torch",
    "scale_norm",
    "second_moments",
    "segment_moments",
    "spectral_norm",
    "statistics_age",
    "switchable_norm",
    "to_torch_state_dict",
    "weight_norm",
    "weight_standardization",
    "whiten",
    "zca_whitening",
]
