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

from normjax._internal._by_platform import by_platform
from normjax._internal._manual_axes import varying
from normjax.statistics import _formulas
from normjax.statistics._large_accelerator import PART

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
