"""Reshapes statistics so that they broadcast against x, flattens x to vectors, chooses dtypes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax.statistics._types import Array


def as_vectors(
    x: jax.Array, axes: Sequence[int]
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Rearrange x to `[*sets, vectors, features]`, and return a function that undoes it.

    It takes any number of features, such as the outputs of a projection.
    """
    sets = [a for a in range(x.ndim - 1) if a not in axes]
    order = (*sets, *axes, x.ndim - 1)
    turned = x.transpose(order)  # [*sets, *averaged, features]
    # Not -1: where an axis is empty, NumPy's rule has no answer.
    vectors = math.prod(turned.shape[len(sets) : -1])
    flat = turned.reshape(*turned.shape[: len(sets)], vectors, x.shape[-1])
    back = tuple(order.index(a) for a in range(x.ndim))
    return flat, lambda y: y.reshape(*turned.shape[:-1], y.shape[-1]).transpose(back)


def as_number(size: Any, dtype: Any) -> jax.Array:
    """Return a number of values that depends on the symbols of an exported program's shapes."""
    return jnp.asarray(size).astype(dtype)


def expand(v: Array, remaining: Sequence[int], ndim: int) -> jax.Array:
    """Give a statistic of the axes `remaining` of x the rank of x, so that it broadcasts."""
    v = jnp.asarray(v)
    shape = [1] * ndim
    for axis, size in zip(remaining, v.shape, strict=True):
        shape[axis] = size
    return v.reshape(shape)


def broadcast_affine(
    params: Any, features: Sequence[int], shape: Sequence[int]
) -> tuple[jax.Array | None, jax.Array | None]:
    """Give the scale and bias of the axes `features` the rank of x, so that they broadcast.

    An array with more axes than `features` holds one affine per sample: its first axes are the
    batch axes of x.
    """
    of_features = tuple(shape[a] for a in features)
    full = [size if a in features else 1 for a, size in enumerate(shape)]
    scale, bias = (
        None
        if v is None
        else jnp.asarray(v).reshape(full)
        if np.shape(v) == of_features
        else broadcast_parameter(v, features, shape)  # one affine per sample, or an error
        for v in (params.scale, params.bias)
    )
    return scale, bias


def broadcast_parameter(v: Any, features: Sequence[int], shape: Sequence[int]) -> jax.Array:
    """Give one parameter array, of the axes `features` of x, the rank of x."""
    v = jnp.asarray(v)
    extra = v.ndim - len(features)  # leading batch axes of an affine per sample
    first = min(features, default=len(shape))
    full = [1] * len(shape)
    fits = 0 <= extra <= first
    if fits:
        for axis, size in zip((*range(extra), *features), v.shape, strict=True):
            fits &= size in (1, shape[axis])
            full[axis] = size
    if not fits:
        of_features = tuple(shape[a] for a in features)
        raise ValueError(
            f"scale or bias of shape {v.shape} does not fit x of shape {tuple(shape)}: give one "
            f"of shape {of_features}, as init(x.shape) does, or one per sample of shape "
            f"{(*shape[: min(first, 1)], *of_features)}"
        )
    return v.reshape(full)


def widen(x: Array, mask: Array | None = None) -> jax.Array:
    """Convert x to the dtype of its statistics, with 0 under the mask."""
    x = jnp.asarray(x)
    x = x.astype(stat_dtype(x.dtype))
    return x if mask is None else jnp.where(mask, x, 0)


def widen_half(x: jax.Array) -> jax.Array:
    """Convert half-precision x to float32, once, before a norm uses it in several places.

    The gradients that these places send back nearly cancel where all values of dy are alike. They
    are then added in float32, and their sum is rounded once; each rounded by itself, in bfloat16
    they would leave several percent of error.
    """
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def as_factor(scale: Any, d: Any) -> jax.Array:
    """Give a scale the rank of `d` and its precision; it stays real if it is real."""
    scale = to_rank(scale, d.ndim)
    return scale.astype(d.dtype if jnp.iscomplexobj(scale) else jnp.finfo(d.dtype).dtype)


def to_rank(v: Any, ndim: int) -> jax.Array:
    """Prepend axes of size 1 until `v` has `ndim` axes."""
    v = jnp.asarray(v)
    return v.reshape((1,) * (ndim - v.ndim) + v.shape)


@functools.cache
def stat_dtype(dtype: Any) -> jnp.dtype:
    """Return the dtype for statistics of `dtype` values: at least float32, complex if it is."""
    dtype = jnp.dtype(dtype)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def append_axes(v: Array, ndim: int) -> jax.Array:
    """Append axes of size 1 until `v` has `ndim` axes."""
    v = jnp.asarray(v)
    return v.reshape(v.shape + (1,) * (ndim - v.ndim))


def scale_by_weight(weight: Array, leaf: Array) -> jax.Array:
    """Multiply a field of statistics, which may be complex and have more axes, by real weights."""
    leaf = jnp.asarray(leaf)
    return append_axes(weight, leaf.ndim).astype(leaf.dtype) * leaf


def abs2(z: Array) -> jax.Array:
    """Return |z|^2, which is real."""
    z = jnp.asarray(z)
    return (z * z.conj()).real if jnp.iscomplexobj(z) else z * z


def outer(z: Array) -> jax.Array:
    """Return z z^* of each vector on the last axis: `[..., n]` becomes `[..., n, n]`."""
    z = jnp.asarray(z)
    return z[..., :, None] * z[..., None, :].conj()


def is_row_times_column(
    shape: tuple[int, ...], rows: tuple[int, ...], columns: tuple[int, ...]
) -> bool:
    """Whether one array spans the first axes of x and the other all the remaining ones."""
    cut = next((a for a, size in enumerate(columns) if size > 1), len(shape))
    return (
        rows[cut:] == (1,) * (len(shape) - cut)
        and columns[:cut] == (1,) * cut
        and (rows[:cut] + columns[cut:] == shape)
    )
