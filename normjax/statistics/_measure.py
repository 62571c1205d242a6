"""The verbs: with `_merging`, `_rules` and `_large` the only place that averages anything.

Statistics are values with a weight, so they can be merged: over microbatches, over
devices, over a data set, over time. They are never taken as E[x^2] - E[x]^2 of uncentred
data (what counts as centred, `_large` says), and never in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Inexact

# Merging and keeping belong to the verbs, and are found here with them.
from normjax._internal import _checks
from normjax.statistics import _large_cpu
from normjax.statistics._formulas import mean_and_var
from normjax.statistics._shapes import (
    abs2,
    append_axes,
    as_vectors,
    expand,
    outer,
    scale_by_weight,
    stat_dtype,
)
from normjax.statistics._types import Array, AxisName, Means, Moments, PyTree, SecondMoments


def moments(
    x: Inexact[Array, "*shape"],
    axes: int | Sequence[int] | None,
    *,
    mask: Bool[Array, "..."] | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    plain_mean: bool = False,
) -> Moments:
    r"""Mean, variance and count of `x` over `axes`, stable and count-weighted.

    $$\mu = \tfrac1n \sum x, \qquad \sigma^2 = \tfrac1n \sum |x - \mu|^2$$

    The variance is taken around a first estimate of the mean and then corrected by what the
    second pass finds (the corrected two-pass algorithm), so neither a large mean nor a long
    sum costs it digits. Masked values are replaced before any arithmetic. Over devices the
    counts weigh: it is the mean of all values, not the mean of the devices' means.

    Args:
        x: floating or complex, any shape.
        axes: axes averaged over; `None` is all but the last.
        mask: True where a value counts; rank of `x`, broadcastable to it.
        axis_name: device axis or axes to pool over as well.
        axis_index_groups: groups of device indices that are pooled apart.
        plain_mean: leave out a correction of the mean that is within two roundings of it and
            far below the spread, so that it is `jnp.mean` to the bit; for agreement with Flax.

    Returns:
        `Moments` of the shape of the axes that remain, in at least float32. A set with no
        value has mean 0, variance 0, count 0.

    Raises:
        TypeError: `x` is not floating, `mask` not boolean.
        ValueError: axes or mask do not fit `x`.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> x = jnp.array([[1.0], [3.0], [jnp.nan]])
        >>> m = nj.moments(x, 0, mask=jnp.array([[True], [True], [False]]))
        >>> float(m.mean[0]), float(m.var[0]), float(m.count[0])
        (2.0, 1.0, 2.0)

    Reference:
        Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983.
    """
    x = _checks.floating(x, "moments")
    mask = _checks.mask(mask, x.shape)
    axes = _checks.resolve_axes(axes, x.ndim)
    x = x.astype(stat_dtype(x.dtype))
    count = value_counts(mask, x, axes)
    n = None if mask is None else jnp.maximum(count, 1)
    if mask is not None:
        x = jnp.where(mask, x, 0)

    if _large_cpu.applies(x, mask):
        mean, var = _large_cpu.mean_and_var(x, axes, plain_mean)
    else:
        mean, var = mean_and_var(x, mask, n, axes, plain_mean)
    if axis_name is not None:
        mean, var, count = _pool_devices(mean, var, count, axis_name, axis_index_groups)
    return Moments(mean, var, count)


def means(
    x: Inexact[Array, "*shape"],
    axes: int | Sequence[int] | None,
    *,
    mask: Bool[Array, "..."] | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Means:
    """Mean and count of `x` over `axes`: `moments` without the variance, and without its cost.

    Args, errors: as `moments`.
    """
    x = _checks.floating(x, "means")
    mask = _checks.mask(mask, x.shape)
    axes = _checks.resolve_axes(axes, x.ndim)
    x = x.astype(stat_dtype(x.dtype))
    count = value_counts(mask, x, axes)
    mean, _ = _two_pass(x, axes, mask, jnp.maximum(count, 1))
    if axis_name is not None:
        count, total = lax.psum(
            (count, scale_by_weight(count, mean)), axis_name, axis_index_groups=axis_index_groups
        )
        mean = total / jnp.maximum(count, 1).astype(total.dtype)
    return Means(mean, count)


def second_moments(
    x: Inexact[Array, "*shape"],
    axes: int | Sequence[int] | None = None,
    *,
    mask: Bool[Array, "..."] | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> SecondMoments:
    r"""Mean, covariance and count of the vectors on the last axis of `x`.

    $$\mu = \tfrac1n \sum x, \qquad \Sigma = \tfrac1n \sum (x - \mu)(x - \mu)^*$$

    Two passes with correction, as in `moments`, and products in full precision also where the
    hardware would round them. A vector counts where all of its values do.

    Args:
        x: floating or complex, features last.
        axes: axes averaged over, not the last; `None` is all but the last. Axes that remain
            have a covariance each.
        mask: True where a value counts; rank of `x`, broadcastable to it.
        axis_name: device axis or axes to pool over as well.
        axis_index_groups: groups of device indices that are pooled apart.

    Returns:
        `SecondMoments`, in at least float32; of a set with no vector all 0.

    Raises:
        TypeError: `x` is not floating, `mask` not boolean.
        ValueError: axes or mask do not fit `x`; the last axis is averaged over.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> nj.second_moments(jnp.array([[1.0, 2.0], [3.0, 6.0]])).cov.tolist()
        [[1.0, 2.0], [2.0, 4.0]]

    Reference:
        Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983.
    """
    x = _checks.floating(x, "second_moments")
    mask = _checks.mask(mask, x.shape)
    axes = _checks.resolve_axes(axes, x.ndim)
    if x.ndim - 1 in axes:
        raise ValueError(
            f"axes={axes} averages over the last axis of x of shape {x.shape}, whose covariance "
            "is taken: move the features last, jnp.moveaxis(x, features, -1)"
        )
    x = x.astype(stat_dtype(x.dtype))
    if mask is not None:
        mask = jnp.all(mask, -1, keepdims=True)
    count = value_counts(mask, x, axes)[..., 0]
    n = jnp.maximum(count, 1)
    mean, d = _two_pass(x, axes, mask, n[..., None])
    vectors, _ = as_vectors(d, axes)
    cov = _gram(vectors) / append_axes(n, mean.ndim + 1).astype(x.dtype)
    if axis_name is not None:

        def total(tree: PyTree) -> PyTree:
            return lax.psum(tree, axis_name, axis_index_groups=axis_index_groups)

        whole, weighted = total((count, scale_by_weight(count, mean)))
        n = jnp.maximum(whole, 1)
        pooled = weighted / append_axes(n, mean.ndim).astype(x.dtype)
        spread = total(scale_by_weight(count, cov + outer(mean - pooled)))
        mean, cov, count = pooled, spread / append_axes(n, cov.ndim).astype(x.dtype), whole
    return SecondMoments(mean, cov, count)


def mean_square(
    x: Inexact[Array, "*shape"],
    axes: int | Sequence[int],
    *,
    mask: Bool[Array, "..."] | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Moments:
    r"""Mean square of `x` over `axes`, as moments around 0, so that `normalize` takes it.

    $$\mu := 0, \qquad \sigma^2 := \tfrac1n \sum |x|^2$$

    It is smooth where x is 0, as its root is not: the root is taken after eps is added.

    Args:
        x: floating or complex, any shape.
        axes: axes averaged over; `()` is each value by itself.
        mask: True where a value counts; rank of `x`, broadcastable to it.
        axis_name: device axis or axes to pool over as well.
        axis_index_groups: groups of device indices that are pooled apart.

    Returns:
        `Moments` of mean 0, in at least float32; a set with no value has count 0.

    Raises:
        TypeError: `x` is not floating, `mask` not boolean.
        ValueError: axes or mask do not fit `x`.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> nj.mean_square(jnp.array([[3.0, 4.0]]), -1).var.tolist()
        [12.5]

    Reference:
        Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    x = _checks.floating(x, "mean_square")
    mask = _checks.mask(mask, x.shape)
    axes = _checks.resolve_axes(axes, x.ndim)
    x = x.astype(stat_dtype(x.dtype))
    count = value_counts(mask, x, axes)
    if mask is not None:
        x = jnp.where(mask, x, 0)
    total = jnp.sum(abs2(x), axes)
    if axis_name is not None:
        count, total = lax.psum((count, total), axis_name, axis_index_groups=axis_index_groups)
    return Moments(jnp.zeros(count.shape, x.dtype), total / jnp.maximum(count, 1), count)


