"""normjax: research on normalization, in JAX.

A norm is a value with pure functions:

    norm = normjax.batch_norm()
    params, state = norm.init(x.shape)
    y, state = norm.apply(params, state, x, stats="batch")

`normjax.recurrent` holds normalized recurrent layers, `normjax.linen` the Flax modules.
Importing normjax imports no Flax.
"""

from normjax._adaptive import adain, dynamic_tanh
from normjax._batch import batch_norm
from normjax._batch_variants import batch_renorm, mean_only_batch_norm, renorm_schedule
from normjax._convert import decay_from_torch, decay_to_torch, from_torch, to_torch
from normjax._cosine import cosine_dense
from normjax._data_init import data_dependent_init, data_dependent_stack
from normjax._evo import evo_norm_b0, evo_norm_s0, switchable_norm
from normjax._fold import fold, fold_conv, fold_dense
from normjax._ghost import ghost_batch_norm
from normjax._group import group_norm, instance_norm
from normjax._layer import identity, layer_norm
from normjax._moments import ema, mean_square, merge, moments, normalize, second_moments
from normjax._population import collecting, population, settle
from normjax._response import filter_response_norm, global_response_norm, local_response_norm
from normjax._rms import l2_norm, rms_norm, scale_norm
from normjax._spectral import spectral_norm
from normjax._state import freeze, is_norm_param, population_update, reset
from normjax._surgery import materialize, reparam, reparametrize
from normjax._version import __version__
from normjax._weights import weight_norm, weight_standardization
from normjax._whitening import (
    Whitening,
    decorrelated_batch_norm,
    iterative_norm,
    pca_whitening,
    whiten,
    zca_whitening,
)
from normjax.base import (
    Affine,
    BatchMeans,
    Collect,
    Means,
    Moments,
    Norm,
    Reparam,
    Running,
    RunningCov,
    RunningMean,
    Scaled,
    SecondMoments,
)

__all__ = [
    "Affine",
    "BatchMeans",
    "Collect",
    "Means",
    "Moments",
    "Norm",
    "Reparam",
    "Running",
    "RunningCov",
    "RunningMean",
    "Scaled",
    "SecondMoments",
    "Whitening",
    "__version__",
    "adain",
    "batch_norm",
    "batch_renorm",
    "collecting",
    "cosine_dense",
    "data_dependent_init",
    "data_dependent_stack",
    "decay_from_torch",
    "decay_to_torch",
    "decorrelated_batch_norm",
    "dynamic_tanh",
    "ema",
    "evo_norm_b0",
    "evo_norm_s0",
    "filter_response_norm",
    "fold",
    "fold_conv",
    "fold_dense",
    "freeze",
    "from_torch",
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
    "population",
    "population_update",
    "renorm_schedule",
    "reparam",
    "reparametrize",
    "reset",
    "rms_norm",
    "scale_norm",
    "second_moments",
    "settle",
    "spectral_norm",
    "switchable_norm",
    "to_torch",
    "weight_norm",
    "weight_standardization",
    "whiten",
    "zca_whitening",
]
