"""Computes the same numbers as `_formulas` for large arrays on accelerators, in fewer passes.

The compilers of GPUs and TPUs fuse arithmetic into the sums that use it, so what counts is how
often x is read, and that sums over the same values share a pass. `_large` says when these are used.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from normjax.statistics import _formulas
from normjax.statistics._shapes import expand, is_row_times_column

Arrays = tuple[jax.Array, ...]

# A set is measured around the mean of its first part, one in so many of its values.
PART = 32
# Rows that a GPU adds, at most, in the first of two steps.
RUN = 256
# Values that a row has, at most, in a kernel of whole rows that XLA makes for a GPU.
WIDEST = 2**14


def mean_and_var(
    x: jax.Array, axes: tuple[int, ...], dtype: Any = None, *, in_steps: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance over `axes`, in one pass over x.

    Both are taken of `x - shift`, where the shift is the mean of a part of the set. E|x - shift|^2
    - E[x - shift]^2 multiplies the rounding error by 1 + (shift - mean)^2 / var. For a part of a
    fraction f, var >= f (shift - mean)^2, so this is at most 1 + 1 / f for any values; for values
    in random order it is about 1.

    Args:
        x: real, at least float32.
        axes: averaged over.
        dtype: from which x was widened; the part is read in it.
        in_steps: whether long sums over rows are taken in two steps, as on a GPU.
    """
    # XLA drops the way to `dtype` and back, but would write all of x out, widened, for a slice.
    half = dtype is not None and jnp.dtype(dtype).itemsize < 4
    part = _part(x.astype(dtype) if half else x, axes)
    shift = _formulas.mean_over(x if part is None else part.astype(x.dtype), axes, None)
    d = x - expand(shift, [a for a in range(x.ndim) if a not in axes], x.ndim)
    n = float(math.prod(x.shape[a] for a in axes))
    rest, square = (s / n for s in _sums((d, d * d), axes, in_steps))
    # As `_formulas.moments_about`.
    var = square - rest * rest
    return shift + rest, jnp.where(var < 0, 0, jnp.where(var < jnp.inf, var, jnp.nan))


