"""Global response normalization, of ConvNeXt V2."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Affine, Call, Norm
from normjax.norms._per_sample import PerSampleNorm, spatial_axes, spatial_axes_argument
from normjax.statistics import _core, _formulas, _shapes
from normjax.statistics._shapes import broadcast_affine, widen
from normjax.statistics._types import Moments, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class GlobalResponseNorm(PerSampleNorm):
    """Global response normalization as a value; made by `global_response_norm`."""

    factory: ClassVar[str] = "global_response_norm"

    axes: int | Sequence[int] | None = None
    eps: float = 1e-6
    scale_init: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields and bring `axes` into canonical form."""
        super().__post_init__()
        _checks.set_field(self, "axes", spatial_axes_argument(self.axes))

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the spatial axes."""
        return spatial_axes(self.axes, ndim, self.factory)

    def measure(self, params: Affine, x: jax.Array, call: Call) -> Moments:
        """Measure the mean square over space."""
        del params
        return _core.mean_square(x, self.averaged(x.ndim), call.mask)

    def transform(
        self, params: Affine, state: PyTree, measured: Moments, x: jax.Array, call: Call
    ) -> jax.Array:
        """Scale each channel by its share of the response, then add x."""
        del state
        remaining = [a for a in range(x.ndim) if a not in self.averaged(x.ndim)]
        energy = measured.var * measured.count
        # The root has no derivative at 0: a dead channel gets 0, a subgradient of the length.
        # Where the energy is beyond float32 it is NaN, and so is the length.
        length = jnp.where(energy == 0, 0, jnp.sqrt(jnp.where(energy == 0, 1, energy)))
        # length is [batch, channels]; its mean over channels is [batch].
        mean_length = _core.moments(length, (length.ndim - 1,), measured.count > 0).mean
        share = length / (mean_length[..., None] + self.eps)
        scale, bias = broadcast_affine(params, self.features(x.ndim), x.shape)
        d = widen(x, call.mask)
        y = _formulas.affine(d, scale, bias, mul=_shapes.expand(share, remaining, x.ndim))
        return (y + d).astype(x.dtype)


@_hints.with_hints()
def global_response_norm(
    *,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-6,
    scale_init: float = 0.0,
    bias_init: float = 0.0,
) -> Norm:
    r"""Global response normalization: lets channels compete, as in ConvNeXt V2; channels are last.

    $$y = \gamma \odot x \odot n + \beta + x, \qquad
      n_c = \frac{\lVert x_{\cdot,c} \rVert_2}{\tfrac1C \sum_{c'} \lVert x_{\cdot,c'} \rVert_2
      + \epsilon}$$

    The length is taken over space. Gamma and beta are initially 0, which makes it the identity.

    Args:
        axes: spatial axes. `None`: all between the first and the last.
        eps: added to the mean length.
        scale_init: initial gamma.
        bias_init: initial beta.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        ValueError: a number is outside its range, or `axes` name the channels.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.global_response_norm(scale_init=1.0)
        >>> params, state = norm.init((1, 1, 2))
        >>> y, state = norm.apply(params, state, jnp.array([[[1.0, 3.0]]]), stats="batch")
        >>> [round(v, 3) for v in y.ravel().tolist()]
        [1.5, 7.5]

    Reference:
        Woo, Debnath, Hu, Chen, Liu, Kweon, Xie, "ConvNeXt V2: Co-designing and Scaling ConvNets
        with Masked Autoencoders", 2023.
    """
    return GlobalResponseNorm(**locals())
