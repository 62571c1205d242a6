"""Root mean square layer normalization."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Affine, Hyper, Norm, Stats
from normjax.norms import _dispatch
from normjax.norms._affine import check_affine
from normjax.norms._per_sample import PerSampleNorm
from normjax.statistics import _measure, _shapes
from normjax.statistics._types import Array, AxisName, Moments, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class RMSNorm(PerSampleNorm):
    """The value behind `rms_norm`; see there."""

    factory: ClassVar[str] = "rms_norm"

    axes: tuple[int, ...] = (-1,)
    feature_axes: tuple[int, ...] | None = None
    use_bias: bool = False
    unit_offset: bool = False
    partial: float = 1.0
    feature_axis_name: AxisName = None
    impl: _dispatch.Impl = "xla"

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of the features."""
        return _checks.resolve_axes(self.axes, ndim)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of the affine, by default the same."""
        axes = self.axes if self.feature_axes is None else self.feature_axes
        return _checks.resolve_axes(axes, ndim, name="feature_axes")

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[Affine, PyTree]:
        """Return `(Affine, ())`; with `unit_offset` the scale is stored less 1."""
        if not self.unit_offset:
            return super().init(shape, dtype, key=key)
        stored = dataclasses.replace(self, unit_offset=False, scale_init=self.scale_init - 1)
        return stored.init(shape, dtype, key=key)

    def measure(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Return the mean square, over all devices that share the features."""
        axes = self.averaged(x.ndim)
        if self.partial < 1:
            (axis,) = axes
            # Less a hair, so that 0.07 of 100 features, 7.000000000000001, are 7 and not 8.
            first = max(1, math.ceil(x.shape[axis] * self.partial - 1e-9))
            x = jax.lax.slice_in_dim(x, 0, first, axis=axis)
            if mask is not None and mask.shape[axis] > 1:
                mask = jax.lax.slice_in_dim(mask, 0, first, axis=axis)
        return _measure.mean_square(x, axes, mask=mask, axis_name=self.feature_axis_name)

    def transform(
        self,
        params: Affine,
        state: PyTree,
        measured: Moments,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Scale each sample by itself."""
        if self.unit_offset and params.scale is not None:
            # Widened first: near 1, a bfloat16 sum would round most of what was learned away.
            scale = jnp.asarray(params.scale)
            params = params._replace(scale=1 + scale.astype(_shapes.stat_dtype(scale.dtype)))
        return super().transform(params, state, measured, x, stats=stats, mask=mask, hyper=hyper)

    def by_kernel(
        self, params: Affine, measured: Moments, x: jax.Array, mask: Array | None
    ) -> jax.Array | None:
        """Scale rows; the kernel measures them once more, on the chip."""
        del measured
        return (
            None
            if self.partial < 1
            else _dispatch.kernel_row_norm(self, params, x, mask, centred=False)
        )


@_hints.with_hints()
def rms_norm(
    *,
    axes: int | Sequence[int] = -1,
    feature_axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_bias: bool = False,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    unit_offset: bool = False,
    partial: float = 1.0,
    feature_axis_name: AxisName = None,
    impl: _dispatch.Impl = "xla",
) -> Norm:
    r"""Root mean square normalization: layer norm without centring.

    $$y = \gamma \odot \frac{x}{\sqrt{\tfrac1H \sum_{i=1}^H x_i^2 + \epsilon}}\;(+\,\beta)$$

    Args:
        axes: axes averaged over, those of the features.
        feature_axes: axes that scale and bias run over; by default the same.
        eps: added to the mean square, inside the root; 1e-5 as in the authors' Theano code
            (their PyTorch code adds 1e-8 to the root).
        use_scale: whether there is a gain.
        use_bias: whether there is a bias; the paper has none.
        scale_init: start of the gain that is applied.
        bias_init: start of the bias.
        unit_offset: store the gain less 1, so that it starts at 0 and weight decay pulls it
            to 1; what is applied is 1 + stored.
        partial: fraction of the features, the first ones (rounded up), that the mean square
            is taken over: pRMSNorm; the paper's is 0.0625. In (0, 1].
        feature_axis_name: device axis that the *features* are split over.
        impl: `"xla"`, or `"kernel"`: kernels of ours where they serve (`normjax.kernels`), which
            no device has tried yet and a CPU interprets, slowly.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        ValueError: a number outside its range, axes that name nothing, `partial` over more
            than one axis or over split features.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.rms_norm(unit_offset=True)
        >>> params, state = norm.init((1, 2))
        >>> y, state = norm.apply(params, state, jnp.array([[1.0, 7.0]]), stats="batch")
        >>> params.scale.tolist(), [round(v, 3) for v in y[0].tolist()]
        ([0.0, 0.0], [0.2, 1.4])

    Reference:
        Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    check_affine(eps, scale_init, bias_init)
    _checks.unit_interval("partial", partial)
    _checks.positive("partial", partial)
    found = _checks.axes(axes) or (-1,)
    if partial < 1 and (len(found) > 1 or feature_axis_name is not None):
        raise ValueError(
            "rms_norm(partial=...) takes the first features of one axis that is whole on each "
            "device: write axes=-1 and no feature_axis_name"
        )
    return RMSNorm(
        axes=found,
        feature_axes=_checks.axes(feature_axes),
        eps=eps,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
        unit_offset=unit_offset,
        partial=partial,
        feature_axis_name=feature_axis_name,
        impl=_dispatch.check(impl),
    )
