"""Measures and normalizes without checking arguments, and chooses the program that does it.

Arguments are checked once, in the public functions (`_moments.py`, `_normalize.py`) and in
`Norm.apply`. The functions here take floating arrays, resolved axes and a boolean mask of the
rank of x, and trust them. This is also the one place that chooses which program computes a norm:
the plain formulas, those for large arrays, or a kernel.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from normjax._internal._checkpoint_names import POOLED, STATISTICS, checkpoint_name
from normjax.kernels import _registry
from normjax.statistics import _formulas, _large, _large_accelerator, _one_exchange
from normjax.statistics._shapes import (
    abs2,
    append_axes,
    as_number,
    as_vectors,
    expand,
    outer,
    scale_by_weight,
    stat_dtype,
)
from normjax.statistics._types import (
    Array,
    AxisName,
    Means,
    Moments,
    PyTree,
    Running,
    SecondMoments,
)

Impl = Literal["xla", "kernel"]
Axes = tuple[int, ...]


def moments(
    x: jax.Array,
    axes: Axes,
    mask: Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Any = None,
    *,
    plain_mean: bool = False,
    impl: Impl = "xla",
    dtype: Any = None,
    at_once: int = 1,
) -> Moments:
    """Return mean, variance and count over `axes`; arguments as for `normjax.moments`.

    `dtype` is a half-precision one from which x was widened, in which it may be read. So many x
    are measured `at_once`, under `vmap`.
    """
    kernel = column_kernel(x, axes, mask) if impl == "kernel" else None
    x = x.astype(stat_dtype(x.dtype))
    count = value_counts(mask, x, axes)
    if kernel is not None:
        mean, var = kernel.moments(x, axes, dtype)
    elif mask is not None:
        x = jnp.where(mask, x, 0)
        n = jnp.maximum(count, 1)
        mean, var = _formulas.mean_and_var(x, mask, n, axes, plain_mean)
    elif isinstance(x.size, int) and x.size >= _large.MIN_SIZE and _large.serves(x):
        mean, var = _large.mean_and_var(x, axes, plain_mean, dtype)
    elif not plain_mean and _one_exchange.serves(x, axes):
        mean, var = _one_exchange.mean_and_var(x)
    else:
        mean, var = _formulas.mean_and_var(x, None, None, axes, plain_mean)
    if axis_name is None:
        return Moments(mean, var, count)
    return pool(Moments(mean, var, count), axis_name, axis_index_groups, at_once)


def means(
    x: jax.Array,
    axes: Axes,
    mask: Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Any = None,
) -> Means:
    """Return mean and count over `axes`."""
    x = x.astype(stat_dtype(x.dtype))
    count = value_counts(mask, x, axes)
    mean, _ = _centred(x, axes, mask, jnp.maximum(count, 1))
    if axis_name is not None:
        count, total = _sum_over_devices(
            (count, scale_by_weight(count, mean)), axis_name, axis_index_groups
        )
        mean = total / jnp.maximum(count, 1).astype(total.dtype)
    return Means(mean, count)


def mean_square(
    x: jax.Array,
    axes: Axes,
    mask: Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Any = None,
) -> Moments:
    """Return the mean square over `axes`, as moments around 0."""
    x = x.astype(stat_dtype(x.dtype))
    count = value_counts(mask, x, axes)
    if mask is not None:
        x = jnp.where(mask, x, 0)
    total = checkpoint_name(jnp.sum(abs2(x), axes), STATISTICS)
    if axis_name is not None:
        count, total = _sum_over_devices((count, total), axis_name, axis_index_groups)
    square = _formulas.overflow_to_nan(total / jnp.maximum(count, 1))
    return Moments(jnp.zeros(count.shape, x.dtype), square, count)


def second_moments(
    x: jax.Array,
    axes: Axes,
    mask: Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Any = None,
) -> SecondMoments:
    """Return mean, covariance and count of the vectors on the last axis."""
    x = x.astype(stat_dtype(x.dtype))
    if mask is not None:
        mask = jnp.all(mask, -1, keepdims=True)  # a vector counts if all of its values do
    count = value_counts(mask, x, axes)[..., 0]
    n = jnp.maximum(count, 1)
    mean, d = _centred(x, axes, mask, n[..., None])
    vectors, _ = as_vectors(d, axes)  # [*sets, vectors, features]
    cov = _gram(vectors) / append_axes(n, mean.ndim + 1).astype(x.dtype)
    if axis_name is None:
        return SecondMoments(mean, cov, count)
    # Over devices i: C = sum n_i (C_i + d_i d_i^*) / n, where d_i = mean_i - pooled mean.
    whole, weighted = _sum_over_devices(
        (count, scale_by_weight(count, mean)), axis_name, axis_index_groups
    )
    n = jnp.maximum(whole, 1)
    pooled = weighted / append_axes(n, mean.ndim).astype(x.dtype)
    spread = _sum_over_devices(
        scale_by_weight(count, cov + outer(mean - pooled)), axis_name, axis_index_groups
    )
    return SecondMoments(pooled, spread / append_axes(n, cov.ndim).astype(x.dtype), whole)


def window_square(x: jax.Array, size: int, mask: Array | None = None) -> jax.Array:
    """Return the sum of |x|^2 over a window of `size` values on the last axis.

    Position i sums from i - size // 2 to i + (size - 1) // 2. Values beyond the edge and masked
    values count as 0. A difference of two cumulative sums would lose the small values.
    """
    x = x.astype(stat_dtype(x.dtype))
    if mask is not None:
        x = jnp.where(mask, x, 0)
    square = abs2(x)
    window = (1,) * (x.ndim - 1) + (size,)
    edges = ((0, 0),) * (x.ndim - 1) + ((size // 2, (size - 1) // 2),)
    zero = np.zeros((), square.dtype)
    return lax.reduce_window(square, zero, lax.add, window, (1,) * x.ndim, edges)


def normalize(
    x: jax.Array,
    m: Moments | Running,
    axes: Axes,
    scale: Array | None,
    bias: Array | None,
    eps: float,
    mask: Array | None = None,
    *,
    impl: Impl = "xla",
    dtype: Any = None,
    centred: bool | None = None,
) -> jax.Array:
    """Centre and scale with the statistics `m`, then apply an affine of the rank of x.

    `dtype` as in `moments`; the output has the dtype of x all the same. `centred` is given if `m`
    was measured of this same x, around its mean or around 0: a GPU may do that again.
    """
    kernel = column_kernel(x, axes, mask) if impl == "kernel" else None
    if kernel is not None and is_one_affine(x, axes, scale, bias):
        inverse = _formulas.rsqrt(jnp.asarray(m.var) + eps)
        affine = (None if v is None else v.ravel().astype(jnp.float32) for v in (scale, bias))
        return kernel.standardize(x, axes, jnp.asarray(m.mean), inverse, *affine, dtype)
    wide = x.astype(stat_dtype(x.dtype))
    # Statistics of the remaining axes broadcast against x: size 1 on the averaged ones.
    features = tuple(size for a, size in enumerate(x.shape) if a not in axes)
    if not jnp.shape(m.mean) == jnp.shape(m.var) == features:
        # Checked here, where they are reshaped: a variance of another shape would be scrambled.
        raise ValueError(
            f"statistics of shapes {jnp.shape(m.mean)} and {jnp.shape(m.var)} do not fit x of "
            f"shape {x.shape} averaged over axes {axes}, which leaves {features}: init with the "
            "shape of this x"
        )
    shape = [1 if a in axes else size for a, size in enumerate(x.shape)]
    real = jnp.finfo(wide.dtype).dtype
    mean = jnp.asarray(m.mean).reshape(shape).astype(wide.dtype)
    inverse = _formulas.rsqrt(jnp.asarray(m.var) + eps).reshape(shape).astype(real)
    if scale is not None:
        scale = jnp.asarray(scale)
        scale = scale.astype(wide.dtype if jnp.iscomplexobj(scale) else real)
    bias = None if bias is None else jnp.asarray(bias).astype(wide.dtype)
    if isinstance(x.size, int) and x.size >= _large.MIN_SIZE and _large.serves(wide, mask):
        arguments = (wide, mean, inverse, scale, bias)
        if centred is not None and _large_accelerator.serves_rows(wide, axes):
            y = _large.normalize_rows(*arguments, eps, centred)
        else:
            y = _large.standardize(*arguments)
        return y.astype(x.dtype)
    return _formulas.standardize(wide, mean, inverse, scale, bias, mask).astype(x.dtype)


def normalize_rows(
    x: jax.Array,
    axes: Axes,
    scale: Array | None,
    bias: Array | None,
    eps: float,
    mask: Array | None,
    *,
    centred: bool,
    dtype: Any = None,
) -> jax.Array | None:
    """Run layer norm (`centred`) or RMS norm by a kernel; `None` if the kernel cannot be used.

    The kernel measures and normalizes a row at once, in on-chip memory.
    """
    rows = _registry.load("rows")
    features = x.shape[min(axes) :]
    same = all(v is None or v.shape == (1,) * min(axes) + features for v in (scale, bias))
    if not same or not rows.supports(x, axes, mask):
        return None
    gain, shift = (
        None if v is None else jnp.asarray(v).reshape(features).astype(jnp.float32)
        for v in (scale, bias)
    )
    narrow = x if dtype is None else x.astype(dtype)  # XLA drops this round trip
    y: jax.Array = rows.row_norm(narrow, gain, shift, axes, eps, centred=centred)
    return y.astype(x.dtype)


def pool(
    m: Moments, axis_name: AxisName, axis_index_groups: Any = None, at_once: int = 1
) -> Moments:
    """Pool moments over devices, weighted by their counts; so many `at_once`, under `vmap`."""
    if axis_name is None:
        return m
    if axis_index_groups is None and _one_exchange.is_small(m, axis_name, at_once):
        return _one_exchange.pool(m, axis_name)
    mean, var, count = m
    # Two all-reduces, so that the spread is taken around the pooled mean and loses no digits.
    n, weighted = _sum_over_devices(
        (count, scale_by_weight(count, mean)), axis_name, axis_index_groups
    )
    pooled = weighted / jnp.maximum(n, 1).astype(mean.dtype)
    spread = _sum_over_devices(count * (var + abs2(mean - pooled)), axis_name, axis_index_groups)
    return Moments(pooled, spread / jnp.maximum(n, 1), n)


def _sum_over_devices(tree: PyTree, axis_name: AxisName, axis_index_groups: Any) -> PyTree:
    total = lax.psum(tree, axis_name, axis_index_groups=axis_index_groups)
    return checkpoint_name(total, POOLED)


def value_counts(mask: Array | None, x: jax.Array, axes: Axes) -> Array:
    """Count the values in each set; the mask is summed in integers, before it is broadcast.

    Without a mask the count is known while tracing, and returned as a NumPy array then: a constant,
    which `psum` multiplies instead of exchanging, and which a scan need not write once a step. A
    symbolic shape's is known when the program is called.
    """
    shape = tuple(size for a, size in enumerate(x.shape) if a not in axes)
    dtype = jnp.finfo(x.dtype).dtype
    if mask is None:
        number = math.prod(x.shape[a] for a in axes)
        if not isinstance(number, int) or not isinstance(x.size, int):
            return jnp.broadcast_to(as_number(number, dtype), shape)
        count = np.full(shape, number, dtype)
        return count if isinstance(x, jax.core.Tracer) else jnp.asarray(count)
    # One masked position of size 1 on an averaged axis counts for all of x along that axis.
    repeats = math.prod(x.shape[a] for a in axes if mask.shape[a] == 1)
    real = jnp.sum(mask, axes, dtype=jnp.int32).astype(dtype)
    real *= repeats if isinstance(repeats, int) else as_number(repeats, dtype)
    return jnp.broadcast_to(real, shape)


def column_kernel(x: jax.Array, axes: Axes, mask: Array | None) -> Any:
    """Return the kernels of batch, group and instance norm, or `None` if they cannot be used."""
    columns = _registry.load("columns")
    return columns if columns.supports(x, axes, mask) else None


def is_one_affine(x: jax.Array, axes: Axes, scale: Array | None, bias: Array | None) -> bool:
    """Whether scale and bias, of the rank of x, span exactly the axes after `axes`."""
    end = max(axes) + 1
    shape = (1,) * end + x.shape[end:]
    return all(v is None or v.shape == shape for v in (scale, bias))


def _centred(
    x: jax.Array, axes: Axes, mask: Array | None, n: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the mean of `x` over `axes` (`n` values per set) and the centred x, 0 if masked."""
    remaining = [a for a in range(x.ndim) if a not in axes]
    n = n.astype(x.dtype)
    if mask is not None:
        x = jnp.where(mask, x, 0)
    # The shift carries no gradient: neither mean nor spread depends on it.
    shift = checkpoint_name(lax.stop_gradient(jnp.sum(x, axes) / n), STATISTICS)
    d = x - expand(shift, remaining, x.ndim)
    if mask is not None:
        d = jnp.where(mask, d, 0)
    rest = checkpoint_name(jnp.sum(d, axes) / n, STATISTICS)
    d = d - expand(rest, remaining, x.ndim)
    return shift + rest, d if mask is None else jnp.where(mask, d, 0)


def _gram(d: jax.Array) -> jax.Array:
    """Return the sum of d d^* over rows, in full precision: accelerators round by default."""
    *sets, rows, features = jax.typeof(d).sharding.spec
    # On explicit axes of a mesh, a sum over split rows has to say how its result is split.
    out = None if rows is None else PartitionSpec(*sets, features, None)
    return jnp.einsum(
        "...ni,...nj->...ij", d, d.conj(), precision=lax.Precision.HIGHEST, out_sharding=out
    )
