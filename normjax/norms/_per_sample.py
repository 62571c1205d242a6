"""What the norms over one sample share: no state, statistics of each sample, an affine.

A subclass names the axes it averages over and the axes of its affine. The affine may also be
given per sample, which makes any of these norms an adaptive one; see `broadcast_affine`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, get_args

import jax

from normjax._internal import _checks
from normjax.base import Affine, Call, Norm
from normjax.norms._affine import check_affine, initial_affine
from normjax.statistics import _core
from normjax.statistics._shapes import broadcast_affine
from normjax.statistics._types import AxisName, Moments, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class PerSampleNorm(Norm):
    """A norm of each sample alone; it keeps nothing and both modes are the same."""

    eps: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: float = 1.0
    bias_init: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        check_affine(self.scale_init, self.bias_init, self.eps)

    @abc.abstractmethod
    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes averaged over, of an x with `ndim` axes."""

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the axes that scale and bias run over, by default the last."""
        return (ndim - 1,)

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[Any, PyTree]:
        """Return `(Affine, ())`, the affine of the shape of the feature axes."""
        del key
        self.averaged(len(shape))  # So that a shape that does not fit is refused here already.
        return initial_affine(self, tuple(shape[a] for a in self.features(len(shape))), dtype), ()

    def measure(self, params: Any, x: jax.Array, call: Call) -> Any:
        """Measure each sample; the batch's device axis does not matter."""
        del params
        return _core.moments(x, self.averaged(x.ndim), call.mask)

    def transform(
        self, params: Any, state: PyTree, measured: Any, x: jax.Array, call: Call
    ) -> jax.Array:
        """Normalize each sample with its own statistics."""
        del state
        scale, bias = broadcast_affine(params, self.features(x.ndim), x.shape)
        return _core.normalize(x, measured, self.averaged(x.ndim), scale, bias, self.eps, call.mask)


@dataclasses.dataclass(frozen=True, repr=False)
class FeatureNorm(PerSampleNorm):
    """A norm over the features: layer and RMS norm, which may be split over devices."""

    centred: ClassVar[bool]

    axes: int | Sequence[int] = (-1,)
    feature_axes: int | Sequence[int] | None = None
    feature_axis_name: AxisName = None
    impl: _core.Impl = "xla"

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges and axes that name nothing."""
        super().__post_init__()
        _checks.set_field(self, "axes", _checks.axes(self.axes) or (-1,))
        _checks.set_field(self, "feature_axes", _checks.axes(self.feature_axes))
        _checks.one_of("impl", self.impl, get_args(_core.Impl))

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of the features."""
        return _checks.resolve_axes(self.axes, ndim)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of the affine, by default the same."""
        if self.feature_axes is None:
            return self.averaged(ndim)
        return _checks.resolve_axes(self.feature_axes, ndim, name="feature_axes")

    def measure(self, params: Any, x: jax.Array, call: Call) -> Moments:
        """Measure each sample, over all devices that share the features."""
        del params
        take = _core.moments if self.centred else _core.mean_square
        return take(x, self.averaged(x.ndim), call.mask, self.feature_axis_name)

    def transform(
        self, params: Affine, state: PyTree, measured: Moments, x: jax.Array, call: Call
    ) -> jax.Array:
        """Normalize each sample with its own statistics, by a kernel where one serves."""
        axes = self.averaged(x.ndim)
        features = axes if self.feature_axes is None else self.features(x.ndim)
        scale, bias = broadcast_affine(params, features, x.shape)
        if self.impl == "kernel" and self.feature_axis_name is None and axes == features:
            y = _core.normalize_rows(
                x, axes, scale, bias, self.eps, call.mask, centred=self.centred
            )
            if y is not None:
                return y
        return _core.normalize(x, measured, axes, scale, bias, self.eps, call.mask)


def spatial_axes(
    axes: int | Sequence[int] | None, ndim: int, who: str, *, empty: bool = True
) -> Any:
    """Return the axes of space: those named, or all between the first and the last.

    With `empty=False` a norm that would have one value per set refuses, instead of giving 0.
    """
    found = tuple(range(1, ndim - 1)) if axes is None else _checks.resolve_axes(axes, ndim)
    if ndim - 1 in found:
        raise ValueError(
            f"{who}(axes={axes}) names the last axis, which is that of the channels: name the axes "
            "of space alone, for example axes=(1, 2) for [batch, height, width, channels]"
        )
    if not found and not empty:
        raise ValueError(
            f"{who} averages over space, and x with {ndim} axes has none between the batch and "
            "the channels: give x of shape [batch, ..., channels], or write layer_norm(), which "
            "averages over the channels"
        )
    return found


def spatial_axes_argument(axes: Any) -> tuple[int, ...] | None:
    """Return `axes` in canonical form, where `()` means that there is no space."""
    if axes is None or (isinstance(axes, list | tuple) and not axes):
        return axes if axes is None else ()
    return _checks.axes(axes)