def _part(x: jax.Array, axes: tuple[int, ...]) -> jax.Array | None:
    """Return a 32nd of x along one of `axes`, or `None` if all are split on axes of a mesh.

    Not along the batch if there is another axis long enough: devices may have shares of it.
    """
    spec = jax.typeof(x).sharding.spec
    whole = [a for a in axes if a >= len(spec) or spec[a] is None]
    if not whole:
        return None
    others = [a for a in whole if a > 0 and x.shape[a] >= PART // 2]
    axis = max(others or whole, key=lambda a: x.shape[a])
    size, last = x.shape[axis], x.ndim - 1
    if axis == 0:
        return lax.slice_in_dim(x, 0, size, PART, axis)  # a part of each device's share
    grouped = x.ndim > 2 and last in axes and last - 1 not in axes and axis < last
    if not grouped or _is_explicit(x):
        return lax.slice_in_dim(x, 0, -(-size // PART), axis=axis)
    # Group norm: x is `[batch, *space, groups, channels of a group]` only here. The slice is taken
    # before that reshape, which would move data on a TPU.
    channels = x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
    part = lax.slice_in_dim(channels, 0, -(-size // PART), axis=axis)
    return part.reshape(*part.shape[:-1], *x.shape[-2:])


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def standardize(
    x: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    in_steps: bool = False,
) -> jax.Array:
    """Return `(x - mean) * inverse * scale + bias`, all of the rank of x."""
    return _formulas.standardize(x, mean, inverse, scale, bias, None)


@standardize.defjvp
def _standardize_jvp(in_steps: bool, primals: Any, tangents: Any) -> Any:
    """Differentiate: dy = dx f + (x - mean) df - f dmean + dbias, with f = inverse * scale.

    All that is small is added before it is spread, so that backward it is one sum.
    """
    x, mean, inverse, scale, bias = primals
    dx, dmean, dinverse, dscale, dbias = tangents
    d = x - mean
    spread = functools.partial(_spread, x=x, in_steps=in_steps)
    if scale is not None and is_row_times_column(x.shape, inverse.shape, scale.shape):
        # Layer norm: one value per row and one per column, whose product has the size of x.
        dy = (dx * inverse - inverse * dmean + d * dinverse) * scale
        dfactor, shift = dscale, dbias
        d = d * inverse
    else:
        factor = inverse if scale is None else inverse * scale
        dfactor = dinverse if scale is None else dinverse * scale + inverse * dscale
        shift = -factor * dmean if bias is None else dbias - factor * dmean
        dy = dx * factor
    dy = dy + d * spread(dfactor)
    return standardize(*primals, in_steps), dy if shift is None else dy + spread(shift)


def normalize_rows(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, eps: float, centred: bool
) -> jax.Array:
    """Return layer norm (`centred`) or RMS norm of x over its last axis, from x alone.

    XLA makes one kernel of this for an NVIDIA GPU, from Ampere on, which reads a row once and keeps
    it on the chip: of sums over the last axis alone that are used for nothing but their row. More
    passes over a row are then free, so the mean is corrected as by `_formulas.mean_and_var`.

    Args:
        x: real, at least float32.
        scale: of the rank of x.
        bias: of the rank of x.
        eps: added to the variance or mean square.
        centred: whether the mean is subtracted.
    """
    mean = functools.partial(jnp.mean, axis=-1, keepdims=True)
    if centred:
        x = x - mean(x)
        x = x - mean(x)
    inverse = _formulas.rsqrt(_overflow_to_nan_by_bits(mean(x * x)) + eps)
    y = x * (inverse if scale is None else inverse * scale)
    return y if bias is None else y + bias


def serves_rows(x: jax.Array, axes: tuple[int, ...]) -> bool:
    """Whether XLA makes one kernel of `normalize_rows` for a GPU."""
    last = x.ndim - 1
    whole = jax.typeof(x).sharding.spec[last:] in ((), (None,))
    return axes == (last,) and x.shape[last] <= WIDEST and whole


def _overflow_to_nan_by_bits(square: jax.Array) -> jax.Array:
    """Return what `_formulas.overflow_to_nan` does, with one use of the value.

    XLA makes no kernel of a whole row if two operations use the row's sum.
    """
    kind = jnp.finfo(square.dtype)
    integer = jnp.int32 if kind.bits == 32 else jnp.int64
    # With 1 added to the exponent, infinity is the lowest integer. The next one up was a NaN.
    one, lowest = (jnp.asarray(v, integer) for v in (1 << kind.nmant, jnp.iinfo(integer).min + 1))
    bits = lax.bitcast_convert_type(square, integer)
    return lax.bitcast_convert_type(lax.max(bits + one, lowest) - one, square.dtype)


def _sums(values: Arrays, axes: tuple[int, ...], in_steps: bool) -> Arrays:
    """Sum each of the values, of one shape, over `axes`."""
    first = values[0]
    split = _split(first.shape, axes) if in_steps and not _is_explicit(first) else None
    if split is None:
        return tuple(jnp.sum(v, axes) for v in values)
    runs = tuple(jnp.sum(v.reshape(split.shape), split.run) for v in values)
    # Behind a barrier, or XLA would merge the two sums into one.
    return tuple(jnp.sum(v, split.others) for v in lax.optimization_barrier(runs))


def _spread(v: jax.Array, x: jax.Array, in_steps: bool) -> jax.Array:
    """Broadcast `v` to the shape of x, so that the transpose is a sum as `_sums` takes it."""
    axes = tuple(a for a in range(x.ndim) if v.shape[a] == 1 and x.shape[a] > 1)
    split = _split(x.shape, axes) if in_steps and not _is_explicit(x) else None
    if split is None:
        return jnp.broadcast_to(v, x.shape)
    one = (*v.shape[: split.run], *v.shape[v.ndim - (len(split.shape) - split.run - 1) :])
    runs = (*split.shape[: split.run], *split.shape[split.run + 1 :])
    middle = lax.optimization_barrier(jnp.broadcast_to(v.reshape(one), runs))
    return jnp.broadcast_to(jnp.expand_dims(middle, split.run), split.shape).reshape(x.shape)


class _Split(NamedTuple):
    """How a sum is taken in two steps.

    Attributes:
        shape: of x with adjacent axes that are summed merged, and cut into runs of rows.
        run: the axis of this shape that the first step sums over.
        others: the axes that the second step sums over, without `run`.
    """

    shape: tuple[int, ...]
    run: int
    others: tuple[int, ...]


def _split(shape: tuple[int, ...], axes: tuple[int, ...]) -> _Split | None:
    """Cut a long sum over rows, so that a GPU has enough blocks to run it at full speed.

    For less, its compiler writes what is summed out and reads it again. A sum over the last axis
    is taken by many threads anyway.
    """
    last = len(shape) - 1
    if last in axes and last - 1 in axes:
        return None
    start = next((a for a in axes if a != last and a - 1 not in axes), None)
    if start is None:
        return None
    end = next(a for a in range(start, last) if a + 1 not in axes or a + 1 == last) + 1
    size = math.prod(shape[start:end])
    # A batch may be split over devices, and the runs must be then.
    devices = math.gcd(shape[0], 16) if start == 0 else 1
    run = next((r for r in range(RUN, RUN // 8, -1) if size % (r * devices) == 0), None)
    if run is None or size < 2 * run:
        return None
    merged = end - start - 1
    others = [start, *(a if a < start else a - merged for a in axes if not start <= a < end)]
    cut = (*shape[:start], size // run, run, *shape[end:])
    return _Split(cut, start + 1, tuple(others))


def _is_explicit(x: jax.Array) -> bool:
    """Whether x is split on explicit axes of a mesh, which a reshape cannot merge."""
    return any(jax.typeof(x).sharding.spec)
