"""Shared by EvoNorm B0 and switchable norm: running statistics of each channel."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks
from normjax.base import Hyper, Stats
from normjax.norms._affine import check_affine
from normjax.norms._per_sample import PerSampleNorm, spatial_axes
from normjax.statistics import _measure, _running
from normjax.statistics._types import Accumulator, Array, AxisName, Moments, Running


@dataclasses.dataclass(frozen=True, repr=False)
class ChannelStatsNorm(PerSampleNorm):
    """What B0 and switchable norm share: running batch statistics of each channel."""

    stateful: ClassVar[bool] = True
    hyper_names: ClassVar[tuple[str, ...]] = ("decay",)

    axes: tuple[int, ...] | None = None
    decay: float = 0.9
    correction: int = 0

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of space."""
        return spatial_axes(self.axes, ndim, self.factory, empty=False)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the last axis."""
        return (ndim - 1,)

    def moments(
        self, params: Any, x: Array, *, mask: Array | None = None, axis_name: AxisName = None
    ) -> Moments:
        """Measure each channel over batch and space, over all devices of `axis_name`."""
        del params
        return _measure.moments(x, None, mask=mask, axis_name=axis_name)

    def update(
        self,
        state: Running | Accumulator,
        measured: Moments | None,
        *,
        stats: Stats,
        hyper: Hyper = None,
    ) -> Running | Accumulator:
        """Move the running average; never toward an empty or non-finite batch."""
        decay = (hyper or {}).get("decay", self.decay)
        return _running.accumulate(
            state, measured, stats=stats, decay=decay, correction=self.correction
        )


def channel_stats(
    axes: Any, eps: float, decay: float, correction: int, scale_init: float, bias_init: float
) -> dict[str, Any]:
    """Check the arguments that B0 and switchable norm share."""
    check_affine(eps, scale_init, bias_init)
    _checks.unit_interval("decay", decay, hint=": it is the weight of the old value")
    _checks.one_of("correction", correction, (0, 1))
    return {
        "axes": _checks.axes(axes),
        "eps": eps,
        "decay": decay,
        "correction": correction,
        "scale_init": scale_init,
        "bias_init": bias_init,
    }


def require_real(x: Array, who: str) -> jax.Array:
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x):
        raise TypeError(
            f"{who} has a nonlinearity of real numbers and got {x.dtype}: write x.real and x.imag "
            "as two channels"
        )
    return x
