"""Mean, variance and standardization as formulas with custom derivative rules.

The rules give the derivatives that JAX would compute, written to save memory and passes: the only
array of the size of x that a backward pass stores is x itself, and it takes no more sums than the
textbook's formulas. The rules are plain JAX, so all further transformations apply to them.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Inexact, Num

from normjax._internal._checkpoint_names import STATISTICS, checkpoint_name
from normjax.statistics._shapes import abs2, as_factor, as_number, expand, stat_dtype, to_rank
from normjax.statistics._types import Array


def center(x: jax.Array, mean: Array, mask: Array | None = None) -> jax.Array:
    """Return `x - mean` in at least float32, 0 under the mask; `mean` has the rank of x."""
    dtype = stat_dtype(x.dtype)
    d = x.astype(dtype)
    if mask is not None:
        # Before and after, so that masked values reach neither the result nor a gradient.
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
    """Return `d * mul * scale + bias` in the dtype of `d`; small factors are multiplied first."""
    if mul is not None:
        mul = jnp.asarray(mul).astype(jnp.finfo(d.dtype).dtype)
    if scale is not None:
        scale = as_factor(scale, d)
        mul = scale if mul is None else mul.astype(scale.dtype) * scale
    y = jnp.asarray(d if mul is None else d * mul.astype(d.dtype))
    return y if bias is None else y + to_rank(bias, d.ndim).astype(d.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def rounded_times(y: jax.Array, scale: jax.Array, dtype: Any) -> jax.Array:
    """Return `y` rounded to `dtype`, times `scale`; the derivative leaves the rounding out."""
    to = jnp.finfo(dtype)
    # Not `astype` there and back, which XLA may drop.
    rounded = lax.reduce_precision(y, to.nexp, to.nmant)
    if to.nexp < jnp.finfo(y.dtype).nexp:  # float16: its subnormals are 0 there
        step = float(to.smallest_subnormal)
        rounded = jnp.where(
            jnp.abs(y) < float(to.smallest_normal), jnp.round(y / step) * step, rounded
        )
    return rounded * scale


@rounded_times.defjvp
def _rounded_times_jvp(dtype: Any, primals: Any, tangents: Any) -> Any:
    (y, scale), (dy, dscale) = primals, tangents
    return rounded_times(y, scale, dtype), dy * scale + y * dscale


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def mean_and_var(
    x: jax.Array,
    mask: Array | None,
    n: jax.Array | None,
    axes: tuple[int, ...],
    plain_mean: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance of sets of `n` values; `None` is all. Masked x must be 0."""
    # A first estimate of the mean, then its error from a second pass.
    shift = mean_over(x, axes, n)
    rest, var = moments_about(x, shift, mask, n, axes)
    mean = shift + rest
    return (jnp.where(is_roundoff(shift, rest, var), shift, mean) if plain_mean else mean), var


@mean_and_var.defjvp
def mean_and_var_jvp(axes: tuple[int, ...], plain_mean: bool, primals: Any, tangents: Any) -> Any:
    """Differentiate: dmean = E[dx], dvar = 2 E[Re(conj(x - mean) dx)]."""
    x, mask, n = primals
    # The rule uses the outputs mean and var and no intermediate, so a scan stores little per step.
    mean, var = named(*mean_and_var(x, mask, n, axes, plain_mean))
    return (mean, var), mean_and_var_tangent(x, mean, tangents[0], mask, n, axes)


