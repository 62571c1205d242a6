"""Weight standardization: zero mean and unit variance of the weights of each output feature."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from normjax._internal import _checks, _hints
from normjax.base import DirectionAndGain, Reparam, Stats
from normjax.state._names import named
from normjax.statistics import _moments, _normalize, _shapes
from normjax.statistics._types import Array, PyTree
from normjax.weights import _direction
from normjax.weights._direction import resolve_reduced_axes


@dataclasses.dataclass(frozen=True, repr=False)
class WeightStandardization(Reparam):
    """Weight standardization as a value; made by `weight_standardization`."""

    factory: ClassVar[str] = "weight_standardization"

    axes: int | Sequence[int] | None = None
    eps: float = 1e-10
    use_gain: bool = False
    fan_in: bool = False

    def __post_init__(self) -> None:
        """Check the fields and bring `axes` into canonical form."""
        _checks.positive("eps", self.eps)
        _checks.set_field(self, "axes", _checks.axes(self.axes))

    def init(self, w: Array, *, key: jax.Array | None = None) -> tuple[DirectionAndGain, PyTree]:
        """Return `(DirectionAndGain(w, 1 or None), ())`; `key` is not used.

        Args:
            w: the initial weight, floating or complex.
            key: not used.

        Returns:
            `(params, ())`.

        Raises:
            TypeError: `w` is not floating or complex.
            ValueError: `axes` do not fit `w`.
        """
        del key
        w = _checks.floating(w, self.factory)
        axes = resolve_reduced_axes(self.axes, w.ndim, self.factory)
        outputs = tuple(s for a, s in enumerate(w.shape) if a not in axes)
        real = jnp.finfo(_shapes.stat_dtype(w.dtype)).dtype
        return DirectionAndGain(w, jnp.ones(outputs, real) if self.use_gain else None), ()

    def apply(self, params: PyTree, state: PyTree, *, stats: Stats) -> tuple[jax.Array, PyTree]:
        """Return `(w, state)` with the standardized weight.

        Args:
            params: what `init` returned, after any number of optimizer steps.
            state: `()`.
            stats: `"batch"` or `"running"`; both modes are the same.

        Returns:
            `(w, ())`, with `w` of the shape and dtype of `v`.
        """
        _checks.stats(stats)
        params = named(DirectionAndGain, params, "v")
        narrow = jnp.asarray(params.v)
        v = _shapes.widen_half(narrow)
        axes = resolve_reduced_axes(self.axes, v.ndim, self.factory)
        remaining = [a for a in range(v.ndim) if a not in axes]
        # As in `_direction.unit`: a scale taken out of v and, squared, out of eps changes nothing,
        # and no square overflows. A power of two, so that no weight is rounded.
        exponent = jnp.frexp(jnp.maximum(_direction.size(v, axes), 1))[1]
        size = jnp.ldexp(jnp.ones((), jnp.finfo(v.dtype).dtype), exponent - 1)
        v = v / size.astype(v.dtype)
        m = _moments.moments(v, axes)
        eps = jnp.maximum(self.eps / size / size, jnp.finfo(size.dtype).tiny)
        m = m._replace(var=m.var + jnp.squeeze(eps, axes))
        gain = jnp.ones_like(m.var) if params.g is None else params.g
        gain = jnp.asarray(gain).astype(m.var.dtype)
        if self.fan_in:  # m.count is n, the number of weights into one output
            gain = gain * lax.rsqrt(m.count)
        scale = _shapes.expand(gain, remaining, v.ndim)
        w = _normalize.normalize(v, m, axes, scale=scale, eps=0.0)
        return w.astype(narrow.dtype), state


@_hints.with_hints()
def weight_standardization(
    *,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-10,
    use_gain: bool = False,
    fan_in: bool = False,
) -> Reparam:
    r"""Weight standardization: gives the weights of each output feature mean 0 and variance 1.

    $$w = g\,\frac{v - \mu_v}{\sqrt{\sigma_v^2 + \epsilon}}, \qquad
      \mu_v, \sigma_v^2 \text{ over the } n \text{ weights into one output feature}$$

    Unlike weight norm, it does not preserve the layer's function at initialization. It was
    designed for layers followed by a normalization of their outputs; without one use `fan_in`.

    Args:
        axes: axes of one set of weights; `None` is all but the last.
        eps: added to the variance; 1e-10 is the square of the 1e-5 that the authors' code adds
            to the standard deviation. Weights have variances near 1/n, so 1e-5 would be large.
        use_gain: learn a gain g for each output feature, initially 1.
        fan_in: also divide by sqrt(n), so that inputs of unit variance give outputs of unit
            variance (scaled weight standardization).

    Returns:
        A `Reparam` with params `DirectionAndGain(v, g or None)` and no state.

    Raises:
        ValueError: `eps` is not positive, or `axes` are empty or repeat an axis.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> params, state = nj.weight_standardization().init(jnp.array([[1.0], [3.0]]))
        >>> nj.weight_standardization().apply(params, state, stats="batch")[0].ravel().tolist()
        [-1.0, 1.0]

    Reference:
        Qiao, Wang, Liu, Shen, Yuille, "Micro-Batch Training with Batch-Channel Normalization and
        Weight Standardization", 2019; Brock, De, Smith, "Characterizing signal propagation to
        close the performance gap in unnormalized ResNets", 2021 (`fan_in` and gain).
    """
    return WeightStandardization(**locals())
