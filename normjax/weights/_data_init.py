"""Initializes gains and biases of weight-normalized layers from a batch of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Inexact

from normjax._internal import _checks
from normjax.base import Affine, DirectionAndGain, Reparam
from normjax.statistics import _formulas, _moments, _shapes
from normjax.statistics._types import Array, AxisName
from normjax.weights import _weight_norm

Linear = Callable[[jax.Array, jax.Array], jax.Array]
Activation = Callable[[jax.Array], jax.Array]


def data_dependent_init(
    t: Inexact[Array, "*batch features"],
    *,
    eps: float = 1e-10,
    scale: float = 1.0,
    mask: Bool[Array, "..."] | None = None,
    axis_name: AxisName = None,
) -> Affine:
    r"""Return the gain and bias that give pre-activations mean 0 and variance 1 on this batch.

    $$t = \frac{v \cdot x}{\|v\|}, \qquad g \leftarrow \frac{1}{\sigma[t]}, \qquad
      b \leftarrow -\frac{\mu[t]}{\sigma[t]}, \qquad y = g\,t + b$$

    Args:
        t: pre-activations computed with weight vectors of length 1, features last.
        eps: added to the variance; a feature that is constant on the batch gets g = 1/sqrt(eps).
        scale: target standard deviation.
        mask: True where a value counts; rank of `t`.
        axis_name: device axis or axes that the batch is split over.

    Returns:
        `Affine(scale=g, bias=b)`, `[features]`, at least float32. Carries no gradient.

    Raises:
        TypeError: `t` is not floating or complex.
        ValueError: `eps` or `scale` is not positive.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> g, b = nj.data_dependent_init(jnp.array([[1.0], [5.0]]))
        >>> float(g[0]), float(b[0])
        (0.5, -1.5)

    Reference:
        Salimans, Kingma, "Weight Normalization", 2016, equations 5 and 6.
    """
    _checks.positive("eps", eps)
    _checks.positive("scale", scale)
    m = lax.stop_gradient(_moments.moments(t, None, mask=mask, axis_name=axis_name))
    g = scale * lax.rsqrt(m.var + eps)
    return Affine(scale=g, bias=-m.mean * g.astype(m.mean.dtype))


def data_dependent_stack(
    layers: Sequence[tuple[Linear, Activation]],
    params: Sequence[Mapping[str, Any]],
    x: Inexact[Array, "..."],
    *,
    norm: Reparam | None = None,
    eps: float = 1e-10,
    scale: float = 1.0,
    axis_name: AxisName = None,
) -> tuple[tuple[dict[str, Any], ...], jax.Array]:
    """Initialize a stack of dense and convolutional layers in one forward pass of one batch.

    The input of each layer is the output of the layers before it, with the gains just computed.

    Args:
        layers: `(linear, activation)` for each layer: `linear(w, x)` is the layer without bias,
            such as `lambda w, x: x @ w` or a convolution, features last; `activation(y)` is
            everything between it and the next layer, including pooling.
        params: `{"kernel": w, "bias": b}` for each layer, with Flax's names; a layer without
            `"bias"` gets only a gain.
        x: one batch of inputs; the paper's code uses 500 examples.
        norm: the `weight_norm(...)` to reparametrize the kernels with; `None` is `weight_norm()`.
        eps: as in `data_dependent_init`.
        scale: as in `data_dependent_init`.
        axis_name: device axis or axes that the batch is split over.

    Returns:
        `(params, y)`: for each layer its parameters with `DirectionAndGain(v, g)` as `"kernel"`,
        and the output of the stack.

    Raises:
        TypeError: `norm` is not a `weight_norm`.
        ValueError: the numbers of layers and params differ, or gains do not fit the features.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> x = jax.random.normal(jax.random.key(0), (64, 3))
        >>> w = jax.random.normal(jax.random.key(1), (3, 2))
        >>> dense = (lambda w, x: x @ w, lambda y: y)
        >>> params, y = nj.data_dependent_stack([dense], [{"kernel": w, "bias": jnp.ones(2)}], x)
        >>> bool(jnp.allclose(y.mean(0), 0, atol=1e-5) & jnp.allclose(y.std(0), 1, atol=1e-4))
        True

    Reference:
        Salimans, Kingma, "Weight Normalization", 2016, section 3.
    """
    norm = _weight_norm.weight_norm() if norm is None else norm
    if not isinstance(norm, _weight_norm.WeightNorm):
        raise TypeError(f"norm={norm!r} must be a weight_norm(...): no other has a gain to set")
    if len(layers) != len(params):
        raise ValueError(f"{len(layers)} layers and {len(params)} params: give one for each")
    y, out = jnp.asarray(x), []
    for i, ((linear, activation), own) in enumerate(zip(layers, params, strict=True)):
        stored, state = norm.init(own["kernel"])
        # With gains of 1 the weight vectors have length 1, as the formula needs.
        w, _ = norm.apply(
            stored._replace(g=norm.as_g(jnp.ones_like(stored.g))), state, stats="batch"
        )
        t = linear(w, y)
        gain, bias = data_dependent_init(t, eps=eps, scale=scale, axis_name=axis_name)
        assert gain is not None and bias is not None
        if gain.shape != stored.g.shape:
            raise ValueError(
                f"layer {i} returns features of shape {gain.shape} and {norm!r} has gains of "
                f"shape {stored.g.shape}: its axes must leave the output features alone"
            )
        kernel = DirectionAndGain(stored.v, norm.as_g(gain.astype(stored.g.dtype)))
        initialized = {**own, "kernel": kernel}
        if "bias" in own:
            initialized["bias"] = bias.astype(jnp.asarray(own["bias"]).dtype)
        out.append(initialized)
        shift = bias if "bias" in own else None
        wide = _shapes.stat_dtype(t.dtype)
        y = activation(_formulas.affine(t.astype(wide), gain, shift).astype(t.dtype))
    return tuple(out), y
