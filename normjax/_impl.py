"""`impl="kernel"`: which calls a kernel serves. `None` is the answer for all others.

Kernels are imported where one is asked for: Pallas takes longer to import than all of normjax.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from normjax import _checks, _moments
from normjax.base import Affine, Array, AxisName, Moments, Running

Impl = Literal["xla", "kernel"]


def check(impl: Any) -> Impl:
    """Return an argument `impl`, refusing what is none."""
    _checks.one_of("impl", impl, get_args(Impl))
    return impl


def rows(
    params: Affine, x: Array, axes: tuple[int, ...], eps: float, mask: Any, *, centred: bool
) -> jax.Array | None:
    """Layer norm (`centred`) or RMS norm of rows that a block holds, the same affine for each."""
    from normjax.kernels import _rows

    x = jnp.asarray(x)
    if not _rows.fits(x, axes, mask) or not _has(params, x.shape[min(axes) :]):
        return None
    scale, bias = map(_array, params)
    return _rows.norm(x, scale, bias, axes, eps, centred=centred)


def measured(
    x: Array,
    axes: tuple[int, ...],
    mask: Any,
    axis_name: AxisName = None,
    axis_index_groups: Any = None,
) -> Moments | None:
    """Mean and variance of columns."""
    from normjax.kernels import _columns

    x = jnp.asarray(x)
    if not _columns.fits(x, axes, mask):
        return None
    m = Moments(*_columns.moments(x, axes), _moments.counts(None, x.astype(jnp.float32), axes))
    return m if axis_name is None else _moments.pool(m, axis_name, axis_index_groups)


def standardized(
    params: Affine, m: Moments | Running, x: Array, axes: tuple[int, ...], eps: float, mask: Any
) -> jax.Array | None:
    """Columns with their statistics, the same affine for each sample."""
    from normjax.kernels import _columns

    x = jnp.asarray(x)
    if not _columns.fits(x, axes, mask) or not _has(params, x.shape[max(axes) + 1 :]):
        return None
    scale, bias = map(_array, params)
    inverse = jax.lax.rsqrt(jnp.asarray(m.var) + eps)
    return _columns.standardize(x, axes, jnp.asarray(m.mean), inverse, scale, bias)


def _has(params: Affine, shape: tuple[int, ...]) -> bool:
    return all(v is None or jnp.shape(v) == shape for v in params)


def _array(v: Array | None) -> jax.Array | None:
    return None if v is None else jnp.asarray(v).astype(jnp.float32)
