"""Flax's rules for axes, masks and dtypes, over the library's numerical core.

The drop-in modules of `normjax.linen` and `normjax.nnx` differ in how they hold variables and
in nothing else: what they compute is here, once. This file imports no Flax.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax._internal import _checks, _single
from normjax.statistics import _core, _running, _shapes
from normjax.statistics._types import Accumulator, Array, AxisName, Moments, Running

Axes = tuple[int, ...]

# Axes.


def axes_of(ndim: int, axes: int | Iterable[int]) -> Axes:
    """Return axes as Flax resolves them: sorted, non-negative, each once."""
    axes = tuple(axes) if isinstance(axes, Iterable) else (axes,)
    for a in axes:
        if not -ndim <= a < ndim:
            # At once an IndexError, as from Flax, and a ValueError.
            raise np.exceptions.AxisError(a, ndim)
    return tuple(sorted({ndim + a if a < 0 else a for a in axes}))


def complement(ndim: int, axes: Sequence[int]) -> Axes:
    """Return the axes that are not among `axes`."""
    return tuple(a for a in range(ndim) if a not in axes)


def instance_axes(ndim: int, feature_axes: Any) -> tuple[Axes, Axes]:
    """Return the axes that instance norm averages over, and the features."""
    features = axes_of(ndim, feature_axes)
    if 0 in features:
        raise ValueError(
            "The channel axes cannot include the leading dimension as this is assumed to be the "
            "batch axis."
        )
    return complement(ndim, (0, *features)), features


def group_axes(ndim: int, reduction_axes: Any) -> Axes:
    """Return the axes that group norm averages over, the last among them."""
    axes = axes_of(ndim, (*range(1, ndim - 1), -1) if reduction_axes is None else reduction_axes)
    if axes[-1] != ndim - 1:
        raise ValueError(
            f"reduction_axes={reduction_axes} must include the last axis, which holds the features"
        )
    return axes


def group_count(channels: int, num_groups: int | None, group_size: int | None) -> int:
    """Return the number of groups from it or from the size of each."""
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


def hashable(value: Any) -> Any:
    """Return nested lists as tuples, so that a module that holds them stays hashable."""
    return tuple(hashable(v) for v in value) if isinstance(value, list | tuple) else value


# Masks and dtypes.


def mask_of(mask: Array | None, shape: tuple[int, ...]) -> jax.Array | None:
    """Return Flax's mask, any array that NumPy broadcasts to x, as ours: boolean, rank of x."""
    if mask is None:
        return None
    mask = jnp.asarray(mask).astype(bool)
    return _checks.mask(mask.reshape((1,) * (len(shape) - mask.ndim) + mask.shape), shape)


