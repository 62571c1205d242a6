"""Checks gradients of norms and weights against the identities that their formulas imply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from normjax._internal import _checks
from normjax.analysis._tree_math import length, minus, probe, ratio
from normjax.base import DirectionAndGain, Norm, Reparam
from normjax.statistics import _formulas, _moments, _shapes
from normjax.statistics._types import Array, PyTree


class NormIdentities(NamedTuple):
    """Residual of each identity, for every set of values with a common mean and variance.

    Attributes:
        mean: |mean of dx| divided by the root mean square of dx; 0 if the norm is invariant to
            shifts.
        orthogonal: cosine between dx and the centred x; 0 if it is invariant to rescaling.
        projection: distance of dx from the explicit formula of the backward pass, relative to it;
            0 for methods that subtract a mean and divide by a standard deviation.
        damping: sum of dx^2 divided by that of g^2 / (var + eps); at most 1 for these methods.
    """

    mean: Float[Array, "*sets"]
    orthogonal: Float[Array, "*sets"]
    projection: Float[Array, "*sets"]
    damping: Float[Array, "*sets"]


def norm_identities(
    norm: Norm,
    x: Inexact[Array, "*shape"],
    *,
    axes: int | Sequence[int] | None = None,
    groups: int = 1,
    cotangent: Inexact[Array, "*shape"] | None = None,
    params: PyTree = None,
    eps: float | None = None,
) -> NormIdentities:
    r"""Check the gradient of a norm against the identities that its formula implies.

    $$dx = \frac{1}{\sqrt{\sigma^2 + \epsilon}} \Big(g - \overline{g}
      - \hat{x}\, \overline{g \hat{x}}\Big), \qquad g = \gamma \odot dy, \qquad
      \overline{dx} = 0, \qquad \langle dx, \hat{x} \rangle = 0, \qquad
      \|dx\|^2 \le \frac{\|g\|^2}{\sigma^2 + \epsilon}$$

    Averages are over one set of values: the batch for batch norm, the features of a sample for
    layer norm. The gradient is centred, orthogonal to the normalized values and at most as long
    as that of a plain division. Orthogonality holds up to eps / (var + eps).

    Args:
        norm: any norm; an identity that does not hold for it has a large residual.
        x: input.
        axes: axes of one set; `None` is all but the last (batch norm), -1 is for layer norm.
        groups: number of groups that the last axis is split into, each with its own sets; `axes`
            must then include -1, for group norm `axes=(1, 2, -1)`.
        cotangent: dy, the gradient of a loss with respect to the output; `None` is random.
        params: parameters of the norm; `None` are those of its `init`.
        eps: number that the norm adds to the variance; `None` is `norm.eps`, or 0 if it has none.

    Returns:
        `NormIdentities` of the shape of the axes that remain, with groups as an additional last
        axis.

    Raises:
        TypeError: `x` is not floating or complex.
        ValueError: axes or groups do not fit `x`.

    Example:
        >>> import jax, normjax as nj
        >>> from normjax import analysis
        >>> x = jax.random.normal(jax.random.key(0), (32, 5))
        >>> residual = analysis.norm_identities(nj.batch_norm(), x)
        >>> bool(residual.mean.max() < 1e-5), bool(residual.projection.max() < 1e-5)
        (True, True)
        >>> analysis.norm_identities(nj.layer_norm(), x, axes=-1).damping.shape
        (32,)

    Reference:
        Ioffe, Szegedy, "Batch Normalization", 2015, section 3; Xu, Sun, Zhang, Zhao, Lin,
        "Understanding and Improving Layer Normalization", 2019 (mean and variance of dx).
    """
    x = _checks.floating(x, "norm_identities")
    _checks.positive_int("groups", groups)
    if x.shape[-1] % groups:
        raise ValueError(f"groups={groups} do not divide the {x.shape[-1]} features of x")
    fresh, state = norm.init(x.shape, x.dtype, key=jax.random.key(1))
    params = fresh if params is None else params
    eps = getattr(norm, "eps", 0.0) if eps is None else eps
    if cotangent is None:
        cotangent = probe(x)

    def apply(v: jax.Array) -> jax.Array:
        return norm.apply(params, state, v, stats="batch")[0]

    # dx from the norm, and g = gamma * dy for the formula.
    _, back = jax.vjp(apply, x)
    (dx,) = back(jnp.asarray(cotangent).astype(x.dtype))
    scale = getattr(params, "scale", None)
    g = _formulas.affine(jnp.asarray(cotangent).astype(_shapes.stat_dtype(x.dtype)), scale, None)

    # With groups, from here on [..., groups, features per group].
    resolved = _checks.resolve_axes(axes, x.ndim)
    averaged = tuple(a + 1 if a == x.ndim - 1 and groups > 1 else a for a in resolved)

    def split(v: jax.Array) -> jax.Array:
        v = v.astype(_shapes.stat_dtype(v.dtype))
        return v if groups == 1 else v.reshape(*v.shape[:-1], groups, v.shape[-1] // groups)

    x, dx, g = split(x), split(dx), split(g)
    remaining = [a for a in range(x.ndim) if a not in averaged]
    m = _moments.moments(x, averaged)

    def mean(v: jax.Array) -> Array:
        return _moments.means(v, averaged).mean

    def expand(v: Array) -> jax.Array:
        return _shapes.expand(v, remaining, x.ndim)

    # The formula of the docstring, to compare with dx.
    deviation = jnp.sqrt(m.var + jnp.asarray(eps, m.var.dtype))
    centred = x - expand(m.mean)
    x_hat = centred / expand(jnp.where(deviation > 0, deviation, 1))
    formula = (g - expand(mean(g)) - x_hat * expand(mean(g * x_hat))) / expand(deviation)
    size, size_formula = _rms(dx, averaged), _rms(formula, averaged)
    return NormIdentities(
        ratio(jnp.abs(mean(dx)), size),
        ratio(jnp.abs(mean(dx * centred)), size * jnp.sqrt(m.var)),
        ratio(_rms(dx - formula, averaged), size_formula),
        ratio((size * deviation) ** 2, _rms(g, averaged) ** 2),
    )


class WeightIdentities(NamedTuple):
    """Residual of each identity of the gradient with respect to the parameters of a `Reparam`.

    Attributes:
        orthogonal: cosine between v and its gradient, for each weight vector.
        projection: distance of the gradient of v from the explicit formula, relative to it; 0 for
            weight norm.
        growth: ||v'|| / ||v|| after one step of gradient descent, for each weight vector.
        predicted_growth: sqrt(1 + c^2), c = ||v' - v|| / ||v||; equal to `growth` if v and its
            gradient are orthogonal, so that v never gets shorter.
    """

    orthogonal: Float[Array, "*vectors"]
    projection: Float[Array, ""]
    growth: Float[Array, "*vectors"]
    predicted_growth: Float[Array, "*vectors"]


def weight_identities(
    method: Reparam,
    w: Inexact[Array, "*shape"],
    loss: Callable[[jax.Array], jax.Array],
    *,
    learning_rate: float = 0.1,
    axes: int | Sequence[int] | None = None,
) -> WeightIdentities:
    r"""Check the gradient of a reparametrized weight against weight norm's identities.

    $$\nabla_v L = \frac{g}{\|v\|}\Big(I - \frac{v v^T}{\|v\|^2}\Big) \nabla_w L, \qquad
      \langle v, \nabla_v L \rangle = 0, \qquad
      \|v - \eta \nabla_v L\| = \sqrt{1 + c^2}\, \|v\|, \quad
      c = \frac{\eta \|\nabla_v L\|}{\|v\|}$$

    A gradient that is orthogonal to v makes v longer with every step, and the longer v is, the
    smaller is the angle of the next step: the effective step size adapts automatically. For other
    methods the residuals show how far the first two identities hold.

    Args:
        method: a `Reparam` that stores `DirectionAndGain(v, g)`.
        w: the initial weight.
        loss: function of the weight that returns one number.
        learning_rate: learning rate of the one step that is taken on v.
        axes: axes of one weight vector; `None` is all but the last.

    Returns:
        `WeightIdentities`, of the shape of the axes that remain.

    Raises:
        TypeError: the method does not store a `v`.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> from normjax import analysis
        >>> w = jax.random.normal(jax.random.key(0), (6, 3))
        >>> loss = lambda w: jnp.sum(jnp.sin(w))
        >>> residual = analysis.weight_identities(nj.weight_norm(), w, loss)
        >>> bool(residual.orthogonal.max() < 1e-5), bool(residual.growth.min() > 1)
        (True, True)

    Reference:
        Salimans, Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate
        Training of Deep Neural Networks", 2016, section 2.1, equation 3.
    """
    _checks.positive("learning_rate", learning_rate)
    w = _checks.floating(w, "weight_identities")
    reduced = _checks.resolve_axes(axes, w.ndim)
    stored, state = method.init(w)
    if not isinstance(stored, DirectionAndGain):
        raise TypeError(f"{method!r} stores no v: its identities are not those of weight norm")

    def make(v: jax.Array) -> jax.Array:
        return method.apply(stored._replace(v=v), state, stats="batch")[0]

    # Gradients of the loss with respect to the weight and, through the method, to v.
    weight, back = jax.vjp(make, stored.v)
    dw = jax.grad(loss)(weight)
    (dv,) = back(dw)
    wide = _shapes.stat_dtype(w.dtype)
    v, dv, dw, weight = (jnp.asarray(a).astype(wide) for a in (stored.v, dv, dw, weight))

    def total(a: jax.Array) -> jax.Array:
        return jnp.sum(a, reduced, keepdims=True)

    size = jnp.sqrt(total(v**2))
    # g of the formula is the length of the weight, however the method stores it.
    gain = jnp.sqrt(total(weight**2))
    formula = gain / size * (dw - v * total(v * dw) / size**2)
    after = v - learning_rate * dv
    c = learning_rate * jnp.sqrt(total(dv**2)) / size

    def squeezed(a: jax.Array) -> jax.Array:
        return jnp.squeeze(a, reduced)

    return WeightIdentities(
        squeezed(ratio(jnp.abs(total(v * dv)), size * jnp.sqrt(total(dv**2)))),
        ratio(length(minus(dv, formula)), length(formula)),
        squeezed(jnp.sqrt(total(after**2)) / size),
        squeezed(jnp.sqrt(1 + c**2)),
    )


def _rms(v: Any, axes: Sequence[int]) -> jax.Array:
    """Return the root mean square over `axes`."""
    return jnp.sqrt(_moments.mean_square(v, axes).var)
