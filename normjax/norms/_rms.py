"""Root mean square (RMS) normalization: layer norm without centring."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Affine, Call, Norm
from normjax.norms._per_sample import FeatureNorm, PerSampleNorm
from normjax.statistics import _core, _formulas, _segments, _shapes
from normjax.statistics._types import AxisName, Moments, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class RMSNorm(FeatureNorm):
    """Root mean square normalization as a value; made by `rms_norm`."""

    factory: ClassVar[str] = "rms_norm"
    centred: ClassVar[bool] = False

    use_bias: bool = False
    unit_offset: bool = False
    partial: float = 1.0
    cast_first: bool = False

    def __post_init__(self) -> None:
        """Check the fields; `partial` needs one feature axis that is not split over devices."""
        super().__post_init__()
        _checks.unit_interval("partial", self.partial)
        _checks.positive("partial", self.partial)
        several = isinstance(self.axes, tuple) and len(self.axes) > 1
        if self.partial < 1 and (several or self.feature_axis_name is not None):
            raise ValueError(
                "rms_norm(partial=...) takes the first features of one axis that is whole on each "
                "device: write axes=-1 and no feature_axis_name"
            )

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[Affine, PyTree]:
        """Return `(Affine, ())`; with `unit_offset` the scale minus 1 is stored."""
        if not self.unit_offset:
            return super().start(shape, dtype, key)
        stored = dataclasses.replace(self, unit_offset=False, scale_init=self.scale_init - 1)
        return stored.start(shape, dtype, key)

    def measure(self, params: Affine, x: jax.Array, call: Call) -> Moments:
        """Measure the mean square, of the first features only if `partial` is below 1."""
        if self.partial == 1:
            return super().measure(params, x, call)
        (axis,), mask = self.averaged(x.ndim), call.mask
        if _segments.divides(call.segments, (axis,)):
            raise ValueError(
                "rms_norm(partial=...) over positions cannot be divided into segments: leave out "
                "partial, or segment_ids"
            )
        # Subtract a tolerance so that 0.07 of 100 features, 7.000000000000001, are 7 and not 8.
        first = max(1, math.ceil(x.shape[axis] * self.partial - 1e-9))
        x = jax.lax.slice_in_dim(x, 0, first, axis=axis)
        if mask is not None and mask.shape[axis] > 1:
            mask = jax.lax.slice_in_dim(mask, 0, first, axis=axis)
        return _core.mean_square(x, (axis,), mask)

    def transform(
        self, params: Affine, state: PyTree, measured: Moments, x: jax.Array, call: Call
    ) -> jax.Array:
        """Divide each sample by its own root mean square."""
        if self.unit_offset and params.scale is not None:
            # Widened first: near 1, a bfloat16 sum would lose most of the learned digits.
            scale = jnp.asarray(params.scale)
            params = params._replace(scale=1 + scale.astype(_shapes.stat_dtype(scale.dtype)))
        if self.cast_first and call.dtype is not None and params.scale is not None:
            y = self._transform(Affine(None, None), state, measured, x, call)
            gain, bias = _shapes.broadcast_affine(params, self.features(x.ndim), x.shape)
            assert gain is not None
            y = _formulas.rounded_times(y, gain.astype(y.dtype), call.dtype)
            return _formulas.affine(y, None, bias)
        return self._transform(params, state, measured, x, call)

    def _transform(
        self, params: Affine, state: PyTree, measured: Moments, x: jax.Array, call: Call
    ) -> jax.Array:
        """Normalize with the gain as it is applied."""
        if self.partial < 1:  # the kernel measures whole rows
            return PerSampleNorm.transform(self, params, state, measured, x, call)
        return super().transform(params, state, measured, x, call)


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
    cast_first: bool = False,
    feature_axis_name: AxisName = None,
    impl: Literal["xla", "kernel"] = "xla",
) -> Norm:
    r"""Root mean square normalization: layer norm without centring.

    $$y = \gamma \odot \frac{x}{\sqrt{\tfrac1H \sum_{i=1}^H x_i^2 + \epsilon}}\;(+\,\beta)$$

    Args:
        axes: axes averaged over, those of the features.
        feature_axes: axes of scale and bias; by default the same as `axes`.
        eps: added to the mean square, inside the root; 1e-5 as in the authors' Theano code
            (their PyTorch code adds 1e-8 to the root).
        use_scale: whether there is a gain.
        use_bias: whether there is a bias; the paper has none.
        scale_init: initial gain, as applied.
        bias_init: initial bias.
        unit_offset: store the gain minus 1, so that the parameter is initially 0 and weight decay
            pulls the gain towards 1; the norm multiplies by 1 + the parameter.
        partial: fraction of the features that the mean square is taken over, in (0, 1]: the first
            ones, rounded up (pRMSNorm); 0.0625 in the paper.
        cast_first: round the normalized x to the dtype of x before the gain multiplies it, as the
            published T5 and Llama do, instead of once at the end. It matters for half-precision x
            alone, where it gives the published model's output to the bit. Pass gains of that dtype
            too, as they are in such a checkpoint. Gradients are those without the rounding.
        feature_axis_name: device axis that the *features* are split over.
        impl: `"xla"`, or `"kernel"` to use the kernels of `normjax.kernels` where possible. On an
            H100 a forward pass with them reads x once, and training gains nothing. No TPU has run
            them. A CPU runs the plain formulas.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        TypeError: `scale_init` or `bias_init` is not a plain number.
        ValueError: a number is outside its range, `axes` are empty or repeat an axis, or `partial`
            is used with several axes or with features that are split over devices.

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
    return RMSNorm(**locals())