def promote(*values: Any) -> jnp.dtype:
    """Common dtype by JAX's standard rules, also where the user set strict ones."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(v for v in values if v is not None))


class Dtypes(NamedTuple):
    """Dtypes of a layer.

    Attributes:
        measured: of x as statistics are taken, at least float32 and at least the layer's dtype.
        computed: of x as it is normalized, at least float32.
        output: the layer's dtype, or what x, scale and bias promote to.
        stored: of a running mean: a complex or float64 batch widens a float32 one.
    """

    measured: jnp.dtype
    computed: jnp.dtype
    output: jnp.dtype
    stored: jnp.dtype | None = None


def layer_dtypes(
    x: jax.Array,
    scale: Array | None,
    bias: Array | None,
    dtype: Any,
    *,
    mean: Array | None = None,
    running: bool = False,
) -> Dtypes:
    """Return the dtypes of a layer by Flax's rules.

    Args:
        x: input.
        scale: gamma.
        bias: beta.
        dtype: the layer's attribute.
        mean: running mean, of a layer that has one.
        running: whether the running statistics normalize.

    Raises:
        ValueError: `dtype` is not floating or complex.
    """
    if not (dtype is None or jnp.issubdtype(dtype, jnp.inexact)):
        raise ValueError(f"dtype={jnp.dtype(dtype)} must be floating or complex")
    arrays = [v for v in (x, scale, bias) if v is not None]
    with jax.numpy_dtype_promotion("standard"):
        output = jnp.result_type(*arrays) if dtype is None else jnp.dtype(dtype)
        if not jnp.issubdtype(output, jnp.inexact):
            output = jnp.result_type(output, jnp.float32)
        own = x.dtype if dtype is None else dtype
        measured = jnp.result_type(x, own, jnp.float32)
        computed = jnp.result_type(*arrays, jnp.float32, mean if running else measured)
        stored = None if mean is None else jnp.result_type(mean, own)
    return Dtypes(measured, computed, output, stored)


# What layers compute.


def batch_norm(
    x: jax.Array,
    state: Running | Accumulator,
    features: Axes,
    scale: Array | None,
    bias: Array | None,
    *,
    running: bool,
    eps: float,
    momentum: Any,
    correction: int,
    dtype: Any,
    mask: jax.Array | None,
    axis_name: AxisName,
    axis_index_groups: Any,
    allow_single: bool,
) -> tuple[jax.Array, Running | Accumulator]:
    """Normalize with this batch's statistics, or the running ones, and return the next state.

    The state of `population_update`, an `Accumulator`, adds the batch in both modes.
    """
    m: Any = state.running if isinstance(state, Accumulator) else state
    m = Running(jnp.asarray(m.mean), jnp.asarray(m.var))  # a checkpoint holds NumPy arrays
    axes = tuple(a for a in range(x.ndim) if a not in features)
    shape = tuple(x.shape[a] for a in features)
    if m.mean.shape != shape:
        _checks.same_features(m, shape, "BatchNorm")
    dtypes = layer_dtypes(x, scale, bias, dtype, mean=m.mean, running=running)
    if isinstance(state, Accumulator) or not running:
        groups = None if axis_name is None else axis_index_groups
        wide = x.astype(dtypes.measured)
        measured = _core.moments(
            wide, axes, mask, axis_name, groups, plain_mean=True, dtype=x.dtype
        )
        if not (running or allow_single):
            _single.check("BatchNorm", x.shape, measured, mask, axis_name, groups)
        if isinstance(state, Accumulator):
            state = _running.accumulate(
                state, measured, stats="batch", decay=momentum, correction=correction
            )
        else:
            real = jnp.finfo(dtypes.stored).dtype
            m = Running(m.mean.astype(dtypes.stored), m.var.astype(real))
            state = _running.ema(m, measured, decay=momentum, correction=correction)
        # The same wide x is normalized, so that its gradient is rounded once; see `widen_half`.
        m, x = (m, x) if running else (measured, wide)
    return normalize(x, m, axes, features, scale, bias, eps, dtypes, mask), state


def sample_norm(
    x: jax.Array,
    axes: Axes,
    features: Axes,
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
    mask = mask_of(mask, x.shape)
    dtypes = layer_dtypes(x, scale, bias, dtype)
    groups = None if axis_name is None else axis_index_groups
    wide = x.astype(dtypes.measured)
    if centred:
        m = _core.moments(wide, axes, mask, axis_name, groups, plain_mean=True, dtype=x.dtype)
    else:
        m = _core.mean_square(wide, axes, mask, axis_name, groups)
    return normalize(wide, m, axes, features, scale, bias, eps, dtypes, mask)


def group_norm(
    x: jax.Array,
    axes: Axes,
    groups: int,
    scale: Array | None,
    bias: Array | None,
    *,
    mask: Array | None = None,
    **options: Any,
) -> jax.Array:
    """Group norm is layer norm of x with its last axis split in two."""
    split = (groups, x.shape[-1] // groups)
    mask = mask_of(mask, x.shape)
    if mask is not None:
        # A mask of one channel stays one; it need not be repeated for each.
        mask = mask.reshape(*mask.shape[:-1], *(split if mask.shape[-1] > 1 else (1, 1)))
    y = sample_norm(
        x.reshape(*x.shape[:-1], *split),  # [..., groups, channels of a group]
        (*axes[:-1], x.ndim),
        (x.ndim - 1, x.ndim),
        scale,
        bias,
        mask=mask,
        **options,
    )
    return y.reshape(x.shape)


def normalize(
    x: jax.Array,
    m: Moments | Running,
    axes: Axes,
    features: Axes,
    scale: Array | None,
    bias: Array | None,
    eps: float,
    dtypes: Dtypes,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Normalize with given statistics, then the affine over the axes `features`.

    A mask chooses what the statistics are taken over; the output is normalized everywhere, as
    in Flax. Replaced, before any arithmetic, is only what is not finite under the mask and what
    belongs to a set with no value, which has no statistics.
    """
    if not (isinstance(eps, float) and 0 <= eps < math.inf):
        _checks.positive("epsilon", eps, zero=True)
    x = x.astype(dtypes.computed)
    if mask is not None:
        usable = jnp.isfinite(x)
        if isinstance(m, Moments):
            usable &= _shapes.expand(m.count, complement(x.ndim, axes), x.ndim) > 0
        x = jnp.where(mask | usable, x, 0)
    # Scale and bias get the rank of x: size 1 on the axes that are no features.
    shape = [x.shape[a] if a in features else 1 for a in range(x.ndim)]
    scale, bias = (None if v is None else jnp.reshape(v, shape) for v in (scale, bias))
    return _core.normalize(x, m, axes, scale, bias, eps).astype(dtypes.output)
