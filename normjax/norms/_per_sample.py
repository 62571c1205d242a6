"""What the norms over one sample share: no state, statistics of each sample, an affine.

A subclass names the axes it averages over and the axes of its affine. The affine may also be
given per sample, which makes any of these norms an adaptive one; see `_affine.place`.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from normjax._internal import _checks
from normjax.base import Hyper, Norm, Stats
from normjax.norms._affine import broadcast_affine, initial_affine
from normjax.statistics import _measure, _normalize, _shapes
from normjax.statistics._types import Array, AxisName, Moments, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class PerSampleNorm(Norm):
    """A norm of each sample by itself; nothing is kept and both modes are the same."""

    eps: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: float = 1.0
    bias_init: float = 0.0

    @abc.abstractmethod
    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes averaged over, of an x with `ndim` axes."""

    @abc.abstractmethod
    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the axes that scale and bias run over."""

    def measure(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Return the statistics of each sample."""
        return _measure.moments(x, self.averaged(x.ndim), mask=mask)

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[Any, PyTree]:
        """Return `(Affine, ())`, the affine of the shape of the feature axes; `key` is not used."""
        del key
        self.averaged(len(shape))  # So that a shape that does not fit is refused here already.
        return initial_affine(self, tuple(shape[a] for a in self.features(len(shape))), dtype), ()

    def moments(
        self, params: Any, x: Array, *, mask: Array | None = None, axis_name: AxisName = None
    ) -> Any:
        """Measure each sample; `axis_name`, the batch's, does not matter."""
        del params, axis_name
        x = _checks.floating(x, self.factory)
        return self.measure(x, _checks.mask(mask, x.shape))

    def transform(
        self,
        params: Any,
        state: PyTree,
        measured: Any,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Normalize each sample by itself."""
        del state, stats, hyper
        x = jnp.asarray(x)
        y = self.by_kernel(params, measured, x, mask)
        return self.normalized(params, measured, x, mask) if y is None else y

    def by_kernel(
        self, params: Any, measured: Any, x: jax.Array, mask: Array | None
    ) -> jax.Array | None:
        """Return what a kernel makes of x, or `None` where none is asked for or serves."""
        del params, measured, x, mask
        return None

    def normalized(self, params: Any, measured: Any, x: jax.Array, mask: Array | None) -> jax.Array:
        """Return x normalized with what was measured."""
        at = broadcast_affine(params, self.features(x.ndim), x.shape)
        return _normalize.normalize(
            x,
            measured,
            self.averaged(x.ndim),
            scale=at.scale,
            bias=at.bias,
            eps=self.eps,
            mask=mask,
        )


def widen(x: Array, mask: Array | None = None) -> jax.Array:
    """Return x in the dtype of its statistics, 0 under the mask."""
    x = jnp.asarray(x)
    x = x.astype(_shapes.stat_dtype(x.dtype))
    return x if mask is None else jnp.where(mask, x, 0)


def spatial_axes(axes: tuple[int, ...] | None, ndim: int, who: str, *, empty: bool = True) -> Any:
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
    """Return the argument `axes` of a factory, where `()` is no space at all."""
    if axes is None or (isinstance(axes, list | tuple) and not axes):
        return axes if axes is None else ()
    return _checks.axes(axes)
