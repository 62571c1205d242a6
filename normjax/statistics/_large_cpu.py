"""Large arrays on a CPU: the same numbers in fewer passes over memory.

XLA makes a reduction over a CPU's memory fast where its operand is an array that exists, and
writes out, at full size, what would have to be broadcast or computed into it. So here sums are
taken of `x`, of `x * x` and of one product of the size of x, and what multiplies a row or a
column of it is a matrix product. The rules are those of `_formulas`, their plain twins, which serve
small arrays, masks and other devices.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from normjax._internal._paired import with_fast_vjp
from normjax._internal._saved import STATISTICS, checkpoint_name
from normjax.statistics._formulas import is_roundoff, moments_about
from normjax.statistics._shapes import expand

# From half a megabyte on; below, a call of these costs more than the passes that it saves.
MIN_SIZE = 2**17

# E[x^2] - E[x]^2 loses as many digits as the mean is far from 0, in spreads: at 2 spreads, a
# factor of 5 in a rounding error. Beyond, the variance is taken in two passes.
ONE_PASS_LIMIT = 2.0

_barrier = lax.optimization_barrier


def applies(x: jax.Array, mask: Any = None) -> bool:
    """Whether these formulas serve `x`: large, real, without a mask, on a CPU."""
    return (
        mask is None
        and x.size >= MIN_SIZE
        and not jnp.iscomplexobj(x)
        and jax.default_backend() == "cpu"
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def mean_and_var(
    x: jax.Array, axes: tuple[int, ...], plain_mean: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over `axes`: one pass where the mean is near 0, two where it is not."""
    n = float(math.prod(x.shape[a] for a in axes))
    mean = _sum(x, axes) / n
    var = _sum(x * x, axes) / n - mean * mean
    near = mean * mean <= ONE_PASS_LIMIT**2 * var

    def two_passes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        rest, again = moments_about(x, mean, None, None, axes)
        # Set by set, so that no sample's statistics depend on its neighbours'.
        stays = near | is_roundoff(mean, rest, again) if plain_mean else near
        return jnp.where(stays, mean, mean + rest), jnp.where(near, var, again)

    return lax.cond(jnp.all(near), lambda x: (mean, var), two_passes, x)


@mean_and_var.defjvp
def mean_and_var_jvp(axes: tuple[int, ...], plain_mean: bool, primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    n = float(math.prod(x.shape[a] for a in axes))
    mean, var = checkpoint_name(mean_and_var(x, axes, plain_mean), STATISTICS)
    d = x - expand(mean, [a for a in range(x.ndim) if a not in axes], x.ndim)
    dmean, dvar = _sum(dx, axes) / n, _sum(d * dx, axes) * (2 / n)
    return (mean, var), _barrier((dmean, dvar))


def standardize(
    x: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """`(x - mean) * inverse * scale + bias`, all of the rank of x."""
    given = [v for v in (mean, inverse, scale, bias) if v is not None]
    cut = next((a for a, size in enumerate(mean.shape) if size > 1), x.ndim)
    if all(v.shape == (1,) * cut + x.shape[cut:] for v in given):
        columns = _per_column(scale is not None, bias is not None)
        rows = x.reshape(-1, math.prod(x.shape[cut:]))
        return columns(rows, *(v.reshape(1, -1) for v in given))[0].reshape(x.shape)
    return _standardize(x, mean, inverse, scale, bias)


@functools.cache
def _per_column(scaled: bool, biased: bool) -> Any:
    """Rows whose statistics and affine are one a column: two sums over dy and x, read as they are.

    `sum(dy * (x - mean))` is `sum(dy * x) - mean * sum(dy)` where the mean is near 0, and x - mean
    need not be written out. Differentiation would not find it: under a `cond` it keeps copies.
    """

    def plain(x: Any, mean: Any, inverse: Any, *affine: Any) -> tuple[jax.Array, ...]:
        scale, bias = affine[0] if scaled else None, affine[-1] if biased else None
        return (_standardize(x, mean, inverse, scale, bias),)

    def forward(*args: jax.Array) -> Any:
        return plain(*args), ()

    def backward(args: Any, kept: Any, cotangents: Any) -> Any:
        del kept
        (x, mean, inverse, *affine), (dy,) = args, cotangents
        total = jnp.sum(dy, 0, keepdims=True)
        product = lax.cond(
            jnp.all(jnp.abs(mean * inverse) <= ONE_PASS_LIMIT),
            lambda: jnp.sum(dy * x, 0, keepdims=True) - mean * total,
            lambda: jnp.sum(dy * (x - mean), 0, keepdims=True),
        )
        factor = inverse * affine[0] if scaled else inverse
        found = [dy * factor, -factor * total, product * affine[0] if scaled else product]
        found += [product * inverse] if scaled else []
        return (*found, total) if biased else tuple(found)

    return with_fast_vjp(plain, forward, backward)


@jax.custom_jvp
def _standardize(
    x: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    if scale is None or not is_row_times_column(x.shape, inverse.shape, scale.shape):
        factor = inverse if scale is None else inverse * scale
        mean, factor = _barrier((mean, factor))
        y = (x - mean) * factor
    else:
        mean, inverse = _barrier((mean, inverse))
        y = (x - mean) * (inverse * scale)
    return y if bias is None else y + bias


@_standardize.defjvp
def standardize_jvp(primals: Any, tangents: Any) -> Any:
    x, mean, inverse, scale, bias = primals
    dx, dmean, dinverse, dscale, dbias = tangents
    if scale is None:
        factor, dfactor, moved = inverse, dinverse, -inverse * dmean
    elif is_row_times_column(x.shape, inverse.shape, scale.shape):
        factor = inverse * scale
        dfactor = _outer(dinverse, scale) + _outer(inverse, dscale)
        moved = -_outer(inverse * dmean, scale)
    else:
        factor = inverse * scale
        dfactor, moved = dinverse * scale + inverse * dscale, -factor * dmean
    if bias is not None:
        moved = moved + dbias
    # Behind the barrier, so that backward the product of x and the slope is written once, and
    # all sums are taken of it.
    dfactor = _barrier(jnp.broadcast_to(dfactor, x.shape))
    return _standardize(*primals), dx * factor + (x - mean) * dfactor + moved


def is_row_times_column(
    shape: tuple[int, ...], rows: tuple[int, ...], columns: tuple[int, ...]
) -> bool:
    """Whether one value a row times one value a column are all of x, rows first."""
    cut = next((a for a, size in enumerate(columns) if size > 1), len(shape))
    return (
        rows[cut:] == (1,) * (len(shape) - cut)
        and columns[:cut] == (1,) * cut
        and (rows[:cut] + columns[cut:] == shape)
    )


def _outer(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """One value a row times one value a column, as a product whose transpose is one too."""
    cut = next((a for a, size in enumerate(columns.shape) if size > 1), columns.ndim)
    rows, columns = rows.reshape(rows.shape[:cut]), columns.reshape(columns.shape[cut:])
    return lax.dot_general(rows, columns, (((), ()), ((), ())), precision=lax.Precision.HIGHEST)


def _sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sum over `axes`; over the last one at the end, where what remains lies between."""
    last = x.ndim - 1
    others = tuple(a for a in axes if a != last)
    if last not in axes or not others or len(axes) == last - min(axes) + 1:
        return jnp.sum(x, axes)
    return jnp.sum(_barrier(jnp.sum(x, others)), -1)
