"""Statistics of segments: graphs of one batch, or sequences that are packed into one row.

Each position is measured, and the positions of a segment are merged by the formula of `merge`,
as sums over segments. Memory goes with x and the number of segments, not with their product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Inexact, Integer

from normjax._internal import _checks
from normjax.statistics import _core, _formulas
from normjax.statistics._shapes import abs2, append_axes, expand, stat_dtype
from normjax.statistics._types import Array, Moments


class Segments(NamedTuple):
    """Which segment each position of x belongs to, and how many segments there are.

    Attributes:
        ids: integers of the shape of x without its last axis.
        number: number of segments in each row; ids outside of 0 to number - 1 belong to none.
    """

    ids: jax.Array
    number: int


def segment_moments(
    x: Inexact[Array, "*shape"],
    segment_ids: Integer[Array, "..."],
    num_segments: int,
    *,
    axes: int | Sequence[int] | None = None,
    mask: Bool[Array, "..."] | None = None,
) -> Moments:
    r"""Return mean, variance and count of each segment of `x`.

    $$\mu_k = \frac1{n_k}\sum_{i:\,\mathrm{id}_i = k} x_i, \qquad
      \sigma^2_k = \frac1{n_k}\sum_{i:\,\mathrm{id}_i = k} |x_i - \mu_k|^2$$

    Args:
        x: floating or complex, `[..., features]`.
        segment_ids: integers of the shape of x without its last axis, in any order. An id below 0
            or from `num_segments` on belongs to no segment, as padding does.
        num_segments: number of segments, a plain integer: the shape of the result depends on it.
        axes: axes that are divided into segments; the last axis is none of them. `None`: all but
            the last. Other axes are rows, each with segments of its own: for packed sequences
            `[batch, time, features]` write `axes=1`.
        mask: True where a value counts; rank of `x`, broadcastable to it.

    Returns:
        `Moments` of shape `[*rows, num_segments, features]`, in at least float32. A segment without
        values has mean 0, variance 0 and count 0.

    Raises:
        TypeError: `x` is not floating or complex, or ids are not integers.
        ValueError: shapes do not fit, `num_segments` is no positive integer, or `axes` have the
            last axis.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> x = jnp.array([[1.0], [3.0], [7.0]])
        >>> m = nj.segment_moments(x, jnp.array([0, 0, 1]), 2)
        >>> m.mean.ravel().tolist(), m.var.ravel().tolist(), m.count.ravel().tolist()
        ([2.0, 7.0], [1.0, 0.0], [2.0, 1.0])

    Reference:
        Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983.
    """
    x = _checks.floating(x, "segment_moments")
    mask, segments = _checks.mask(mask, x.shape), checked(segment_ids, num_segments, x.shape)
    resolved = _checks.resolve_axes(axes, x.ndim)
    if x.ndim - 1 in resolved:
        raise ValueError(
            f"axes={axes} have the last axis of x of shape {x.shape}, whose features each have "
            "statistics of their own: leave it out"
        )
    return moments(x, resolved, mask, segments)


def checked(segment_ids: Any, num_segments: Any, shape: tuple[int, ...]) -> Segments:
    """Return the segments of an x of `shape`; raise if ids or their number do not fit."""
    if segment_ids is None or num_segments is None:
        raise ValueError(
            "segment_ids and num_segments go together: write num_segments=, a plain integer that "
            "is at least the largest id plus 1"
        )
    if isinstance(num_segments, jax.Array):
        raise ValueError(
            "num_segments is an array, and shapes depend on it: write a plain integer, such as "
            "the most graphs of any batch"
        )
    _checks.positive_int("num_segments", num_segments)
    ids = jnp.asarray(segment_ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"segment_ids must be integers and are {ids.dtype}: write segment_ids.astype(jnp.int32)"
        )
    if ids.shape != shape[:-1]:
        raise ValueError(
            f"segment_ids of shape {ids.shape} must have the shape of x {shape} without its last "
            f"axis, {shape[:-1]}: one id for each position"
        )
    return Segments(ids, int(num_segments))


def divides(segments: Segments | None, axes: Sequence[int]) -> TypeGuard[Segments]:
    """Whether statistics over `axes` are those of segments: some axis is one of positions."""
    return segments is not None and any(a < segments.ids.ndim for a in axes)


def moments(
    x: jax.Array,
    axes: Sequence[int],
    mask: Array | None,
    segments: Segments,
    *,
    centred: bool = True,
) -> Moments:
    """Return the moments of each segment, `[*rows, segments, *rest]`, or those around 0.

    Args:
        x: `[*positions, *channels]`.
        axes: axes averaged over, of positions, which are divided into segments, and of channels.
        mask: True where a value counts, of the rank of x.
        segments: ids of the shape of the positions.
        centred: whether the moments are those around the mean; else the mean square.
    """
    x = x.astype(stat_dtype(x.dtype))
    mask = full_mask(mask, x, segments)
    channels = tuple(a for a in axes if a >= segments.ids.ndim)
    if channels:
        mean, var, count = (_core.moments if centred else _core.mean_square)(x, channels, mask)
    else:
        mean = jnp.where(mask, x, 0)
        count = jnp.broadcast_to(mask, x.shape).astype(jnp.finfo(x.dtype).dtype)
        var = jnp.zeros_like(count)
        if not centred:
            mean, var = jnp.zeros_like(mean), abs2(mean)
    layout = _Layout(axes, segments)
    mean, var, count = (layout.flat(jnp.asarray(v)) for v in (mean, var, count))
    n = layout.total(count)
    some = jnp.maximum(n, 1)
    # A first estimate of the mean, which carries no gradient, and its error from a second pass.
    shift = lax.stop_gradient(layout.total(_times(count, mean)) / some.astype(mean.dtype))
    d = mean - shift[layout.segment]
    rest = layout.total(_times(count, d)) / some.astype(mean.dtype)
    spread = layout.total(count * (var + abs2(d))) / some - abs2(rest)
    spread = _formulas.overflow_to_nan(jnp.where(spread < 0, 0, spread))
    return Moments(*(layout.rows(v) for v in (shift + rest, spread, n)))


def normalize(
    x: jax.Array,
    m: Moments,
    axes: Sequence[int],
    scale: Array | None,
    bias: Array | None,
    eps: float,
    mask: Array | None,
    segments: Segments,
) -> jax.Array:
    """Centre and scale each value with the moments of its segment, then apply the affine."""
    wide = x.astype(stat_dtype(x.dtype))
    real = jnp.finfo(wide.dtype).dtype
    layout = _Layout(axes, segments)
    remaining = [a for a in range(x.ndim) if a < segments.ids.ndim or a not in axes]
    # [*rows, segments, *rest] to the rank of x, size 1 on averaged axes of channels.
    mean, inverse = (
        expand(layout.of_positions(jnp.asarray(v)), remaining, x.ndim)
        for v in (m.mean, _formulas.rsqrt(m.var + eps))
    )
    scale = None if scale is None else jnp.asarray(scale).astype(real)
    bias = None if bias is None else jnp.asarray(bias).astype(wide.dtype)
    y = _formulas.standardize(wide, mean, inverse.astype(real), scale, bias, mask)
    return y.astype(x.dtype)


def full_mask(mask: Array | None, x: jax.Array, segments: Segments) -> jax.Array:
    """Return the mask, of the rank of x, less the positions that belong to no segment."""
    inside = append_axes((segments.ids >= 0) & (segments.ids < segments.number), x.ndim)
    return inside if mask is None else inside & mask


def _times(weight: jax.Array, v: jax.Array) -> jax.Array:
    return weight.astype(v.dtype) * v


class _Layout:
    """Flattens positions to one axis with a global segment each, and undoes it."""

    def __init__(self, axes: Sequence[int], segments: Segments) -> None:
        ids, self.number = segments
        space = [a for a in range(ids.ndim) if a in axes]
        rows = [a for a in range(ids.ndim) if a not in axes]
        self.order = (*rows, *space)
        self.shape = tuple(ids.shape[a] for a in self.order)
        self.row_shape = tuple(ids.shape[a] for a in rows)
        self.all = math.prod(self.row_shape) * self.number
        inside = (ids >= 0) & (ids < self.number)
        turned = jnp.where(inside, ids, 0).transpose(self.order)
        turned = turned.reshape(math.prod(self.row_shape), -1)
        first = jnp.arange(turned.shape[0], dtype=turned.dtype)[:, None] * self.number
        # [positions]: the segments of row r are r * number to (r + 1) * number - 1.
        self.segment = (first + turned).reshape(-1)

    def flat(self, v: jax.Array) -> jax.Array:
        """Rearrange `[*positions, *rest]` to `[positions, *rest]`."""
        rest = range(len(self.order), v.ndim)
        v = v.transpose((*self.order, *rest))
        return v.reshape(self.segment.size, *v.shape[len(self.order) :])

    def total(self, v: jax.Array) -> jax.Array:
        """Sum `[positions, *rest]` over each segment."""
        return jax.ops.segment_sum(v, self.segment, num_segments=self.all)

    def rows(self, v: jax.Array) -> jax.Array:
        """Rearrange `[all segments, *rest]` to `[*rows, segments, *rest]`."""
        return v.reshape(*self.row_shape, self.number, *v.shape[1:])

    def of_positions(self, v: jax.Array) -> jax.Array:
        """Give each position its segment's: `[*rows, segments, *rest]` to `[*positions, *rest]`."""
        rest = v.shape[len(self.row_shape) + 1 :]
        v = v.reshape(self.all, *rest)[self.segment].reshape(*self.shape, *rest)
        back = [self.order.index(a) for a in range(len(self.order))]
        return v.transpose((*back, *range(len(self.order), v.ndim)))
