"""Weight normalization: separate parameters for length and direction of each weight vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from normjax._internal import _checks, _hints
from normjax.base import DirectionAndGain, Reparam, Stats
from normjax.state._names import named
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
        """Check the fields and bring `axes` into canonical form."""
        _checks.one_of("train", self.train, get_args(Train))
        _checks.set_field(self, "axes", _checks.axes(self.axes))

    def init(self, w: Array, *, key: jax.Array | None = None) -> tuple[DirectionAndGain, PyTree]:
        """Return `(DirectionAndGain(w, ||w||), ())`; `key` is not used.

        Args:
            w: the initial weight, floating or complex.
            key: not used.

        Returns:
            `(params, ())`; `apply` gives back `w`.

        Raises:
            TypeError: `w` is not floating or complex.
            ValueError: `axes` do not fit `w`.
        """
        del key
        w = _checks.floating(w, self.factory)
        axes = resolve_reduced_axes(self.axes, w.ndim, self.factory)
        g = _direction.length(w, axes)  # size 1 on `axes`
        # A zero vector has no direction and would never receive a gradient.
        v = jnp.where(g > 0, w, jnp.ones_like(w))
        return DirectionAndGain(v, self.as_g(jnp.squeeze(g, axes))), ()

    def apply(self, params: PyTree, state: PyTree, *, stats: Stats) -> tuple[jax.Array, PyTree]:
        """Return `(g v / ||v||, state)`.

        Args:
            params: what `init` returned, after any number of optimizer steps.
            state: `()`.
            stats: `"batch"` or `"running"`; both modes are the same.

        Returns:
            `(w, ())`, with `w` of the shape and dtype of `v`.
        """
        _checks.stats(stats)
        params = named(DirectionAndGain, params, "v")
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
        """Return the gain for a stored g: exp(g) with `log_scale`, else g."""
        return jnp.exp(g) if self.log_scale else jnp.asarray(g)

    def as_g(self, gain: Array) -> jax.Array:
        """Return the g to store for a gain; with `log_scale` its logarithm, bounded below."""
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
    r"""Weight normalization: separates length and direction of each weight vector.

    $$w = g\,\frac{v}{\|v\|}, \qquad
      \nabla_g L = \frac{v \cdot \nabla_w L}{\|v\|}, \qquad
      \nabla_v L = \frac{g}{\|v\|}\Big(I - \frac{v v^T}{\|v\|^2}\Big)\nabla_w L$$

    Initially v = w and g = ||w||, so the layer's function is unchanged. If a weight vector is 0, v
    is (1, ..., 1) and g is 0: w is initially 0 and g can learn.

    Args:
        axes: axes of one vector. `None`, all but the last, gives one length for each output
            feature of a Flax kernel; dense layers of PyTorch and Equinox, which have outputs
            first, need `axes=1`. All axes give one length for the whole array.
        log_scale: store s = log(g) as `params.g`, which keeps g positive. A weight vector that is
            initially 0 then stays 0, because the gradient of s has the factor g.
        train: which parts receive gradients: `"both"`, only the `"direction"` v or only the
            `"scale"` g.

    Returns:
        A `Reparam` with params `DirectionAndGain(v, g)` and no state. g has the shape of the other
        axes and is at least float32, so that half precision does not round the length of v.

    Raises:
        ValueError: `train` is unknown, or `axes` are empty or repeat an axis.

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
