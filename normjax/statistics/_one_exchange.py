"""Measures the columns of a matrix whose rows may lie on several devices, in one exchange.

Under `jit` a compiler splits a program over devices, and each sum over rows becomes an all-reduce.
Two passes, the second around the mean that the first one found, are two of them, one after the
other, in each step of a recurrent layer. Here rows are measured in groups, whose passes stay on a
device, and all groups' means and variances travel together. Small groups lose nothing to
cancellation; one of 32 rows or more is read once, around the mean of a part, with the error that
`_large_accelerator.mean_and_var` has.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from normjax._internal._by_platform import by_platform
from normjax._internal._checkpoint_names import POOLED, checkpoint_name
from normjax._internal._manual_axes import varying
from normjax.statistics import _formulas, _merge
from normjax.statistics._large_accelerator import PART
from normjax.statistics._types import AxisName, Moments

# Rows are split evenly over up to so many devices. Each group's statistics are sent.
MAX_GROUPS = 64


def serves(x: jax.Array, axes: tuple[int, ...]) -> bool:
    """Whether to use `mean_and_var` for the rows of `x`: a matrix that a compiler may split."""
    if x.ndim != 2 or axes != (0,) or not all(isinstance(size, int) for size in x.shape):
        return False
    # Rows that are split already, by `shard_map` or on explicit axes, have exchanges of their own.
    split = varying(x) or any(names is not None for names in jax.typeof(x).sharding.spec)
    return not split and math.gcd(x.shape[0], MAX_GROUPS) > 1


@jax.custom_jvp
def mean_and_var(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance of each column, as `_formulas.mean_and_var`."""
    mean, var = by_platform(_two_passes, (("tpu", by_groups),), x)
    return mean, var


@mean_and_var.defjvp
def _mean_and_var_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Differentiate as `_formulas.mean_and_var`; both sums are one exchange."""
    mean, var = _formulas.named(*mean_and_var(*primals))
    return (mean, var), _formulas.mean_and_var_tangent(*primals, mean, *tangents, None, None, (0,))


def _two_passes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _formulas.mean_and_var(x, None, None, (0,), False)


def by_groups(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance of each column of `x` from those of groups of rows."""
    rows, columns = x.shape
    groups = math.gcd(rows, MAX_GROUPS)
    parts = x.reshape(groups, -1, columns)
    # A mean and what it lacks, [groups, columns] each: a mean far from 0 is rounded by more than
    # the groups' means may differ by.
    first_rows = parts[:, : -(-parts.shape[1] // PART)] if parts.shape[1] >= PART else parts
    shift = _formulas.mean_over(first_rows, (1,), None)
    rest, var = _formulas.moments_about(parts, shift, None, None, (1,))
    own = jnp.stack([shift, rest, var], axis=1)
    # [groups, 3, columns], whole on every device: group i in row i of a sum of mostly zeros.
    at = np.eye(groups, dtype=bool)[:, :, None, None]
    whole = jnp.sum(jnp.where(at, own[:, None], 0), axis=0)
    shift, rest, var = jnp.moveaxis(whole, 1, 0)
    # Groups are of one size: the variance is the mean of theirs, and that of their means.
    first = _formulas.mean_over(shift, (0,), None)
    offsets = (shift - first[None]) + rest
    rest, between = _formulas.moments_about(offsets, jnp.zeros_like(first), None, None, (0,))
    return first + rest, _formulas.mean_over(var, (0,), None) + between


# ------------------------------------------------------------- rows that are on devices of an axis

# Values that are sent for all devices: a megabyte of float32, 20 us at 100 GB/s. More would take
# longer than to start a second exchange.
MAX_VALUES = 2**18


def is_small(m: Moments, axis_name: AxisName, at_once: int) -> bool:
    """Whether so many moments of all devices may travel to each of them."""
    values = m.mean.size * at_once
    if not isinstance(values, int) or jnp.iscomplexobj(m.mean):
        return False
    return lax.axis_size(axis_name) * 2 * values <= MAX_VALUES


def pool(m: Moments, axis_name: AxisName) -> Moments:
    """Pool moments over devices, weighted by their counts, in one exchange.

    Each device has the moments of all, `[devices, fields, ...]`: its own in its row of a sum of
    mostly zeros, whose type says that it is the same on every device, as that of a gather does not.
    """
    devices = lax.axis_size(axis_name)
    known = isinstance(m.count, np.ndarray)  # one number for all: there is no mask
    own = jnp.stack([m.mean, m.var, *([] if known else [m.count])])
    row = lax.broadcasted_iota(jnp.int32, (devices,) + (1,) * own.ndim, 0)
    whole = lax.psum(jnp.where(row == lax.axis_index(axis_name), own[None], 0), axis_name)
    whole = checkpoint_name(whole, POOLED)
    if not known:
        return _merge.merge_axis(Moments(*jnp.moveaxis(whole, 1, 0)))
    counts = np.broadcast_to(m.count, (devices, *m.count.shape))
    merged = _merge.merge_axis(Moments(whole[:, 0], whole[:, 1], counts))
    return Moments(merged.mean, merged.var, devices * m.count)
