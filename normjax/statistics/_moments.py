"""Measures statistics of an array: `moments`, `means`, `second_moments`, `mean_square`.

Statistics carry their weight, so they can be merged: over microbatches, over devices, over a
data set, over time. They are never computed as E[x^2] - E[x]^2 of uncentred data
(`_large_cpu.ONE_PASS_LIMIT` and `_large_accelerator.mean_and_var` say what counts as centred), and
never in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Inexact

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
    r"""Return mean, variance and count of `x` over `axes`, numerically stable.

    $$\mu = \tfrac1n \sum x, \qquad \sigma^2 = \tfrac1n \sum |x - \mu|^2$$

    The variance is taken around a first estimate of the mean and corrected by a second pass (the
    corrected two-pass algorithm), so neither a large mean nor a long sum costs it digits. Masked
    values are replaced before any arithmetic. Devices are pooled by their counts: the result is
    the mean of all values, not the mean of the devices' means.

    Args:
        x: floating or complex, any shape.
        axes: axes averaged over; `None` is all but the last.
        mask: True where a value counts; rank of `x`, broadcastable to it.
        axis_name: device axis or axes to pool over as well.
        axis_index_groups: groups of device indices that are pooled separately.
        plain_mean: skip the correction of the mean where it is within two roundings of the mean
            and far below the spread, so that it equals `jnp.mean` to the bit, as Flax's does. A
            large array on an accelerator is measured in one pass, and may differ by a rounding.

    Returns:
        `Moments` of the shape of the axes that remain, in at least float32. A set without
        values has mean 0, variance 0 and count 0.

    Raises:
        TypeError: `x` is not floating or complex, `mask` is not boolean.
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
    r"""Return mean and count of `x` over `axes`: `moments` without the variance and its cost.

    $$\mu = \tfrac1n \sum x$$

    Args:
        x: floating or complex, any shape.
        axes: axes averaged over; `None` is all but the last.
        mask: True where a value counts; rank of `x`, broadcastable to it.
        axis_name: device axis or axes to pool over as well.
        axis_index_groups: groups of device indices that are pooled separately.

    Returns:
        `Means` of the shape of the axes that remain, in at least float32. A set without values
        has mean 0 and count 0.

    Raises:
        TypeError: `x` is not floating or complex, `mask` is not boolean.
        ValueError: axes or mask do not fit `x`.
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
    r"""Return mean, covariance and count of the vectors on the last axis of `x`.

    $$\mu = \tfrac1n \sum x, \qquad \Sigma = \tfrac1n \sum (x - \mu)(x - \mu)^*$$

    It takes two passes with correction, as in `moments`, and multiplies in full precision even on
    hardware that rounds products by default. A vector counts if all of its values do.

    Args:
        x: floating or complex, features last.
        axes: axes averaged over, not the last; `None` is all but the last. Each position of the
            remaining axes has its own covariance.
        mask: True where a value counts; rank of `x`, broadcastable to it.
        axis_name: device axis or axes to pool over as well.
        axis_index_groups: groups of device indices that are pooled separately.

    Returns:
        `SecondMoments`, in at least float32; all 0 for a set without vectors.

    Raises:
        TypeError: `x` is not floating or complex, `mask` is not boolean.
        ValueError: axes or mask do not fit `x`, or `axes` include the last axis.

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
    r"""Return the mean square of `x` over `axes`, as moments around 0 for use in `normalize`.

    $$\mu := 0, \qquad \sigma^2 := \tfrac1n \sum |x|^2$$

    The mean square is smooth at x = 0 and its root is not, so `normalize` takes the root after
    eps is added.

    Args:
        x: floating or complex, any shape.
        axes: axes averaged over; with `()` each value is a set of its own.
        mask: True where a value counts; rank of `x`, broadcastable to it.
        axis_name: device axis or axes to pool over as well.
        axis_index_groups: groups of device indices that are pooled separately.

    Returns:
        `Moments` of mean 0, in at least float32; a set without values has count 0.

    Raises:
        TypeError: `x` is not floating or complex, `mask` is not boolean.
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
