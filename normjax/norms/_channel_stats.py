"""Base class of EvoNorm B0 and switchable norm: running statistics of each channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks
from normjax.base import Affine, Call, Norm
from normjax.norms._affine import check_affine, check_running, initial_affine
from normjax.norms._per_sample import spatial_axes
from normjax.statistics import _core, _running
from normjax.statistics._types import Accumulator, Debias, Moments, Running


@dataclasses.dataclass(frozen=True, repr=False)
class ChannelStatsNorm(Norm):
    """A norm that uses running batch statistics of each channel together with a sample's own."""

    stateful: ClassVar[bool] = True
    hyper_names: ClassVar[tuple[str, ...]] = ("decay",)

    axes: int | Sequence[int] | None = None
    eps: float = 1e-5
    decay: float = 0.9
    correction: int = 0
    use_scale: bool = True
    use_bias: bool = True
    scale_init: float = 1.0
    bias_init: float = 0.0
    allow_single: bool = False
    compensated: bool = False
    debias: Debias = False

    def __post_init__(self) -> None:
        """Check the fields and bring `axes` into canonical form."""
        check_affine(self.scale_init, self.bias_init, self.eps)
        check_running(self.decay, self.correction, self.debias)
        _checks.set_field(self, "axes", _checks.axes(self.axes))

    def start_channels(self, shape: tuple[int, ...], dtype: Any) -> tuple[Affine, Running]:
        """Return the affine and the running statistics, of the shape of the channels."""
        self.space(len(shape))  # raises here already if the shape does not fit
        channels = shape[-1:]
        running = _running.initial_running(
            channels, dtype, compensated=self.compensated, debiased=self.debias
        )
        return initial_affine(self, channels, dtype), running

    def space(self, ndim: int) -> tuple[int, ...]:
        """Return the spatial axes, over which a sample's own statistics are taken."""
        return spatial_axes(self.axes, ndim, self.factory, empty=False)

    def measure(self, params: Any, x: jax.Array, call: Call) -> Moments:
        """Measure each channel over batch and space and over all devices of `axis_name`."""
        del params
        axes = _checks.resolve_axes(None, x.ndim)
        how: Any = {"dtype": call.dtype, "at_once": call.at_once}
        return _core.moments(x, axes, call.mask, call.axis_name, **how)

    def update(
        self, state: Running | Accumulator, measured: Moments | None, call: Call
    ) -> Running | Accumulator:
        """Update the running average, skipping empty and nonfinite batches."""
        decay = (call.hyper or {}).get("decay", self.decay)
        return _running.accumulate(
            state,
            measured,
            stats=call.stats,
            decay=decay,
            correction=self.correction,
            debias=self.debias,
        )


def require_real(x: jax.Array, who: str) -> None:
    """Raise if x is complex: the nonlinearity of `who` compares values."""
    if jnp.iscomplexobj(x):
        raise TypeError(
            f"{who} has a nonlinearity of real numbers and got {x.dtype}: write x.real and x.imag "
            "as two channels"
        )
