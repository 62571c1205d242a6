"""Refuses batch statistics of a single value: their variance is 0, and the output is the bias.

A norm in training would then pass on nothing of x, and pull its running variance to 0, without a
word. Shapes tell this while a program is traced, so the check costs a compiled program nothing. A
mask that is traced has no values yet, and is not checked.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import lax

_allowed = contextvars.ContextVar("single_values", default=False)


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Let single values pass, as while a module is initialized with a batch of one."""
    token = _allowed.set(True)
    try:
        yield
    finally:
        _allowed.reset(token)


def refuse(norm: Any, shape: tuple[int, ...], m: Any, call: Any, of: str = "") -> None:
    """Raise as `check` if a norm in training measured single values that it does not allow."""
    if call.stats == "batch" and not getattr(norm, "allow_single", True):
        groups = getattr(norm, "axis_index_groups", None)
        check(norm.factory, shape, m, call.mask, call.axis_name, groups, of)


def check(
    who: str,
    shape: tuple[int, ...],
    m: Any,
    mask: Any,
    axis_name: Any,
    groups: Any = None,
    of: str = "",
) -> None:
    """Raise if statistics of one set of values are those of a single value.

    Args:
        who: name of the norm.
        shape: shape of x.
        m: measurement, of mean and count.
        mask: True where a value counts, or `None`.
        axis_name: device axis that is pooled over.
        groups: groups of devices that are pooled separately.
        of: whose statistics these are, such as " of each time step".

    Raises:
        ValueError: a set has one value by its shape, or one is left by a mask that is known.
    """
    if _allowed.get():
        return
    write = (
        f'write stats="running" to normalize with the running statistics, give it a larger batch, '
        f"or write {who}(allow_single=True) where a single value is meant"
    )
    m = getattr(m, "whole", m)  # a norm may measure parts of the batch as well
    if m.mean.size and m.mean.size == math.prod(shape):
        devices = _devices(axis_name, groups)
        if devices > 1:
            return
        where = (
            "; inside shard_map, pmap or vmap, axis_name= counts the values of all devices"
            if axis_name is None
            else f", and the axis {axis_name!r} pools {devices} device"
        )
        raise ValueError(
            f"{who}{of} takes each statistic of x of shape {shape} over one value{where}. Its "
            "variance is 0, so that the output is the bias and the running variance is pulled to "
            f"0: {write}"
        )
    if mask is None or isinstance(mask, jax.core.Tracer) or isinstance(m.count, jax.core.Tracer):
        return
    if single := int(np.count_nonzero(np.asarray(m.count) == 1)):
        raise ValueError(
            f"{who}{of}: the mask leaves one value of x of shape {shape} for {single} of "
            f"{np.size(m.count)} statistics. Their variance is 0, so that the output is the bias "
            f"and the running variance is pulled to 0: {write}"
        )


def _devices(axis_name: Any, groups: Any) -> int:
    """Return the number of devices that are pooled, the fewest of all groups."""
    if axis_name is None:
        return 1
    return min(map(len, groups)) if groups else int(lax.axis_size(axis_name))
