"""Layer normalization."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax

from normjax._internal import _checks, _hints
from normjax.base import Affine, Norm
from normjax.norms import _dispatch
from normjax.norms._affine import check_affine
from normjax.norms._per_sample import PerSampleNorm
from normjax.statistics import _measure
from normjax.statistics._types import Array, AxisName, Moments


@dataclasses.dataclass(frozen=True, repr=False)
class LayerNorm(PerSampleNorm):
    """The value behind `layer_norm`; see there."""

    factory: ClassVar[str] = "layer_norm"

    axes: tuple[int, ...] = (-1,)
    feature_axes: tuple[int, ...] | None = None
    feature_axis_name: AxisName = None
    impl: _dispatch.Impl = "xla"

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of the features."""
        return _checks.resolve_axes(self.axes, ndim)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of the affine, by default the same."""
        axes = self.axes if self.feature_axes is None else self.feature_axes
        return _checks.resolve_axes(axes, ndim, name="feature_axes")

    def measure(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Return mean and variance, over all devices that share the features."""
        return _measure.moments(x, self.axes, mask=mask, axis_name=self.feature_axis_name)

    def by_kernel(
        self, params: Affine, measured: Moments, x: jax.Array, mask: Array | None
    ) -> jax.Array | None:
        """Normalize rows; the kernel measures them once more, on the chip."""
        del measured
        return _dispatch.kernel_row_norm(self, params, x, mask, centred=True)


@_hints.with_hints()
def layer_norm(
    *,
    axes: int | Sequence[int] = -1,
    feature_axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    feature_axis_name: AxisName = None,
    impl: _dispatch.Impl = "xla",
) -> Norm:
    r"""Layer normalization: all features of one sample, at every position by itself.

    $$y = \gamma \odot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta, \qquad
      \mu = \tfrac1H \sum_{i=1}^H x_i$$

    Nothing depends on the batch, so there is no state and both modes are the same.

    *Adaptive* layer norm, whose gain and bias are computed from a condition, is this norm with
    other params at the call: `Affine(1 + scale, shift)`, where both carry the axes of the batch
    before those of the features (`[batch, features]` for x of `[batch, time, features]`).

    Args:
        axes: axes averaged over, those of the features.
        feature_axes: axes that scale and bias run over; by default the same.
        eps: added to the variance; 1e-5 is that of the authors' code (Flax: 1e-6).
        use_scale: whether there is a gain.
        use_bias: whether there is a bias.
        scale_init: start of the gain; the authors found 1 better than the 0.1 that suits
            recurrent batch norm.
        bias_init: start of the bias.
        feature_axis_name: device axis that the *features* are split over.
        impl: `"xla"`, or `"kernel"`: kernels of ours where they serve (`normjax.kernels`), which
            no device has tried yet and a CPU interprets, slowly.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        ValueError: a number outside its range, axes that name nothing.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.layer_norm()
        >>> params, state = norm.init((1, 2))
        >>> y, state = norm.apply(params, state, jnp.array([[1.0, 3.0]]), stats="batch")
        >>> [round(v, 3) for v in y[0].tolist()]
        [-1.0, 1.0]
        >>> adapted = nj.Affine(scale=jnp.array([[2.0, 2.0]]), bias=jnp.array([[0.5, 0.5]]))
        >>> y, _ = norm.apply(adapted, (), jnp.array([[[1.0, 3.0]]]), stats="batch")
        >>> [round(v, 3) for v in y[0, 0].tolist()]
        [-1.5, 2.5]

    Reference:
        Ba, Kiros, Hinton, "Layer Normalization", 2016; Peebles, Xie, "Scalable Diffusion Models
        with Transformers", 2023 (the adaptive one).
    """
    check_affine(eps, scale_init, bias_init)
    return LayerNorm(
        axes=_checks.axes(axes) or (-1,),
        feature_axes=_checks.axes(feature_axes),
        eps=eps,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
        feature_axis_name=feature_axis_name,
        impl=_dispatch.check(impl),
    )
