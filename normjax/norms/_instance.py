"""Instance normalization, over space for each channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import jax

from normjax._internal import _checks, _hints
from normjax.base import Affine, Call, Norm
from normjax.norms._per_sample import PerSampleNorm, spatial_axes
from normjax.statistics import _core, _segments
from normjax.statistics._shapes import broadcast_affine
from normjax.statistics._types import Moments, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class InstanceNorm(PerSampleNorm):
    """Instance normalization as a value; made by `instance_norm`."""

    factory: ClassVar[str] = "instance_norm"
    segmented: ClassVar[bool] = True

    axes: int | Sequence[int] | None = None
    impl: _core.Impl = "xla"

    def __post_init__(self) -> None:
        """Check the fields and bring `axes` into canonical form."""
        super().__post_init__()
        _checks.set_field(self, "axes", _checks.axes(self.axes))
        _checks.one_of("impl", self.impl, get_args(_core.Impl))

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the spatial axes."""
        return spatial_axes(self.axes, ndim, self.factory, empty=False)

    def measure(self, params: Affine, x: jax.Array, call: Call) -> Moments:
        """Measure each channel of each sample."""
        del params
        if call.segments is not None:
            return _segments.moments(x, self.averaged(x.ndim), call.mask, call.segments)
        return _core.moments(x, self.averaged(x.ndim), call.mask, impl=self.impl, dtype=call.dtype)

    def transform(
        self, params: Affine, state: PyTree, measured: Moments, x: jax.Array, call: Call
    ) -> jax.Array:
        """Normalize each channel of each sample with its own statistics."""
        del state
        scale, bias = broadcast_affine(params, self.features(x.ndim), x.shape)
        axes = self.averaged(x.ndim)
        if call.segments is not None:
            return _segments.normalize(
                x, measured, axes, scale, bias, self.eps, call.mask, call.segments
            )
        return _core.normalize(
            x, measured, axes, scale, bias, self.eps, call.mask, impl=self.impl, dtype=call.dtype
        )


@_hints.with_hints()
def instance_norm(
    *,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    impl: Literal["xla", "kernel"] = "xla",
) -> Norm:
    r"""Instance normalization: over space, for each channel of one sample; channels are last.

    $$y_{n,s,c} = \gamma_c\,\frac{x_{n,s,c} - \mu_{n,c}}{\sqrt{\sigma^2_{n,c} + \epsilon}}
      + \beta_c$$

    It does the same in training and evaluation and has no state. Scale and bias may have values
    for each sample or style (conditional and adaptive instance norm), as in `layer_norm`.

    Args:
        axes: spatial axes, averaged over. `None`: all between the first and the last. All other
            axes but the last are batch axes.
        eps: added to the variance; 1e-5 as in the authors' code (Flax: 1e-6).
        use_scale: whether there is a gamma, one per channel.
        use_bias: whether there is a beta, one per channel.
        scale_init: initial gamma.
        bias_init: initial beta.
        impl: `"xla"`, or `"kernel"` to use the kernels of `normjax.kernels` where possible. An
            H100 has run them and not timed them; no TPU has run them. A CPU runs the plain
            formulas.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        TypeError: `scale_init` or `bias_init` is not a plain number.
        ValueError: a number is outside its range, or x has no spatial axes, so that the output
            would be beta.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.instance_norm()
        >>> params, state = norm.init((1, 2, 1))
        >>> y, state = norm.apply(params, state, jnp.array([[[1.0], [3.0]]]), stats="batch")
        >>> [round(v, 3) for v in y.ravel().tolist()]
        [-1.0, 1.0]

    Reference:
        Ulyanov, Vedaldi, Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
        Stylization", 2016; Dumoulin, Shlens, Kudlur, "A Learned Representation for Artistic
        Style", 2017 (the conditional one).
    """
    return InstanceNorm(**locals())
