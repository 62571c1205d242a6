"""The backward pass on paper and in the machine: identities that gradients must obey."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from normjax._internal import _checks
from normjax.analysis._tree_math import length, minus, probe, ratio
from normjax.base import DirectionAndGain, Norm, Reparam
from normjax.statistics import _formulas, _measure, _shapes
from normjax.statistics._types import Array, PyTree


class NormIdentities(NamedTuple):
    """What is left of each identity, for every set of values that has one mean and variance.

    Attributes:
        mean: |mean of dx| over the root mean square of dx; 0 where a shift changes nothing.
        orthogonal: cosine between dx and the centred x; 0 where a rescaling changes nothing.
        projection: distance of dx from the written-out backward pass, relative to it; 0 for
            methods that subtract a mean and divide by a standard deviation.
        damping: sum of dx^2 over that of g^2 / (var + eps); at most 1 for these.
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

    with the averages over one set of values: the batch for batch norm, the features of a sample
    for layer norm. The gradient is centred, orthogonal to the normalized values and no longer
    than that of a plain division. Orthogonality holds up to eps / (var + eps).

    Args:
        norm: any norm; what does not hold for it shows as a residual.
        x: input.
        axes: axes of one set; `None` is all but the last (batch norm), -1 that of a layer norm.
        groups: number of groups that the last axis is cut into, each with sets of its own; give
            `axes` with -1 among them, as for group norm `axes=(1, 2, -1)`.
        cotangent: dy, the gradient of a loss with respect to the output; `None` draws one.
        params: parameters of the norm; `None` are those of its `init`.
        eps: what the norm adds to the variance; `None` is `norm.eps`, or 0 where it has none.

    Returns:
        `NormIdentities` of the shape of the axes that remain (with groups an axis more, last).

    Raises:
        ValueError: axes or groups that do not fit x.

    Example:
        >>> import jax, normjax as nj
        >>> from normjax import analysis
        >>> x = jax.random.normal(jax.random.key(0), (32, 5))
        >>> left = analysis.norm_identities(nj.batch_norm(), x)
        >>> bool(left.mean.max() < 1e-5), bool(left.projection.max() < 1e-5)
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

    _, back = jax.vjp(apply, x)
    (dx,) = back(jnp.asarray(cotangent).astype(x.dtype))
    scale = getattr(params, "scale", None)
    g = _formulas.affine(jnp.asarray(cotangent).astype(_shapes.stat_dtype(x.dtype)), scale, None)

    # From here on [..., groups, features of a group].
    resolved = _checks.resolve_axes(axes, x.ndim)
    over = tuple(a + 1 if a == x.ndim - 1 and groups > 1 else a for a in resolved)

    def cut(v: jax.Array) -> jax.Array:
        v = v.astype(_shapes.stat_dtype(v.dtype))
        return v if groups == 1 else v.reshape(*v.shape[:-1], groups, v.shape[-1] // groups)

    x, dx, g = cut(x), cut(dx), cut(g)
    kept = [a for a in range(x.ndim) if a not in over]
    m = _measure.moments(x, over)

    def mean(v: jax.Array) -> Array:
        return _measure.means(v, over).mean

    def spread(v: Array) -> jax.Array:
        return _shapes.expand(v, kept, x.ndim)

    deviation = jnp.sqrt(m.var + jnp.asarray(eps, m.var.dtype))
    centred = x - spread(m.mean)
    x_hat = centred / spread(jnp.where(deviation > 0, deviation, 1))
    written = (g - spread(mean(g)) - x_hat * spread(mean(g * x_hat))) / spread(deviation)
    size, size_written = _rms(dx, over), _rms(written, over)
    return NormIdentities(
        ratio(jnp.abs(mean(dx)), size),
        ratio(jnp.abs(mean(dx * centred)), size * jnp.sqrt(m.var)),
        ratio(_rms(dx - written, over), size_written),
        ratio((size * deviation) ** 2, _rms(g, over) ** 2),
    )


class WeightIdentities(NamedTuple):
    """What is left of each identity of a gradient with respect to what a `Reparam` stores.

    Attributes:
        orthogonal: cosine between v and its gradient, for each weight vector.
        projection: distance of the gradient of v from the written-out one, relative to it; 0 for
            weight norm.
        growth: ||v'|| / ||v|| after one step of gradient descent, for each weight vector.
        predicted_growth: sqrt(1 + c^2), c = ||v' - v|| / ||v||; `growth` where v and its gradient
            are orthogonal, so that v never gets shorter.
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

    A gradient that is orthogonal to v makes v longer with every step, and the longer v the
    smaller the next step's angle: the step size settles by itself. What holds of the first two
    for another method is what is measured.

    Args:
        method: a `Reparam` that stores `DirectionAndGain(v, g)`.
        w: the weight at the start.
        loss: function of the weight to one number.
        learning_rate: of the one step that is taken on v.
        axes: axes of one weight vector; `None` is all but the last.

    Returns:
        `WeightIdentities`, of the shape of the axes that remain.

    Raises:
        TypeError: the method stores no `v`.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> from normjax import analysis
        >>> w = jax.random.normal(jax.random.key(0), (6, 3))
        >>> left = analysis.weight_identities(nj.weight_norm(), w, lambda w: jnp.sum(jnp.sin(w)))
        >>> bool(left.orthogonal.max() < 1e-5), bool(left.growth.min() > 1)
        (True, True)

    Reference:
        Salimans, Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate
        Training of Deep Neural Networks", 2016, section 2.1, equation 3.
    """
    _checks.positive("learning_rate", learning_rate)
    w = _checks.floating(w, "weight_identities")
    over = _checks.resolve_axes(axes, w.ndim)
    stored, state = method.init(w)
    if not isinstance(stored, DirectionAndGain):
        raise TypeError(f"{method!r} stores no v: its identities are not those of weight norm")

    def make(v: jax.Array) -> jax.Array:
        return method.apply(stored._replace(v=v), state, stats="batch")[0]

    made, back = jax.vjp(make, stored.v)
    at_w = jax.grad(loss)(made)
    (dv,) = back(at_w)
    wide = _shapes.stat_dtype(w.dtype)
    v, dv, at_w, made = (jnp.asarray(a).astype(wide) for a in (stored.v, dv, at_w, made))

    def total(a: jax.Array) -> jax.Array:
        return jnp.sum(a, over, keepdims=True)

    size = jnp.sqrt(total(v**2))
    # g of the formula, whatever the method calls it: the length of the weight that it makes.
    gain = jnp.sqrt(total(made**2))
    written = gain / size * (at_w - v * total(v * at_w) / size**2)
    after = v - learning_rate * dv
    c = learning_rate * jnp.sqrt(total(dv**2)) / size

    def squeezed(a: jax.Array) -> jax.Array:
        return jnp.squeeze(a, over)

    return WeightIdentities(
        squeezed(ratio(jnp.abs(total(v * dv)), size * jnp.sqrt(total(dv**2)))),
        ratio(length(minus(dv, written)), length(written)),
        squeezed(jnp.sqrt(total(after**2)) / size),
        squeezed(jnp.sqrt(1 + c**2)),
    )


def _rms(v: Any, axes: Sequence[int]) -> jax.Array:
    return jnp.sqrt(_measure.mean_square(v, axes).var)
