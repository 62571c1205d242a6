"""`impl="kernel"`: which calls of a norm a kernel serves. `None` is the answer for all others.

Kernels are imported where one is asked for: Pallas takes longer to import than all of normjax.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from normjax._internal import _checks
from normjax.base import Affine
from normjax.statistics import _measure
from normjax.statistics._types import Array, Moments, Running

Impl = Literal["xla", "kernel"]


def check(impl: Any) -> Impl:
    """Return an argument `impl`, refusing what is none."""
    _checks.one_of("impl", impl, get_args(Impl))
    return impl


def kernel_row_norm(
    norm: Any, params: Affine, x: jax.Array, mask: Any, *, centred: bool
) -> jax.Array | None:
    """Layer norm (`centred`) or RMS norm of rows that a block holds, the same affine for each."""
    if norm.impl == "xla" or norm.feature_axis_name is not None:
        return None
    from normjax.kernels import _layer_norm

    axes = norm.averaged(x.ndim)
    same = norm.features(x.ndim) == axes and _has(params, x.shape[min(axes) :])
    if not same or not _layer_norm.supports(x, axes, mask):
        return None
    scale, bias = map(_array, params)
    return _layer_norm.row_norm(x, scale, bias, axes, norm.eps, centred=centred)


def kernel_moments(norm: Any, x: Array, axes: tuple[int, ...], mask: Any) -> Moments | None:
    """Mean and variance of columns."""
    if norm.impl == "xla":
        return None
    from normjax.kernels import _batch_norm

    x = jnp.asarray(x)
    if not _batch_norm.supports(x, axes, mask):
        return None
    return Moments(
        *_batch_norm.moments(x, axes), _measure.value_counts(None, x.astype(jnp.float32), axes)
    )


def kernel_standardize(
    norm: Any, params: Affine, m: Moments | Running, x: Array, axes: tuple[int, ...], mask: Any
) -> jax.Array | None:
    """Columns with their statistics, the same affine for each sample."""
    if norm.impl == "xla":
        return None
    from normjax.kernels import _batch_norm

    x = jnp.asarray(x)
    if not _batch_norm.supports(x, axes, mask) or not _has(params, x.shape[max(axes) + 1 :]):
        return None
    scale, bias = map(_array, params)
    inverse = jax.lax.rsqrt(jnp.asarray(m.var) + norm.eps)
    return _batch_norm.standardize(x, axes, jnp.asarray(m.mean), inverse, scale, bias)


def _has(params: Affine, shape: tuple[int, ...]) -> bool:
    return all(v is None or jnp.shape(v) == shape for v in params)


def _array(v: Array | None) -> jax.Array | None:
    return None if v is None else jnp.asarray(v).astype(jnp.float32)
