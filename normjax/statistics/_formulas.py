"""Centring, scaling and the spread around a shift, with derivative rules of their own.

The rules are what differentiation would find, written so that of x's size little is kept (x
itself) and little is summed (as many sums as the textbook's formulas have). They are plain JAX,
so every further transformation goes through them.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Inexact, Num

from normjax._internal._saved import STATISTICS, checkpoint_name
from normjax.statistics._shapes import abs2, as_factor, expand, stat_dtype, to_rank
from normjax.statistics._types import Array


def center(x: jax.Array, mean: Array, mask: Array | None = None) -> jax.Array:
    """Return `x - mean`, the mean of the rank of x, in at least float32; 0 under the mask."""
    dtype = stat_dtype(x.dtype)
    d = x.astype(dtype)
    if mask is not None:
        # Before and after, so that neither value nor gradient ever meets what is under the mask.
        d = jnp.where(mask, d, 0)
    d = d - jnp.asarray(mean).astype(dtype)
    return d if mask is None else jnp.where(mask, d, 0)


def affine(
    d: Inexact[Array, "*shape"],
    scale: Num[Array, "..."] | None,
    bias: Num[Array, "..."] | None,
    *,
    mul: Array | None = None,
) -> Inexact[jax.Array, "*shape"]:
    """Return `d * mul * scale + bias`, the small factors first, in the dtype of `d`."""
    if mul is not None:
        mul = jnp.asarray(mul).astype(jnp.finfo(d.dtype).dtype)
    if scale is not None:
        scale = as_factor(scale, d)
        mul = scale if mul is None else mul.astype(scale.dtype) * scale
    y = jnp.asarray(d if mul is None else d * mul.astype(d.dtype))
    return y if bias is None else y + to_rank(bias, d.ndim).astype(d.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def mean_and_var(
    x: jax.Array,
    mask: Array | None,
    n: jax.Array | None,
    axes: tuple[int, ...],
    plain_mean: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over `n` values each; `None`: over all. 0 must stand under the mask."""
    # A first estimate of the mean, and what the second pass finds missing.
    shift = mean_over(x, axes, n)
    rest, var = moments_about(x, shift, mask, n, axes)
    mean = shift + rest
    return (jnp.where(is_roundoff(shift, rest, var), shift, mean) if plain_mean else mean), var


@mean_and_var.defjvp
def mean_and_var_jvp(axes: tuple[int, ...], plain_mean: bool, primals: Any, tangents: Any) -> Any:
    x, mask, n = primals
    # Mean and variance are all that it needs of the first pass: what a scan must keep of a step.
    mean, var = checkpoint_name(mean_and_var(x, mask, n, axes, plain_mean), STATISTICS)
    d, dx = centred_about(x, mean, mask, axes), tangents[0]
    if mask is not None:
        dx = jnp.where(mask, dx, 0)
    slope = (d.conj() * dx).real if jnp.iscomplexobj(d) else d * dx
    return (mean, var), (mean_over(dx, axes, n), 2 * mean_over(slope, axes, n))


def moments_about(
    x: jax.Array, shift: jax.Array, mask: Array | None, n: jax.Array | None, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Mean less the shift, and variance: the second of two passes."""
    d = centred_about(x, shift, mask, axes)
    rest = mean_over(d, axes, n)
    var = mean_over(abs2(d), axes, n) - abs2(rest)
    return rest, jnp.where(var < 0, 0, var)


@jax.custom_jvp
def standardize(
    x: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: Array | None,
) -> jax.Array:
    """`(x - mean) * inverse * scale + bias`, all of the rank of x and at least float32."""
    d = x if mask is None else jnp.where(mask, x, 0)
    d = d - mean
    if mask is not None:
        # Before and after, so that neither value nor gradient ever meets what is under the mask.
        d = jnp.where(mask, d, 0)
    factor = inverse if scale is None else inverse.astype(scale.dtype) * scale
    y = d * factor.astype(d.dtype)
    return y if bias is None else y + bias


@standardize.defjvp
def standardize_jvp(primals: Any, tangents: Any) -> Any:
    x, mean, inverse, scale, bias, mask = primals
    dx, dmean, dinverse, dscale, dbias, _ = tangents
    d = center(x, mean, mask)

    def move(factor: jax.Array, dfactor: jax.Array) -> jax.Array:
        """`d * factor`, the small products first: each is one sum in the backward pass."""
        factor, dfactor = factor.astype(x.dtype), dfactor.astype(x.dtype)
        moved = dx * factor - dmean * factor
        if mask is not None:
            moved = jnp.where(mask, moved, 0)
        return moved + d * dfactor

    if scale is None:
        dy = move(inverse, dinverse)
    elif scale.shape == inverse.shape:
        both = dinverse.astype(scale.dtype) * scale + inverse.astype(scale.dtype) * dscale
        dy = move(inverse.astype(scale.dtype) * scale, both)
    else:
        dy = move(inverse, dinverse) * scale.astype(x.dtype)
        dy += d * inverse.astype(x.dtype) * dscale.astype(x.dtype)
    return standardize(*primals), dy if bias is None else dy + dbias


def centred_about(x: jax.Array, shift: jax.Array, mask: Array | None, axes: Any) -> jax.Array:
    """`x - shift`, 0 under the mask."""
    d = x - expand(shift, [a for a in range(x.ndim) if a not in axes], x.ndim)
    return d if mask is None else jnp.where(mask, d, 0)


def mean_over(values: jax.Array, axes: tuple[int, ...], n: jax.Array | None) -> jax.Array:
    """Sum over `axes` by `n`, or by the number of values."""
    total = jnp.sum(values, axes)
    if n is None:
        return total / float(max(math.prod(values.shape[a] for a in axes), 1))
    return total / n.astype(total.dtype)


def is_roundoff(shift: jax.Array, rest: jax.Array, var: jax.Array) -> jax.Array:
    """Where `rest` is only rounding of the mean: two roundings, and far below the spread."""
    rounding = jnp.abs(rest) <= 2 * jnp.finfo(rest.dtype).eps * jnp.abs(shift)
    # Of a constant, whose spread is 0, never.
    return rounding & (abs2(rest) <= 2**-16 * var)
