"""Shapes and dtypes of statistics: broadcasting them against x, widening, flattening to vectors."""

from __future__ import annotations

# Merging and keeping belong to the verbs, and are found here with them.
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

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


def as_factor(scale: Any, d: Any) -> jax.Array:
    """A scale of the rank of `d`, complex only if it was."""
    scale = to_rank(scale, d.ndim)
    return scale.astype(d.dtype if jnp.iscomplexobj(scale) else jnp.finfo(d.dtype).dtype)


def to_rank(v: Any, ndim: int) -> jax.Array:
    v = jnp.asarray(v)
    return v.reshape((1,) * (ndim - v.ndim) + v.shape)


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
