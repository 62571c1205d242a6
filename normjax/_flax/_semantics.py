"""Flax's rules for axes, masks and dtypes, spoken in the verbs of `_moments.py`.

The drop-in modules of `normjax.linen` and `normjax.nnx` differ in how they hold variables and
in nothing else: what they compute is here, once. This file imports no Flax.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from normjax.statistics import _measure, _normalize, _running, _shapes
from normjax.statistics._types import Accumulator, Array, AxisName, Moments, Running


def axes_of(ndim: int, axes: int | Iterable[int]) -> tuple[int, ...]:
    """Return axes as Flax resolves them: sorted, non-negative, each once."""
    given = tuple(axes) if isinstance(axes, Iterable) else (axes,)
    for a in given:
        if not -ndim <= a < ndim:
            # At once an IndexError, as from Flax, and a ValueError.
            raise np.exceptions.AxisError(a, ndim)
    return tuple(sorted({ndim + a if a < 0 else a for a in given}))


def others(ndim: int, axes: Sequence[int]) -> tuple[int, ...]:
    """Return the axes that are not among `axes`."""
    return tuple(a for a in range(ndim) if a not in axes)


def static(value: Any) -> Any:
    """Return nested lists as tuples, so that a module that holds them stays hashable."""
    return tuple(static(v) for v in value) if isinstance(value, list | tuple) else value


def promoted(*values: Any) -> jnp.dtype:
    """Common dtype by JAX's standard rules, also where the user set strict ones."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(v for v in values if v is not None))


def result_dtype(*values: Array | None, dtype: Any = None) -> jnp.dtype:
    """Dtype of a layer's output: what it was told, or what its arrays promote to.

    Raises:
        ValueError: `dtype` is not floating or complex.
    """
    if dtype is None:
        dtype = promoted(*values)
        return dtype if jnp.issubdtype(dtype, jnp.inexact) else promoted(dtype, jnp.float32)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(f"dtype={jnp.dtype(dtype)} must be floating or complex")
    return jnp.dtype(dtype)


def mask_of(mask: Array | None, ndim: int) -> jax.Array | None:
    """Return Flax's mask, any array that NumPy broadcasts to x, as ours: boolean, rank of x."""
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    return mask.astype(bool).reshape((1,) * (ndim - mask.ndim) + mask.shape)


def measure(
    x: Array,
    axes: Sequence[int],
    *,
    dtype: Any = None,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Any = None,
    centred: bool = True,
) -> Moments:
    """Statistics of `x` in at least float32 and at least `dtype`; of squares if not `centred`."""
    x = x.astype(promoted(x, dtype, jnp.float32))
    groups = None if axis_name is None else axis_index_groups
    over: dict[str, Any] = {"mask": mask, "axis_name": axis_name, "axis_index_groups": groups}
    if centred:
        return _measure.moments(x, tuple(axes), plain_mean=True, **over)
    return _measure.mean_square(x, tuple(axes), **over)


def follow(
    kept: Running | Accumulator, m: Moments, x: Array, *, momentum: Any, correction: int, dtype: Any
) -> Any:
    """Move the kept statistics, in Flax's dtype: theirs, widened by that of the batch's.

    Flax starts a float32 mean and lets a complex or float64 batch widen it. Statistics that
    gather for now (`population_update`) add the batch and are not averaged.
    """
    if isinstance(kept, Accumulator):
        return _running.accumulate(kept, m, stats="batch", decay=momentum, correction=correction)
    wide = promoted(kept.mean, x.dtype if dtype is None else dtype)
    kept = Running(kept.mean.astype(wide), kept.var.astype(jnp.finfo(wide).dtype))
    return _running.ema(kept, m, decay=momentum, correction=correction)


