"""Instance normalization."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import jax

from normjax._internal import _checks, _hints
from normjax.base import Affine, Call, Norm
from normjax.norms._per_sample import PerSampleNorm, spatial_axes
from normjax.statistics import _core
from normjax.statistics._shapes import broadcast_affine
from normjax.statistics._types import Moments, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class InstanceNorm(PerSampleNorm):
    """Instance normalization as a value; made by `instance_norm`."""

    factory: ClassVar[str] = "instance_norm"

    axes: int | Sequence[int] | None = None
    impl: _core.Impl = "xla"

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges and axes that name nothing."""
        super().__post_init__()
        _checks.set_field(self, "axes", _checks.axes(self.axes))
        _checks.one_of("impl", self.impl, get_args(_core.Impl))

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of space."""
        return spatial_axes(self.axes, ndim, self.factory, empty=False)

    def measure(self, params: Affine, x: jax.Array, call: Call) -> Moments:
        """Measure each channel of each sample."""
        del params
        return _core.moments(x, self.averaged(x.ndim), call.mask, impl=self.impl)

    def transform(
        self, params: Affine, state: PyTree, measured: Moments, x: jax.Array, call: Call
    ) -> jax.Array:
        """Normalize each channel of each sample with its own statistics."""
        del state
        scale, bias = broadcast_affine(params, self.features(x.ndim), x.shape)
        axes = self.averaged(x.ndim)
        return _core.normalize(x, measured, axes, scale, bias, self.eps, call.mask, impl=self.impl)


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
    r"""Instance normalization: each channel of one sample over space; channels are last.

    $$y_{n,s,c} = \gamma_c\,\frac{x_{n,s,c} - \mu_{n,c}}{\sqrt{\sigma^2_{n,c} + \epsilon}}
      + \beta_c$$

    The same in training and evaluation: there is no state. The affine may be given per sample
    or per style (conditional and adaptive instance norm), as in `layer_norm`.

    Args:
        axes: axes of space, averaged over. `None`: all between the first and the last. Every
            axis that is not named, other than the last, is a batch axis.
        eps: added to the variance; 1e-5 is that of the authors' code (Flax: 1e-6).
        use_scale: whether there is a gamma, one a channel.
        use_bias: whether there is a beta, one a channel.
        scale_init: start of gamma.
        bias_init: start of beta.
        impl: `"xla"`, or `"kernel"`: kernels of ours where they serve (`normjax.kernels`), which
            no device has tried yet and a CPU interprets, slowly.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        ValueError: a number outside its range; x without space, whose output would be beta.

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
