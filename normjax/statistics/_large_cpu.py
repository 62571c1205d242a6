"""Computes the same numbers as `_formulas` for large arrays on a CPU, in fewer passes over memory.

On a CPU, XLA reduces an array that already exists quickly, but first writes out, at full size, an
operand that has to be broadcast or computed. So the sums here are taken of `x`, of `x * x` and of
one product of the size of x, and row-by-column factors are written as a matrix product. The
derivatives are those of `_formulas`, which also handles small arrays, masks and other devices.
`_large` says when these are used, and wraps `mean_and_var` and its tangent in one derivative rule.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from normjax._internal._paired import with_fast_vjp
from normjax.statistics._formulas import is_roundoff, moments_about
from normjax.statistics._shapes import expand, is_row_times_column

# E[x^2] - E[x]^2 multiplies the rounding error by 1 + (mean / spread)^2: at 2 spreads by 5. Beyond
# this limit the variance is taken in two passes.
ONE_PASS_LIMIT = 2.0

# XLA does not fuse across a barrier: its operands are computed and written once.
_barrier = lax.optimization_barrier


def mean_and_var(
    x: jax.Array, axes: tuple[int, ...], plain_mean: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance over `axes`: in one pass if every mean is near 0, else in two."""
    n = float(math.prod(x.shape[a] for a in axes))
    mean = _sum(x, axes) / n
    var = _sum(x * x, axes) / n - mean * mean
    # Not where the square overflows: the second pass says so.
    near = (mean * mean <= ONE_PASS_LIMIT**2 * var) & (var < jnp.inf)

    def two_passes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        rest, exact_var = moments_about(x, mean, None, None, axes)
        # Set by set, so that no sample's statistics depend on its neighbours'.
        final = near | is_roundoff(mean, rest, exact_var) if plain_mean else near
        return jnp.where(final, mean, mean + rest), jnp.where(near, var, exact_var)

    # A `cond`, so that the second pass over x runs only where a set needs it.
    return lax.cond(jnp.all(near), lambda x: (mean, var), two_passes, x)


def mean_and_var_tangent(
    x: jax.Array, mean: jax.Array, dx: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Return the tangents dmean = E[dx] and dvar = 2 E[(x - mean) dx]."""
    n = float(math.prod(x.shape[a] for a in axes))
    d = x - expand(mean, [a for a in range(x.ndim) if a not in axes], x.ndim)
    dmean, dvar = _sum(dx, axes) / n, _sum(d * dx, axes) * (2 / n)
    # Transposed, the barrier has both small cotangents computed before they are broadcast to x.
    return tuple(_barrier((dmean, dvar)))


def standardize(
    x: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """Return `(x - mean) * inverse * scale + bias`, all of the rank of x."""
    small = [v for v in (mean, inverse, scale, bias) if v is not None]
    cut = next((a for a, size in enumerate(mean.shape) if size > 1), x.ndim)
    if all(v.shape == (1,) * cut + x.shape[cut:] for v in small):
        # Batch norm: every factor has one value per column of x as `[rows, columns]`.
        columns = _per_column(scale is not None, bias is not None)
        rows = x.reshape(-1, math.prod(x.shape[cut:]))
        return columns(rows, *(v.reshape(1, -1) for v in small))[0].reshape(x.shape)
    return _standardize(x, mean, inverse, scale, bias)


@functools.cache
def _per_column(scaled: bool, biased: bool) -> Any:
    """Build the function for `[rows, columns]` with one mean, inverse, scale and bias per column.

    Backward it takes two sums, over dy and over dy * x: `sum(dy * (x - mean))` is
    `sum(dy * x) - mean * sum(dy)` where the mean is near 0, and x - mean is never written out.
    Automatic differentiation would not do this: it stores copies of x for the `cond`.
    """

    def plain(x: Any, mean: Any, inverse: Any, *affine: Any) -> tuple[jax.Array, ...]:
        scale, bias = affine[0] if scaled else None, affine[-1] if biased else None
        return (_standardize(x, mean, inverse, scale, bias),)

    def forward(*args: jax.Array) -> Any:
        return plain(*args), ()

    def backward(args: Any, residuals: Any, cotangents: Any) -> Any:
        del residuals
        (x, mean, inverse, *affine), (dy,) = args, cotangents
        total = jnp.sum(dy, 0, keepdims=True)
        product = lax.cond(
            jnp.all(jnp.abs(mean * inverse) <= ONE_PASS_LIMIT),
            lambda: jnp.sum(dy * x, 0, keepdims=True) - mean * total,
            lambda: jnp.sum(dy * (x - mean), 0, keepdims=True),
        )
        factor = inverse * affine[0] if scaled else inverse
        # In the order of the arguments: x, mean, inverse, then scale and bias if there are.
        gradients = [dy * factor, -factor * total, product * affine[0] if scaled else product]
        gradients += [product * inverse] if scaled else []
        return (*gradients, total) if biased else tuple(gradients)

    return with_fast_vjp(plain, forward, backward)


@jax.custom_jvp
def _standardize(
    x: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    # Behind a barrier the small factors are computed once, not again for every value of x.
    if scale is None or not is_row_times_column(x.shape, inverse.shape, scale.shape):
        factor = inverse if scale is None else inverse * scale
        mean, factor = _barrier((mean, factor))
        y = (x - mean) * factor
    else:
        # inverse * scale would have the size of x: leave that product to the loop.
        mean, inverse = _barrier((mean, inverse))
        y = (x - mean) * (inverse * scale)
    return y if bias is None else y + bias


@_standardize.defjvp
def standardize_jvp(primals: Any, tangents: Any) -> Any:
    """Differentiate: dy = dx f + (x - mean) df - f dmean + dbias, with f = inverse * scale."""
    x, mean, inverse, scale, bias = primals
    dx, dmean, dinverse, dscale, dbias = tangents
    if scale is None:
        factor, dfactor, shift = inverse, dinverse, -inverse * dmean
    elif is_row_times_column(x.shape, inverse.shape, scale.shape):
        # Layer norm: one value per row times one per column, as matrix products.
        factor = inverse * scale
        dfactor = _outer(dinverse, scale) + _outer(inverse, dscale)
        shift = -_outer(inverse * dmean, scale)
    else:
        factor = inverse * scale
        dfactor, shift = dinverse * scale + inverse * dscale, -factor * dmean
    if bias is not None:
        shift = shift + dbias
    # Transposed, the barrier makes the product (x - mean) * dy one array that is written once,
    # and all sums are taken of it.
    dfactor = _barrier(jnp.broadcast_to(dfactor, x.shape))
    return _standardize(*primals), dx * factor + (x - mean) * dfactor + shift


def _outer(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Multiply one value per row by one per column, so that the transpose is a matrix product."""
    cut = next((a for a, size in enumerate(columns.shape) if size > 1), columns.ndim)
    rows, columns = rows.reshape(rows.shape[:cut]), columns.reshape(columns.shape[cut:])
    return lax.dot_general(rows, columns, (((), ()), ((), ())), precision=lax.Precision.HIGHEST)


def _sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sum over `axes`, over the last axis separately if a remaining axis lies before it."""
    last = x.ndim - 1
    others = tuple(a for a in axes if a != last)
    if last not in axes or not others or len(axes) == last - min(axes) + 1:
        return jnp.sum(x, axes)
    # The barrier keeps XLA from merging the two sums into one slow reduction.
    return jnp.sum(_barrier(jnp.sum(x, others)), -1)