def apply(
    x: Array,
    m: Moments | Running,
    axes: Sequence[int],
    features: Sequence[int],
    scale: Array | None,
    bias: Array | None,
    *,
    eps: float,
    dtype: Any = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Normalize with given statistics, then the affine over the axes `features`.

    A mask chooses what the statistics are taken over; the output is normalized everywhere, as
    in Flax. Replaced, before any arithmetic, is only what is not finite under the mask and what
    belongs to a set with no value, which has no statistics.
    """
    out = result_dtype(x, scale, bias, dtype=dtype)
    x = x.astype(promoted(x, m.mean, scale, bias, jnp.float32))
    if mask is not None:
        good = jnp.isfinite(x)
        if isinstance(m, Moments):
            good &= _shapes.expand(m.count, others(x.ndim, axes), x.ndim) > 0
        x = jnp.where(mask | good, x, 0)
    shape = [x.shape[a] if a in features else 1 for a in range(x.ndim)]
    scale, bias = (None if v is None else jnp.reshape(v, shape) for v in (scale, bias))
    return jnp.asarray(
        _normalize.normalize(x, m, tuple(axes), scale=scale, bias=bias, eps=eps), out
    )


def one_sample(
    x: Array,
    axes: Sequence[int],
    features: Sequence[int],
    scale: Array | None,
    bias: Array | None,
    *,
    eps: float,
    dtype: Any = None,
    mask: Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Any = None,
    centred: bool = True,
) -> jax.Array:
    """Measure and normalize: layer, instance and RMS norm are this with other axes."""
    found = mask_of(mask, x.ndim)
    m = measure(
        x,
        axes,
        dtype=dtype,
        mask=found,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        centred=centred,
    )
    return apply(x, m, axes, features, scale, bias, eps=eps, dtype=dtype, mask=found)


def instance_axes(ndim: int, feature_axes: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes that instance norm averages over, and the features."""
    features = axes_of(ndim, feature_axes)
    if 0 in features:
        raise ValueError(
            "The channel axes cannot include the leading dimension as this is assumed to be the "
            "batch axis."
        )
    return others(ndim, (0, *features)), features


def group_axes(ndim: int, reduction_axes: Any) -> tuple[int, ...]:
    """Return the axes that group norm averages over, the last among them."""
    chosen = (*range(1, ndim - 1), -1) if reduction_axes is None else reduction_axes
    axes = axes_of(ndim, chosen)
    if axes[-1] != ndim - 1:
        raise ValueError(
            f"reduction_axes={reduction_axes} must include the last axis, which holds the features"
        )
    return axes


def group_count(channels: int, num_groups: int | None, group_size: int | None) -> int:
    """Return the number of groups, given it or the size of each."""
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            "give either num_groups or group_size; with group_size write num_groups=None, whose "
            "default is 32"
        )
    if group_size is not None:
        if group_size <= 0 or channels % group_size:
            raise ValueError(f"group_size={group_size} does not divide {channels} channels")
        return channels // group_size
    assert num_groups is not None
    if num_groups <= 0 or channels % num_groups:
        raise ValueError(f"num_groups={num_groups} does not divide {channels} channels")
    return num_groups


def group_norm(
    x: Array,
    axes: Sequence[int],
    groups: int,
    scale: Array | None,
    bias: Array | None,
    *,
    mask: Array | None = None,
    dtype: Any = None,
    **kwargs: Any,
) -> jax.Array:
    """Group norm is layer norm of x with its last axis split in two."""
    out = result_dtype(x, scale, bias, dtype=dtype)
    split = (groups, x.shape[-1] // groups)
    found = mask_of(mask, x.ndim)
    if found is not None:
        # A mask of one channel stays one; it need not be spelled out for each.
        found = found.reshape(*found.shape[:-1], *(split if found.shape[-1] > 1 else (1, 1)))
    y = one_sample(
        x.reshape(*x.shape[:-1], *split),
        (*axes[:-1], x.ndim),
        (x.ndim - 1, x.ndim),
        scale,
        bias,
        mask=found,
        dtype=dtype,
        **kwargs,
    )
    return jnp.asarray(y.reshape(x.shape), out)


def weight_norm(
    v: Array, g: Array | None, feature_axes: Any, *, eps: float, dtype: Any = None
) -> jax.Array:
    r"""Return g v / ||v||, the norm over all axes but `feature_axes` (`None`: over all)."""
    v = jnp.asarray(v)
    features = axes_of(v.ndim, () if feature_axes is None else feature_axes)
    m = norms(v, feature_axes)
    return apply(v, m, others(v.ndim, features), features, g, None, eps=eps, dtype=dtype)


def norms(v: Array, feature_axes: Any) -> Moments:
    """Squared length of the weights of each feature, where `normalize` looks for the variance."""
    v = jnp.asarray(v)
    features = axes_of(v.ndim, () if feature_axes is None else feature_axes)
    m = measure(v, others(v.ndim, features), centred=False)
    return m._replace(var=m.var * m.count)


def spectral_norm(
    w: Array, u: Array, *, steps: int, eps: float, dtype: Any = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Return (w / sigma, u, sigma) after `steps` of power iteration; u and v carry no gradient.

    $$v = \widehat{u W^\top}, \quad u = \widehat{v W}, \quad \sigma = v W u^\top$$

    Reference:
        Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative Adversarial
        Networks", 2018, algorithm 1.
    """
    w = jnp.asarray(w)
    stored = promoted(u, w)
    out = result_dtype(w, u, dtype=dtype)
    wide = promoted(u, w, jnp.float32)
    u = start = jnp.asarray(u, wide)
    matrix = w.astype(wide).reshape(-1, w.shape[-1])
    frozen = lax.stop_gradient(matrix)
    for _ in range(steps):
        # Rounded products would make sigma, and so every weight, as coarse as they are.
        v = weight_norm(_product(u, frozen.T), None, None, eps=eps)
        u = weight_norm(_product(v, frozen), None, None, eps=eps)
    u, v = lax.stop_gradient((u, v))
    sigma = _product(_product(v, matrix), u.T)[0, 0]
    bar = w.astype(wide) / jnp.where(sigma != 0, sigma, 1)
    # A weight that starts at 0 (a bias of rank 2) gets u = 0 and is left alone from then on, as
    # in Flax: divided by its own small sigma it would jump to 1 at the first step.
    u = jnp.where(jnp.isfinite(sigma), u, start)
    return jnp.asarray(bar, out), u.astype(stored), sigma.astype(stored)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
