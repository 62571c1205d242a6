"""Weight normalization: the length of each weight vector is a parameter of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from normjax._internal import _checks, _hints
from normjax.base import DirectionAndGain, Reparam, Stats
from normjax.statistics._types import Array, PyTree
from normjax.weights import _direction
from normjax.weights._direction import resolve_reduced_axes, scale_by_gain

Train = Literal["both", "direction", "scale"]


@dataclasses.dataclass(frozen=True, repr=False)
class WeightNorm(Reparam):
    """Weight normalization as a value; made by `weight_norm`."""

    factory: ClassVar[str] = "weight_norm"

    axes: int | Sequence[int] | None = None
    log_scale: bool = False
    train: str = "both"

    def __post_init__(self) -> None:
        """Refuse an unknown `train` and axes that name nothing."""
        _checks.one_of("train", self.train, get_args(Train))
        _checks.set_field(self, "axes", _checks.axes(self.axes))

    def init(self, w: Array, *, key: jax.Array | None = None) -> tuple[DirectionAndGain, PyTree]:
        """Return `(DirectionAndGain(w, ||w||), ())`; `key` is not used."""
        del key
        w = _checks.floating(w, self.factory)
        axes = resolve_reduced_axes(self.axes, w.ndim, self.factory)
        g = _direction.length(w, axes)
        # A zero vector has no direction, and no gradient would ever reach it.
        v = jnp.where(g > 0, w, jnp.ones_like(w))
        return DirectionAndGain(v, self.as_g(jnp.squeeze(g, axes))), ()

    def apply(
        self, params: DirectionAndGain, state: PyTree, *, stats: Stats
    ) -> tuple[jax.Array, PyTree]:
        """Return `(g v / ||v||, state)`."""
        _checks.stats(stats)
        v, g = jnp.asarray(params.v), params.g
        axes = resolve_reduced_axes(self.axes, v.ndim, self.factory)
        if self.train == "direction":
            g = lax.stop_gradient(g)
        elif self.train == "scale":
            v = lax.stop_gradient(v)
        unit = _direction.unit(v, axes)
        gain = self.gain(jnp.asarray(g).astype(jnp.finfo(unit.dtype).dtype))
        return scale_by_gain(unit, gain, axes).astype(v.dtype), state

    def gain(self, g: Array) -> jax.Array:
        """Return the gain that a stored g stands for."""
        return jnp.exp(g) if self.log_scale else jnp.asarray(g)

    def as_g(self, gain: Array) -> jax.Array:
        """Return the g that stands for a gain; the logarithm of 0 is that of the least number."""
        gain = jnp.asarray(gain)
        if not self.log_scale:
            return gain
        return jnp.log(jnp.maximum(gain, jnp.finfo(gain.dtype).tiny))


@_hints.with_hints()
def weight_norm(
    *,
    axes: int | Sequence[int] | None = None,
    log_scale: bool = False,
    train: str = "both",
) -> Reparam:
    r"""Weight normalization: length and direction of each weight vector apart.

    $$w = g\,\frac{v}{\|v\|}, \qquad
      \nabla_g L = \frac{v \cdot \nabla_w L}{\|v\|}, \qquad
      \nabla_v L = \frac{g}{\|v\|}\Big(I - \frac{v v^T}{\|v\|^2}\Big)\nabla_w L$$

    At the start v = w and g = ||w||, so that the function is unchanged. Where w is 0, v points
    along (1, ..., 1) and g is 0: w stays 0 and g learns.

    Args:
        axes: axes of one vector. `None`, all but the last, is one length for each output
            feature of a Flax kernel; PyTorch's and Equinox's dense layers, outputs first, have
            `axes=1`. All axes give the one length of the whole array.
        log_scale: store s with g = exp(s), which keeps g positive; g is then `params.g`'s exp.
            A weight vector that is 0 then stays 0 for good: exp(s) cannot leave it.
        train: what gradients reach: `"both"`, the `"direction"` v alone or the `"scale"` g alone.

    Returns:
        A `Reparam` with params `DirectionAndGain(v, g)`, g of the shape of the other axes, at least
        float32 so that it is the length of v in half precision too. No state.

    Raises:
        ValueError: unknown `train`, axes that name nothing.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.weight_norm()
        >>> params, state = norm.init(jnp.array([[3.0, 0.0], [4.0, 2.0]]))
        >>> params.g.tolist()
        [5.0, 2.0]
        >>> w, state = norm.apply(params._replace(g=jnp.ones(2)), state, stats="batch")
        >>> [round(x, 3) for x in w[:, 0].tolist()]
        [0.6, 0.8]

    Reference:
        Salimans, Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate
        Training of Deep Neural Networks", 2016, equations 2 and 3.
    """
    return WeightNorm(**locals())
