"""Shapes and dtypes of statistics: broadcasting them against x, widening, flattening to vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax.statistics._types import Array


def as_vectors(
    x: jax.Array, axes: Sequence[int]
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Arrange x as `[*sets, vectors, features]`, averaged axes as vectors; and the way back."""
    kept = [a for a in range(x.ndim - 1) if a not in axes]
    order = (*kept, *axes, x.ndim - 1)
    turned = x.transpose(order)
    flat = turned.reshape(*turned.shape[: len(kept)], -1, x.shape[-1])
    back = tuple(order.index(a) for a in range(x.ndim))
    return flat, lambda y: y.reshape(turned.shape).transpose(back)


def expand(v: Array, kept: Sequence[int], ndim: int) -> jax.Array:
    """Give a statistic of the axes `kept` the rank of x, so that it broadcasts against it."""
    v = jnp.asarray(v)
    shape = [1] * ndim
    for axis, size in zip(kept, v.shape, strict=True):
        shape[axis] = size
    return v.reshape(shape)


def broadcast_affine(
    params: Any, features: Sequence[int], shape: Sequence[int]
) -> tuple[jax.Array | None, jax.Array | None]:
    """Give the scale and bias of the axes `features` the rank of x, so that they broadcast.

    An array with more axes than `features` is one affine per sample: its first axes are the
    first axes of x, those of the batch.
    """
    of_features = tuple(shape[a] for a in features)
    full = [size if a in features else 1 for a, size in enumerate(shape)]
    scale, bias = (
        None
        if v is None
        else jnp.reshape(v, full)
        if np.shape(v) == of_features
        else broadcast_parameter(v, features, shape)  # one affine per sample, or an error
        for v in (params.scale, params.bias)
    )
    return scale, bias


def broadcast_parameter(v: Any, features: Sequence[int], shape: Sequence[int]) -> jax.Array:
    """Give one array of parameters, of the axes `features`, the rank of x."""
    v = jnp.asarray(v)
    extra = v.ndim - len(features)
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
    """Return x in the dtype of its statistics, 0 under the mask."""
    x = jnp.asarray(x)
    x = x.astype(stat_dtype(x.dtype))
    return x if mask is None else jnp.where(mask, x, 0)


def as_factor(scale: Any, d: Any) -> jax.Array:
    """A scale of the rank of `d`, complex only if it was."""
    scale = to_rank(scale, d.ndim)
    return scale.astype(d.dtype if jnp.iscomplexobj(scale) else jnp.finfo(d.dtype).dtype)


def to_rank(v: Any, ndim: int) -> jax.Array:
    v = jnp.asarray(v)
    return v.reshape((1,) * (ndim - v.ndim) + v.shape)


@functools.cache
def stat_dtype(dtype: Any) -> jnp.dtype:
    """Dtype in which statistics of `dtype` are taken: at least float32, complex if it is."""
    dtype = jnp.dtype(dtype)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def append_axes(v: Array, ndim: int) -> jax.Array:
    """Give `v` axes of size 1 behind its own."""
    v = jnp.asarray(v)
    return v.reshape(v.shape + (1,) * (ndim - v.ndim))


def scale_by_weight(weight: Array, leaf: Array) -> jax.Array:
    """Real weight of each statistic times a leaf of it, which may be complex and have more axes."""
    leaf = jnp.asarray(leaf)
    return append_axes(weight, leaf.ndim).astype(leaf.dtype) * leaf


def abs2(z: Array) -> jax.Array:
    z = jnp.asarray(z)
    return (z * z.conj()).real if jnp.iscomplexobj(z) else z * z


def outer(z: Array) -> jax.Array:
    z = jnp.asarray(z)
    return z[..., :, None] * z[..., None, :].conj()