def window_square(
    x: Inexact[Array, "*shape"], size: int, *, mask: Bool[Array, "..."] | None = None
) -> Inexact[jax.Array, "*shape"]:
    """Sum of |x|^2 over the `size` neighbours on the last axis, itself among them.

    Position i sums from i - size // 2 to i + (size - 1) // 2; what is beyond the edge or
    masked counts as 0. A running sum minus a running sum would lose the small values.
    """
    x = x.astype(stat_dtype(x.dtype))
    if mask is not None:
        x = jnp.where(mask, x, 0)
    square = abs2(x)
    window = (1,) * (x.ndim - 1) + (size,)
    edges = ((0, 0),) * (x.ndim - 1) + ((size // 2, (size - 1) // 2),)
    zero = np.zeros((), square.dtype)
    return lax.reduce_window(square, zero, lax.add, window, (1,) * x.ndim, edges)


def pool(m: Moments, axis_name: AxisName, groups: Any = None) -> Moments:
    """Pool moments over devices, by their counts."""
    if axis_name is None:
        return m
    return Moments(*_pool_devices(m.mean, m.var, m.count, axis_name, groups))


def _two_pass(
    x: jax.Array, axes: tuple[int, ...], mask: jax.Array | None, n: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean of `x` over `axes`, from `n` values each, and the centred values, 0 under the mask."""
    kept = [a for a in range(x.ndim) if a not in axes]
    n = n.astype(x.dtype)
    if mask is not None:
        x = jnp.where(mask, x, 0)
    # The shift carries no gradient: neither mean nor spread depends on it.
    shift = lax.stop_gradient(jnp.sum(x, axes) / n)
    d = x - expand(shift, kept, x.ndim)
    if mask is not None:
        d = jnp.where(mask, d, 0)
    rest = jnp.sum(d, axes) / n
    d = d - expand(rest, kept, x.ndim)
    return shift + rest, d if mask is None else jnp.where(mask, d, 0)


def _gram(d: jax.Array) -> jax.Array:
    """Sum of d d^* over rows, in full precision: accelerators round products by default."""
    return jnp.einsum("...ni,...nj->...ij", d, d.conj(), precision=lax.Precision.HIGHEST)


def value_counts(mask: jax.Array | None, x: jax.Array, axes: tuple[int, ...]) -> Array:
    """Values in each set; the mask is summed in its own small shape, in integers.

    In a program that is being traced, what no mask decides is known already: a NumPy array says so.
    """
    kept_shape = tuple(s for a, s in enumerate(x.shape) if a not in axes)
    dtype = jnp.finfo(x.dtype).dtype
    if mask is None:
        count = np.full(kept_shape, math.prod(x.shape[a] for a in axes), dtype)
        return count if isinstance(x, jax.core.Tracer) else jnp.asarray(count)
    repeats = math.prod(x.shape[a] for a in axes if mask.shape[a] == 1)
    real = jnp.sum(mask, axes, dtype=jnp.int32).astype(dtype) * repeats
    return jnp.broadcast_to(real, kept_shape)


def _pool_devices(
    mean: Array, var: Array, count: Array, axis_name: AxisName, groups: Any
) -> tuple[jax.Array, jax.Array, Array]:
    def total(tree: PyTree) -> PyTree:
        return lax.psum(tree, axis_name, axis_index_groups=groups)

    n, weighted = total((count, scale_by_weight(count, mean)))
    pooled = weighted / jnp.maximum(n, 1).astype(mean.dtype)
    spread = total(count * (var + abs2(mean - pooled)))
    return pooled, spread / jnp.maximum(n, 1), n
