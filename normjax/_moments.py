"""The verbs: the only place of the library that averages anything.

Statistics are values with a weight, so they can be merged: over microbatches, over
devices, over a data set, over time. They are never taken as E[x^2] - E[x]^2 of uncentred
data, and never in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Inexact, Num

from normjax import _checks
from normjax.base import Array, AxisName, BatchMeans, Collect, Moments, PyTree, Running


def stat_dtype(dtype: Any) -> jnp.dtype:
    """Dtype in which statistics of `dtype` are taken: at least float32, complex if it is."""
    dtype = jnp.dtype(dtype)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def expand(v: Array, kept: Sequence[int], ndim: int) -> jax.Array:
    """Give a statistic of the axes `kept` the rank of x, so that it broadcasts against it."""
    v = jnp.asarray(v)
    shape = [1] * ndim
    for axis, size in zip(kept, v.shape, strict=True):
        shape[axis] = size
    return v.reshape(shape)


def moments(
    x: Inexact[Array, "*shape"],
    axes: int | Sequence[int] | None,
    *,
    mask: Bool[Array, "..."] | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
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
    kept = [a for a in range(x.ndim) if a not in axes]
    x = x.astype(stat_dtype(x.dtype))
    count = _count(mask, x, axes)
    # Not 1 / count: a reciprocal would round twice, and constants would stop being exact.
    n = jnp.maximum(count, 1)
    if mask is not None:
        x = jnp.where(mask, x, 0)

    # The shift carries no gradient: mean and variance do not depend on it.
    shift = lax.stop_gradient(jnp.sum(x, axes) / n)
    d = x - expand(shift, kept, x.ndim)
    if mask is not None:
        d = jnp.where(mask, d, 0)
    rest = jnp.sum(d, axes) / n
    mean = shift + rest
    var = jnp.maximum(jnp.sum(_abs2(d), axes) / n - _abs2(rest), 0)
    if axis_name is not None:
        mean, var, count = _pool_devices(mean, var, count, axis_name, axis_index_groups)
    return Moments(mean, var, count)


def merge(a: Moments, b: Moments) -> Moments:
    r"""Moments of the union of two disjoint sets, from theirs.

    $$n = n_a + n_b, \quad \mu = \mu_a + \tfrac{n_b}{n}\delta, \quad
      \sigma^2 = \tfrac{n_a}{n}\sigma_a^2 + \tfrac{n_b}{n}\sigma_b^2
      + \tfrac{n_a n_b}{n^2}\,|\delta|^2, \quad \delta = \mu_b - \mu_a$$

    Args:
        a: moments of one set.
        b: moments of the other, same shape.

    Returns:
        `Moments` of both; exact up to rounding, and equal to the other where one is empty.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> x = jnp.array([[1.0], [2.0], [6.0]])
        >>> both = nj.merge(nj.moments(x[:1], 0), nj.moments(x[1:], 0))
        >>> float(both.mean[0]), float(both.count[0])
        (3.0, 3.0)

    Reference:
        Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983.
    """
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1)
    delta = b.mean - a.mean
    return Moments(
        mean=a.mean + share * delta,
        var=a.var + share * (b.var - a.var) + share * (1 - share) * _abs2(delta),
        count=count,
    )


def merge_axis(m: Moments, axis: int = 0) -> Moments:
    """Pool moments that are stacked along `axis` (time steps, groups, devices) into one."""
    count = jnp.sum(m.count, axis)
    share = m.count / jnp.expand_dims(jnp.maximum(count, 1), axis)
    mean = jnp.sum(share * m.mean, axis)
    spread = _abs2(m.mean - jnp.expand_dims(mean, axis))
    return Moments(mean, jnp.sum(share * (m.var + spread), axis), count)


def ema(
    running: Running, m: Moments, *, decay: float | Num[Array, ""], correction: int = 0
) -> Running:
    r"""Exponential running average of statistics, safe against empty and broken batches.

    $$\text{running} \leftarrow d \cdot \text{running} + (1 - d) \cdot m$$

    Args:
        running: the present state.
        m: moments of a new batch, same shape.
        decay: weight of the old value, in [0, 1]; may be traced.
        correction: 0 stores the biased variance (Flax), 1 the unbiased one (paper, PyTorch).

    Returns:
        The next `Running`, of the same dtype; unchanged where `m.count` is 0 or a statistic
        is not finite. Carries no gradient.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> run = nj.Running(jnp.zeros(1), jnp.ones(1))
        >>> run = nj.ema(run, nj.moments(jnp.array([[1.0], [3.0]]), 0), decay=0.5)
        >>> float(run.mean[0]), float(run.var[0])
        (1.0, 1.0)
    """
    m = lax.stop_gradient(m)
    var = unbiased(m) if correction else m.var
    good = (m.count > 0) & jnp.isfinite(m.mean) & jnp.isfinite(var)
    # A half-precision average would stall a few percent away from its target.
    decay = jnp.asarray(decay).astype(running.var.dtype)

    def average(old: Array, new: Array) -> jax.Array:
        old = lax.stop_gradient(jnp.asarray(old))
        return jnp.where(good, decay * old + (1 - decay) * new.astype(old.dtype), old)

    return Running(average(running.mean, m.mean), average(running.var, var))


def unbiased(m: Moments) -> jax.Array:
    """Variance times n / (n - 1); of a single value, which has none, the biased one."""
    return jnp.asarray(m.var * (m.count / jnp.maximum(m.count - 1, 1)))


def normalize(
    x: Inexact[Array, "*shape"],
    m: Moments | Running,
    axes: int | Sequence[int] | None,
    *,
    scale: Num[Array, "..."] | None = None,
    bias: Num[Array, "..."] | None = None,
    eps: float,
    mask: Bool[Array, "..."] | None = None,
) -> Inexact[jax.Array, "*shape"]:
    r"""Centre and scale `x` with given statistics, then the affine.

    $$y = \text{scale} \cdot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \text{bias}$$

    Args:
        x: floating or complex, any shape.
        m: statistics with the shape of x less `axes`.
        axes: the axes that `m` was averaged over; `None` is all but the last.
        scale: broadcastable to `x` by NumPy's rules.
        bias: broadcastable to `x` by NumPy's rules.
        eps: added to the variance, positive.
        mask: True where a value counts. Masked outputs are the bias, never NaN.

    Returns:
        Output of the shape and dtype of `x`; the arithmetic is in at least float32.

    Raises:
        ValueError: the shape of `m` does not fit.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> x = jnp.array([[1.0], [3.0]])
        >>> nj.normalize(x, nj.moments(x, 0), 0, eps=0.0).ravel().tolist()
        [-1.0, 1.0]

    Reference:
        Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
        Internal Covariate Shift", 2015, algorithm 1.
    """
    x = _checks.floating(x, "normalize")
    axes = _checks.resolve_axes(axes, x.ndim)
    kept = [a for a in range(x.ndim) if a not in axes]
    expected = tuple(x.shape[a] for a in kept)
    if jnp.shape(m.mean) != expected:
        raise ValueError(
            f"statistics of shape {jnp.shape(m.mean)} do not fit x of shape {x.shape} averaged "
            f"over axes {axes}, which leaves {expected}: init with the shape of this x"
        )
    dtype = stat_dtype(x.dtype)
    d = x.astype(dtype)
    if mask is not None:
        # Before and after, so that neither value nor gradient ever meets what is under the mask.
        d = jnp.where(mask, d, 0)
    d = d - expand(m.mean, kept, x.ndim).astype(dtype)
    if mask is not None:
        d = jnp.where(mask, d, 0)
    mul = expand(lax.rsqrt(m.var + eps), kept, x.ndim)
    return affine(d, scale, bias, mul=mul).astype(x.dtype)


def affine(
    d: Inexact[Array, "*shape"],
    scale: Num[Array, "..."] | None,
    bias: Num[Array, "..."] | None,
    *,
    mul: Array | None = None,
) -> Inexact[jax.Array, "*shape"]:
    """Return `d * mul * scale + bias`, the small factors first, in the dtype of `d`."""
    real = jnp.finfo(d.dtype).dtype
    if mul is not None:
        mul = jnp.asarray(mul).astype(real)
    if scale is not None:
        scale = _rank(scale, d.ndim)
        scale = scale.astype(d.dtype if jnp.iscomplexobj(scale) else real)
        mul = scale if mul is None else mul * scale
    y = jnp.asarray(d if mul is None else d * mul)
    return y if bias is None else y + _rank(bias, d.ndim).astype(d.dtype)


def observe(
    state: Running | Collect, seen: Moments | None, *, stats: str, decay: Any, correction: int
) -> Running | Collect:
    """Add a batch to a state: an exponential average, or an exact one where it gathers."""
    if seen is None or (stats == "running" and not isinstance(state, Collect)):
        return state
    if isinstance(state, Collect):
        seen = lax.stop_gradient(seen)
        if isinstance(state.seen, Moments):
            return Collect(state.running, merge(state.seen, seen))
        return Collect(state.running, _add_batch(state.seen, seen))
    return ema(state, seen, decay=decay, correction=correction)


def source(state: Running | Collect, seen: Moments | None, stats: str) -> Moments | Running:
    """Statistics that normalize: this batch's, or the kept ones."""
    if stats == "batch":
        assert seen is not None
        return seen
    return state.running if isinstance(state, Collect) else state


