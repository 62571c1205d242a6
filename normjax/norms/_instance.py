"""Instance normalization."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax

from normjax._internal import _checks, _hints
from normjax.base import Affine, Norm
from normjax.norms import _dispatch
from normjax.norms._affine import check_affine
from normjax.norms._per_sample import PerSampleNorm, spatial_axes
from normjax.statistics._types import Array, Moments


@dataclasses.dataclass(frozen=True, repr=False)
class InstanceNorm(PerSampleNorm):
    """The value behind `instance_norm`; see there."""

    factory: ClassVar[str] = "instance_norm"

    axes: tuple[int, ...] | None = None
    impl: _dispatch.Impl = "xla"

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of space."""
        return spatial_axes(self.axes, ndim, self.factory, empty=False)

    def measure(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Return mean and variance of each channel of each sample."""
        found = _dispatch.kernel_moments(self, x, self.averaged(x.ndim), mask)
        return super().measure(x, mask) if found is None else found

    def by_kernel(
        self, params: Affine, measured: Moments, x: jax.Array, mask: Array | None
    ) -> jax.Array | None:
        """Normalize each channel of each sample by itself."""
        return _dispatch.kernel_standardize(self, params, measured, x, self.averaged(x.ndim), mask)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the last axis."""
        return (ndim - 1,)


@_hints.with_hints()
def instance_norm(
    *,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    impl: _dispatch.Impl = "xla",
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
    check_affine(eps, scale_init, bias_init)
    return InstanceNorm(
        axes=_checks.axes(axes),
        eps=eps,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
        impl=_dispatch.check(impl),
    )
