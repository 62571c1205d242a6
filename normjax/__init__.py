"""normjax: research on normalization, in JAX.

A norm is a value with pure functions:

    norm = normjax.batch_norm()
    params, state = norm.init(x.shape)
    y, state = norm.apply(params, state, x, stats="batch")

`normjax.recurrent` holds normalized recurrent layers, `normjax.linen` the Flax modules.
Importing normjax imports no Flax.
"""

from normjax._batch import batch_norm
from normjax._layer import identity, layer_norm
from normjax._moments import ema, merge, moments, normalize
from normjax._population import collecting, population, settle
from normjax._version import __version__
from normjax.base import Affine, BatchMeans, Collect, Moments, Norm, Reparam, Running

__all__ = [
    "Affine",
    "BatchMeans",
    "Collect",
    "Moments",
    "Norm",
    "Reparam",
    "Running",
    "__version__",
    "batch_norm",
    "collecting",
    "ema",
    "identity",
    "layer_norm",
    "merge",
    "moments",
    "normalize",
    "population",
    "settle",
]