def start(features: tuple[int, ...], dtype: Any) -> Running:
    """Return a fresh running state: mean 0 and variance 1, at least float32."""
    dtype = stat_dtype(dtype)
    return Running(jnp.zeros(features, dtype), jnp.ones(features, jnp.finfo(dtype).dtype))


def is_stats(leaf: PyTree) -> bool:
    """Whether a node of a state pytree is one norm's statistics."""
    return isinstance(leaf, Running | Collect)


def _add_batch(total: BatchMeans, m: Moments) -> BatchMeans:
    batches = total.batches + (m.count > 0).astype(total.batches.dtype)
    weight = jnp.where(m.count > 0, 1 / jnp.maximum(batches, 1), 0)

    def mean(old: Array, new: Array) -> Array:
        return old + weight * (new - old)

    return BatchMeans(
        mean(total.mean, m.mean),
        mean(total.var, m.var),
        mean(total.unbiased_var, unbiased(m)),
        batches,
    )


def _count(mask: jax.Array | None, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Values in each set; the mask is summed in its own small shape, in integers."""
    kept_shape = tuple(s for a, s in enumerate(x.shape) if a not in axes)
    dtype = jnp.finfo(x.dtype).dtype
    if mask is None:
        return jnp.full(kept_shape, math.prod(x.shape[a] for a in axes), dtype)
    repeats = math.prod(x.shape[a] for a in axes if mask.shape[a] == 1)
    count = jnp.sum(mask, axes, dtype=jnp.int32).astype(dtype) * repeats
    return jnp.broadcast_to(count, kept_shape)


def _pool_devices(
    mean: jax.Array, var: jax.Array, count: jax.Array, axis_name: AxisName, groups: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    def total(tree: PyTree) -> PyTree:
        return lax.psum(tree, axis_name, axis_index_groups=groups)

    n, weighted = total((count, count * mean))
    pooled = weighted / jnp.maximum(n, 1)
    spread = total(count * (var + _abs2(mean - pooled)))
    return pooled, spread / jnp.maximum(n, 1), n


def _rank(v: Array, ndim: int) -> jax.Array:
    v = jnp.asarray(v)
    return v.reshape((1,) * (ndim - v.ndim) + v.shape)


def _abs2(z: Array) -> jax.Array:
    z = jnp.asarray(z)
    return (z * z.conj()).real if jnp.iscomplexobj(z) else z * z
