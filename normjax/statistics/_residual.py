"""Adds a residual and normalizes the sum over its last axes, with one derivative for both steps.

Automatic differentiation of the two steps sends two cotangents to the sum, that of the norm and
that of the sum itself. Here they are one expression, in at least float32: the gradient of x and of
the residual is computed, rounded and written once, in fewer passes over memory.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from normjax._internal._by_platform import by_platform
from normjax._internal._paired import with_fast_vjp
from normjax.statistics import _core, _formulas
from normjax.statistics._shapes import stat_dtype


def add_and_normalize(
    x: jax.Array,
    residual: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    eps: float,
    *,
    axes: int,
    centred: bool,
) -> tuple[jax.Array, jax.Array]:
    """Return the normalized sum and the sum itself, both of the dtype of x.

    Args:
        x: real input.
        residual: what is added, of the shape and dtype of `x`.
        scale: gain of the last `axes` axes of x, or `None`.
        bias: bias of the same shape, or `None`.
        eps: added to the variance.
        axes: number of axes, the last, that one statistic is taken over.
        centred: whether the mean is subtracted: layer norm; else RMS norm.
    """
    affine = tuple(v for v in (scale, bias) if v is not None)
    run = _fused(eps, axes, centred, scale is not None, bias is not None)
    y, total = run(x, residual, *affine)
    return y, total


@functools.cache
def _fused(eps: float, axes: int, centred: bool, scaled: bool, biased: bool) -> Any:
    """Build the function of `(x, residual, *affine)`."""

    def steps(own: bool | None, x: jax.Array, residual: jax.Array, *affine: jax.Array) -> Any:
        """Run the two steps one after the other; also return the statistics.

        `own` is `centred` where the statistics are used for nothing else, as in `_core.normalize`.
        """
        total = x + residual
        wide = total.astype(stat_dtype(total.dtype))
        over = tuple(range(x.ndim - axes, x.ndim))
        m = (_core.moments if centred else _core.mean_square)(wide, over)
        ones = (1,) * (x.ndim - axes)
        scale, bias = (
            None if v is None else v.reshape(ones + v.shape).astype(wide.dtype)
            for v in _named(affine)
        )
        y = _core.normalize(wide, m, over, scale, bias, eps, centred=own)
        return (y.astype(x.dtype), total), m

    def _named(affine: Any) -> tuple[Any, Any]:
        return affine[0] if scaled else None, affine[-1] if biased else None

    def plain(*args: jax.Array) -> tuple[jax.Array, ...]:
        return steps(centred, *args)[0]

    def forward(*args: jax.Array) -> Any:
        (y, total), m = steps(None, *args)
        return (y, total), (total, m.var, m.mean) if centred else (total, m.var)

    def backward(args: Any, residuals: Any, cotangents: Any) -> Any:
        (x, _, *affine), (total, var, *mean) = args, residuals
        scale, bias = _named(affine)
        wide = stat_dtype(x.dtype)
        columns = math.prod(x.shape[x.ndim - axes :])
        # To [rows, columns].
        s, dy, dtotal = (v.reshape(-1, columns).astype(wide) for v in (total, *cotangents))
        gain = None if scale is None else scale.reshape(-1).astype(wide)
        inverse = _formulas.rsqrt(var.reshape(-1) + eps)
        d = s - mean[0].reshape(-1, 1) if centred else s
        product = dy * d
        given = (dy, product, inverse) if gain is None else (dy, product, inverse, gain)
        sums = by_platform(_by_sums, (("cpu", _by_products),), *given)
        of_dy, of_product, dscale, dbias = sums
        # ds = inverse (g - mean(g)) - inverse^3 d mean(g d), with g = dy gain. Divided one after
        # the other: inverse^3 alone may leave the range.
        slope = inverse * (of_product * inverse / float(columns) * inverse)
        g = dy if gain is None else dy * gain[None]
        ds = g * inverse[:, None] - d * slope[:, None] + dtotal
        if centred:
            ds = ds - (inverse * of_dy / float(columns))[:, None]
        ds = ds.reshape(x.shape).astype(x.dtype)
        gradients = [ds, ds]
        if scaled:
            gradients.append(dscale.reshape(scale.shape).astype(scale.dtype))
        if biased:
            gradients.append(dbias.reshape(bias.shape).astype(bias.dtype))
        return tuple(gradients)

    # Without a derivative no statistic is kept.
    alone = jax.custom_jvp(plain)
    fast = with_fast_vjp(plain, forward, backward)
    alone.defjvp(functools.partial(jax.jvp, fast))
    return alone


def _by_sums(
    dy: jax.Array, product: jax.Array, inverse: jax.Array, gain: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """Sum dy and dy d over rows and columns; the compiler fuses what each sum is taken of."""
    g = dy if gain is None else dy * gain[None]
    gd = product if gain is None else product * gain[None]
    return jnp.sum(g, 1), jnp.sum(gd, 1), jnp.sum(product * inverse[:, None], 0), jnp.sum(dy, 0)


def _by_products(
    dy: jax.Array, product: jax.Array, inverse: jax.Array, gain: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """Take the same sums as matrix products, of dy and of one array dy d that is written once.

    For a CPU. What of them is not used, such as the first of RMS norm, the compiler drops.
    """
    product = lax.optimization_barrier(product)
    gain = jnp.ones(dy.shape[1], dy.dtype) if gain is None else gain
    dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    return dot(dy, gain), dot(product, gain), dot(inverse, product), jnp.sum(dy, 0)
