"""Weight normalization: the length of each weight vector is a parameter of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax

from normjax import _checks, _direction, _moments, _words
from normjax.base import Array, PyTree, Reparam, Scaled, Stats

Train = Literal["both", "direction", "scale"]


@dataclasses.dataclass(frozen=True, repr=False)
class WeightNorm(Reparam):
    """The value behind `weight_norm`; see there."""

    factory: ClassVar[str] = "weight_norm"

    axes: tuple[int, ...] | None = None
    log_scale: bool = False
    train: Train = "both"

    def init(self, w: Array, *, key: jax.Array | None = None) -> tuple[Scaled, PyTree]:
        """Return `(Scaled(w, ||w||), ())`; `key` is not used."""
        del key
        w = _checks.floating(w, self.factory)
        axes = reduced(self.axes, w.ndim, self.factory)
        g = _direction.length(w, axes)
        # A zero vector has no direction, and no gradient would ever reach it.
        v = jnp.where(g > 0, w, jnp.ones_like(w))
        return Scaled(v, self.as_g(jnp.squeeze(g, axes))), ()

    def apply(self, params: Scaled, state: PyTree, *, stats: Stats) -> tuple[jax.Array, PyTree]:
        """Return `(g v / ||v||, state)`."""
        _checks.stats(stats)
        v, g = jnp.asarray(params.v), params.g
        axes = reduced(self.axes, v.ndim, self.factory)
        if self.train == "direction":
            g = lax.stop_gradient(g)
        elif self.train == "scale":
            v = lax.stop_gradient(v)
        unit = _direction.unit(v, axes)
        gain = self.gain(jnp.asarray(g).astype(jnp.finfo(unit.dtype).dtype))
        return times(unit, gain, axes).astype(v.dtype), state

    def gain(self, g: Array) -> jax.Array:
        """Return the gain that a stored g stands for."""
        return jnp.exp(g) if self.log_scale else jnp.asarray(g)

    def as_g(self, gain: Array) -> jax.Array:
        """Return the g that stands for a gain; the logarithm of 0 is that of the least number."""
        gain = jnp.asarray(gain)
        if not self.log_scale:
            return gain
        return jnp.log(jnp.maximum(gain, jnp.finfo(gain.dtype).tiny))


@_words.told()
def weight_norm(
    *,
    axes: int | Sequence[int] | None = None,
    log_scale: bool = False,
    train: Train = "both",
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
        A `Reparam` with params `Scaled(v, g)`, g of the shape of the other axes, at least
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
    _checks.one_of("train", train, ("both", "direction", "scale"))
    return WeightNorm(axes=_checks.axes(axes), log_scale=log_scale, train=train)


@dataclasses.dataclass(frozen=True, repr=False)
class WeightStandardization(Reparam):
    """The value behind `weight_standardization`; see there."""

    factory: ClassVar[str] = "weight_standardization"

    axes: tuple[int, ...] | None = None
    eps: float = 1e-10
    use_gain: bool = False
    fan_in: bool = False

    def init(self, w: Array, *, key: jax.Array | None = None) -> tuple[Scaled, PyTree]:
        """Return `(Scaled(w, 1 or None), ())`; `key` is not used."""
        del key
        w = _checks.floating(w, self.factory)
        axes = reduced(self.axes, w.ndim, self.factory)
        kept = tuple(s for a, s in enumerate(w.shape) if a not in axes)
        real = jnp.finfo(_moments.stat_dtype(w.dtype)).dtype
        return Scaled(w, jnp.ones(kept, real) if self.use_gain else None), ()

    def apply(self, params: Scaled, state: PyTree, *, stats: Stats) -> tuple[jax.Array, PyTree]:
        """Return the standardized weight."""
        _checks.stats(stats)
        v = jnp.asarray(params.v)
        axes = reduced(self.axes, v.ndim, self.factory)
        m = _moments.moments(v, axes)
        gain = jnp.ones_like(m.var) if params.g is None else params.g
        gain = jnp.asarray(gain).astype(m.var.dtype)
        if self.fan_in:
            gain = gain * lax.rsqrt(m.count)
        kept = [a for a in range(v.ndim) if a not in axes]
        scale = _moments.expand(gain, kept, v.ndim)
        return _moments.normalize(v, m, axes, scale=scale, eps=self.eps), state


@_words.told()
def weight_standardization(
    *,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-10,
    use_gain: bool = False,
    fan_in: bool = False,
) -> Reparam:
    r"""Weight standardization: zero mean and unit variance in each output feature's weights.

    $$w = g\,\frac{v - \mu_v}{\sqrt{\sigma_v^2 + \epsilon}}, \qquad
      \mu_v, \sigma_v^2 \text{ over the } n \text{ weights into one output feature}$$

    It changes the function at the start, by what it is. A normalization of the outputs is
    expected behind it, for which it was made; without one use `fan_in`.

    Args:
        axes: axes of one set of weights; `None` is all but the last.
        eps: added to the variance; 1e-10 is the square of the 1e-5 that the authors' code adds
            to the standard deviation. Weights have variances near 1/n, so 1e-5 would be large.
        use_gain: learn a gain g for each output feature, which starts at 1.
        fan_in: divide by sqrt(n) too: inputs of unit variance then give outputs of unit variance
            (scaled weight standardization).

    Returns:
        A `Reparam` with params `Scaled(v, g or None)` and no state.

    Raises:
        ValueError: `eps` not positive, axes that name nothing.

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
    _checks.positive("eps", eps)
    return WeightStandardization(_checks.axes(axes), eps, use_gain, fan_in)


def reduced(axes: tuple[int, ...] | None, ndim: int, who: str) -> tuple[int, ...]:
    """Return the axes of one weight vector as sorted non-negative ints."""
    if axes is None and ndim < 2:
        raise ValueError(
            f"{who}() takes all axes but the last as one vector, and a weight of {ndim} axis(es) "
            f"has no other: write {who}(axes=0), or leave biases and gains out of the rules"
        )
    return _checks.resolve_axes(axes, ndim)


def times(unit: jax.Array, gain: Array, axes: Sequence[int]) -> jax.Array:
    """Return `gain` of the axes that remain times `unit`."""
    kept = [a for a in range(unit.ndim) if a not in axes]
    return unit * _moments.expand(gain, kept, unit.ndim).astype(unit.dtype)