def named(mean: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Name mean and variance as statistics that a backward pass keeps, in one array."""
    if mean.dtype != var.dtype:  # complex
        return checkpoint_name((mean, var), STATISTICS)
    both = lax.concatenate([lax.expand_dims(v, (0,)) for v in (mean, var)], 0)
    both = checkpoint_name(both, STATISTICS)
    mean, var = (lax.index_in_dim(both, i, keepdims=False) for i in range(2))
    return mean, var


def mean_and_var_tangent(
    x: jax.Array,
    mean: jax.Array,
    dx: jax.Array,
    mask: Array | None,
    n: jax.Array | None,
    axes: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """Return the tangents of mean and variance, from the mean and the tangent of x."""
    d = centred_about(x, mean, mask, axes)
    if mask is not None:
        dx = jnp.where(mask, dx, 0)
    slope = (d.conj() * dx).real if jnp.iscomplexobj(d) else d * dx
    return mean_over(dx, axes, n), 2 * mean_over(slope, axes, n)


def moments_about(
    x: jax.Array, shift: jax.Array, mask: Array | None, n: jax.Array | None, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Return the mean minus the shift, and the variance: the second of two passes."""
    d = centred_about(x, shift, mask, axes)
    rest = mean_over(d, axes, n)
    # E|x - shift|^2 = var + |rest|^2; rounding can take the difference below 0.
    var = mean_over(abs2(d), axes, n) - abs2(rest)
    # As `overflow_to_nan`.
    return rest, jnp.where(var < 0, 0, jnp.where(var < jnp.inf, var, jnp.nan))


@jax.custom_jvp
def standardize(
    x: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: Array | None,
) -> jax.Array:
    """Return `(x - mean) * inverse * scale + bias`, all of the rank of x and at least float32."""
    d = x if mask is None else jnp.where(mask, x, 0)
    d = d - mean
    if mask is not None:
        # Before and after, so that masked values reach neither the result nor a gradient.
        d = jnp.where(mask, d, 0)
    factor = inverse if scale is None else inverse.astype(scale.dtype) * scale
    y = d * factor.astype(d.dtype)
    return y if bias is None else y + bias


@standardize.defjvp
def standardize_jvp(primals: Any, tangents: Any) -> Any:
    """Differentiate: dy = (dx - dmean) f + d df + dbias, with d = x - mean, f = inverse * scale."""
    x, mean, inverse, scale, bias, mask = primals
    dx, dmean, dinverse, dscale, dbias, _ = tangents
    d = center(x, mean, mask)

    def tangent(factor: jax.Array, dfactor: jax.Array) -> jax.Array:
        """Differentiate `d * factor`; small products first, so each is one sum backward."""
        factor, dfactor = factor.astype(x.dtype), dfactor.astype(x.dtype)
        centred = dx * factor - dmean * factor
        if mask is not None:
            centred = jnp.where(mask, centred, 0)
        return centred + d * dfactor

    if scale is None:
        dy = tangent(inverse, dinverse)
    elif scale.shape == inverse.shape:
        # Both factors are small: multiply them first and treat them as one.
        dfactor = dinverse.astype(scale.dtype) * scale + inverse.astype(scale.dtype) * dscale
        dy = tangent(inverse.astype(scale.dtype) * scale, dfactor)
    else:
        # Their product may have the size of x, as in layer norm: apply them one after the other.
        dy = tangent(inverse, dinverse) * scale.astype(x.dtype)
        dy += d * inverse.astype(x.dtype) * dscale.astype(x.dtype)
    return standardize(*primals), dy if bias is None else dy + dbias


def centred_about(x: jax.Array, shift: jax.Array, mask: Array | None, axes: Any) -> jax.Array:
    """Return `x - shift`, 0 under the mask; `shift` has the axes of x without `axes`."""
    d = x - expand(shift, [a for a in range(x.ndim) if a not in axes], x.ndim)
    return d if mask is None else jnp.where(mask, d, 0)


def mean_over(values: jax.Array, axes: tuple[int, ...], n: jax.Array | None) -> jax.Array:
    """Return the sum over `axes` divided by `n`, or by the number of values if `n` is None."""
    total = jnp.sum(values, axes)
    if n is None:
        size = math.prod(values.shape[a] for a in axes)
        known = isinstance(size, int)
        return total / (float(max(size, 1)) if known else as_number(size, total.dtype))
    return total / n.astype(total.dtype)


# 1 / sqrt(v); lax.rsqrt's own derivative goes by v^-3/2, which underflows from 1e26 on.
rsqrt = jax.custom_jvp(lax.rsqrt)


@rsqrt.defjvp
def _rsqrt_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    root = rsqrt(primals[0])
    return root, -0.5 * root * (tangents[0] / primals[0])


def overflow_to_nan(square: jax.Array) -> jax.Array:
    """Return NaN where a mean of squares is beyond its dtype: 1 / root of it would be 0, silently.

    x of finite values would then be normalized to 0, where it is normalized to about 1.
    """
    return jnp.where(square == jnp.inf, jnp.nan, square)


def is_roundoff(shift: jax.Array, rest: jax.Array, var: jax.Array) -> jax.Array:
    """Whether `rest` is only rounding error: within two roundings and far below the spread."""
    rounding = jnp.abs(rest) <= 2 * jnp.finfo(rest.dtype).eps * jnp.abs(shift)
    # Never true for a constant set: its spread is 0.
    return rounding & (abs2(rest) <= 2**-16 * var)
