"""The verbs: with `_merging`, `_rules` and `_large` the only place that averages anything.

Statistics are values with a weight, so they can be merged: over microbatches, over
devices, over a data set, over time. They are never taken as E[x^2] - E[x]^2 of uncentred
data (what counts as centred, `_large` says), and never in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Inexact

# Merging and keeping belong to the verbs, and are found here with them.
from normjax._internal import _checks
from normjax.statistics import _core
from normjax.statistics._types import Array, AxisName, Means, Moments, SecondMoments


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
    axes, mask = _checks.resolve_axes(axes, x.ndim), _checks.mask(mask, x.shape)
    return _core.moments(x, axes, mask, axis_name, axis_index_groups, plain_mean=plain_mean)


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
    axes, mask = _checks.resolve_axes(axes, x.ndim), _checks.mask(mask, x.shape)
    return _core.means(x, axes, mask, axis_name, axis_index_groups)


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
    axes, mask = _checks.resolve_axes(axes, x.ndim), _checks.mask(mask, x.shape)
    if x.ndim - 1 in axes:
        raise ValueError(
            f"axes={axes} averages over the last axis of x of shape {x.shape}, whose covariance "
            "is taken: move the features last, jnp.moveaxis(x, features, -1)"
        )
    return _core.second_moments(x, axes, mask, axis_name, axis_index_groups)


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
    axes, mask = _checks.resolve_axes(axes, x.ndim), _checks.mask(mask, x.shape)
    return _core.mean_square(x, axes, mask, axis_name, axis_index_groups)
