"""Base classes of norms over one sample: no state, statistics of each sample, an affine.

A subclass defines the axes it averages over and the axes of its affine. Scale and bias may also
have values for each sample, which makes any of these norms adaptive; see `broadcast_affine`.
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
from normjax.statistics import _core, _segments
from normjax.statistics._shapes import broadcast_affine
from normjax.statistics._types import AxisName, Moments, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class PerSampleNorm(Norm):
    """A norm that treats each sample separately; it has no state and both modes are the same."""

    eps: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: float = 1.0
    bias_init: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        check_affine(self.scale_init, self.bias_init, self.eps)

    @abc.abstractmethod
    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes averaged over for an x with `ndim` axes."""

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of scale and bias for an x with `ndim` axes, by default the last."""
        return (ndim - 1,)

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[Any, PyTree]:
        """Return `(Affine, ())`, the affine of the shape of the feature axes."""
        del key
        self.averaged(len(shape))  # raises here already if the shape does not fit
        return initial_affine(self, tuple(shape[a] for a in self.features(len(shape))), dtype), ()

    def measure(self, params: Any, x: jax.Array, call: Call) -> Any:
        """Measure each sample; a device axis of the batch makes no difference."""
        del params
        return _core.moments(x, self.averaged(x.ndim), call.mask, dtype=call.dtype)

    def transform(
        self, params: Any, state: PyTree, measured: Any, x: jax.Array, call: Call
    ) -> jax.Array:
        """Normalize each sample with its own statistics."""
        del state
        scale, bias = broadcast_affine(params, self.features(x.ndim), x.shape)
        return _core.normalize(x, measured, self.averaged(x.ndim), scale, bias, self.eps, call.mask)


@dataclasses.dataclass(frozen=True, repr=False)
class FeatureNorm(PerSampleNorm):
    """A norm over the features, which may be split over devices: layer and RMS norm."""

    centred: ClassVar[bool]
    segmented: ClassVar[bool] = True

    axes: int | Sequence[int] = (-1,)
    feature_axes: int | Sequence[int] | None = None
    feature_axis_name: AxisName = None
    impl: _core.Impl = "xla"

    def __post_init__(self) -> None:
        """Check the fields and bring the axes into canonical form."""
        super().__post_init__()
        _checks.set_field(self, "axes", _checks.axes(self.axes) or (-1,))
        _checks.set_field(self, "feature_axes", _checks.axes(self.feature_axes))
        _checks.one_of("impl", self.impl, get_args(_core.Impl))

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the feature axes."""
        return _checks.resolve_axes(self.axes, ndim)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of scale and bias, by default the feature axes."""
        if self.feature_axes is None:
            return self.averaged(ndim)
        return _checks.resolve_axes(self.feature_axes, ndim, name="feature_axes")

    def measure(self, params: Any, x: jax.Array, call: Call) -> Moments:
        """Measure each sample over all devices that its features are split over."""
        del params
        axes, segments = self.averaged(x.ndim), call.segments
        if segments is not None and _segments.divides(segments, axes):
            return _segments.moments(x, axes, call.mask, segments, centred=self.centred)
        pooled = (call.mask, self.feature_axis_name)
        if not self.centred:
            return _core.mean_square(x, axes, *pooled)
        return _core.moments(x, axes, *pooled, dtype=call.dtype)

    def transform(
        self, params: Affine, state: PyTree, measured: Moments, x: jax.Array, call: Call
    ) -> jax.Array:
        """Normalize each sample with its own statistics, by a kernel where possible."""
        axes = self.averaged(x.ndim)
        features = axes if self.feature_axes is None else self.features(x.ndim)
        scale, bias = broadcast_affine(params, features, x.shape)
        segments = call.segments
        if segments is not None and _segments.divides(segments, axes):
            return _segments.normalize(
                x, measured, axes, scale, bias, self.eps, call.mask, segments
            )
        if self.impl == "kernel" and self.feature_axis_name is None and axes == features:
            y = _core.normalize_rows(
                x,
                axes,
                scale,
                bias,
                self.eps,
                call.mask,
                centred=self.centred,
                dtype=call.dtype,
            )
            if y is not None:
                return y
        return _core.normalize(
            x,
            measured,
            axes,
            scale,
            bias,
            self.eps,
            call.mask,
            centred=self.centred if self.feature_axis_name is None else None,
        )


def spatial_axes(
    axes: int | Sequence[int] | None, ndim: int, who: str, *, empty: bool = True
) -> Any:
    """Return the spatial axes: `axes`, or all between the first and the last.

    With `empty=False` it raises if there are none, because a norm over sets of one value gives 0.
    """
    space = tuple(range(1, ndim - 1)) if axes is None else _checks.resolve_axes(axes, ndim)
    if ndim - 1 in space:
        raise ValueError(
            f"{who}(axes={axes}) names the last axis, which is that of the channels: name the "
            "spatial axes alone, for example axes=(1, 2) for [batch, height, width, channels]"
        )
    if not space and not empty:
        raise ValueError(
            f"{who} averages over space, and x with {ndim} axes has none between the batch and "
            "the channels: give x of shape [batch, ..., channels], or write layer_norm(), which "
            "averages over the channels"
        )
    return space


def spatial_axes_argument(axes: Any) -> tuple[int, ...] | None:
    """Return `axes` in canonical form; `()` is valid and means no spatial axes."""
    if axes is None or (isinstance(axes, list | tuple) and not axes):
        return axes if axes is None else ()
    return _checks.axes(axes)
