"""Measures internal covariate shift in its two meanings: of inputs and of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from normjax._internal import _checks
from normjax.analysis._tree_math import cosine, length, minus, ratio
from normjax.statistics import _moments
from normjax.statistics._types import Array, PyTree


class CovariateShift(NamedTuple):
    """Change of the distribution of each layer's input.

    Attributes:
        mean: change of the mean, in standard deviations from before the step, root mean square
            over the features; `[layers]`.
        spread: logarithm of the ratio of the standard deviations, root mean square over the
            features; `[layers]`.
    """

    mean: Float[Array, " layers"]
    spread: Float[Array, " layers"]


def covariate_shift(
    before: Sequence[Inexact[Array, "..."]],
    after: Sequence[Inexact[Array, "..."]],
    *,
    eps: float = 1e-5,
) -> CovariateShift:
    r"""Measure internal covariate shift as first defined: the change of statistics of layer inputs.

    $$\sqrt{\overline{\Big(\frac{\mu'_i - \mu_i}{\sigma_i}\Big)^2}}, \qquad
      \sqrt{\overline{\Big(\log\frac{\sigma'_i}{\sigma_i}\Big)^2}}$$

    The average is over the features i of a layer, the statistics are over all other axes.

    Args:
        before: input of each layer before a training step, features last; one batch.
        after: input of each layer after it, on the same batch.
        eps: added to the variances, so that a constant feature stays finite.

    Returns:
        `CovariateShift`.

    Raises:
        TypeError: an input is not floating or complex.
        ValueError: the two differ in the number of layers or in features, or are empty.

    Example:
        >>> import jax.numpy as jnp
        >>> from normjax import analysis
        >>> x = jnp.array([[-1.0], [1.0]])
        >>> shift = analysis.covariate_shift([x, x], [x + 0.5, 2 * x])
        >>> [round(v, 3) for v in shift.mean.tolist()], [round(v, 3) for v in shift.spread.tolist()]
        ([0.5, 0.0], [0.0, 0.693])

    Reference:
        Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
        Internal Covariate Shift", 2015, section 2.
    """
    _checks.positive("eps", eps)
    if len(before) != len(after):
        raise ValueError(
            f"before has {len(before)} layers and after {len(after)}: give the input of each"
        )
    if not before:
        raise ValueError("before is empty: give the input of each layer, [batch, features]")
    means, spreads = [], []
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if jnp.shape(old)[-1] != jnp.shape(new)[-1]:
            raise ValueError(
                f"layer {i} had inputs of shape {jnp.shape(old)} and has {jnp.shape(new)}: "
                "features are last"
            )
        m, n = _moments.moments(old, None), _moments.moments(new, None)
        # Change of mean and of log standard deviation of each feature, [features].
        shift = (n.mean - m.mean) / jnp.sqrt(m.var + eps)
        spread = 0.5 * jnp.log((n.var + eps) / (m.var + eps))
        means.append(jnp.sqrt(_moments.mean_square(shift, 0).var))
        spreads.append(jnp.sqrt(_moments.mean_square(spread, 0).var))
    return CovariateShift(jnp.stack(means), jnp.stack(spreads))


class GradientShift(NamedTuple):
    """Change of each layer's gradient that updating the earlier layers causes.

    Attributes:
        l2: ||G - G'||; `[layers]`.
        cosine: cosine of the angle between G and G'; 1 is no change; `[layers]`.
        relative: ||G - G'|| / ||G||; `[layers]`.
    """

    l2: Float[Array, " layers"]
    cosine: Float[Array, " layers"]
    relative: Float[Array, " layers"]


def gradient_shift(
    loss: Callable[[list[PyTree]], jax.Array],
    before: Sequence[PyTree],
    after: Sequence[PyTree],
) -> GradientShift:
    r"""Measure internal covariate shift of gradients: how updating earlier layers changes them.

    $$\|G_i - G'_i\|_2, \qquad
      G_i = \nabla_{W_i} L(W_1, \dots, W_k), \qquad
      G'_i = \nabla_{W_i} L(W'_1, \dots, W'_{i-1}, W_i, \dots, W_k)$$

    W' are the parameters after the step. The shift of the first layer is 0, because no layer is
    before it.

    Args:
        loss: function of the list of the layers' parameters that returns one number; close over
            the batch.
        before: parameters of each layer, in the order of the forward pass. From a dictionary:
            `[params[name] for name in order]`.
        after: parameters of each layer after one training step.

    Returns:
        `GradientShift`.

    Raises:
        ValueError: the two differ in the number of layers, or are empty.

    Example:
        >>> import jax.numpy as jnp
        >>> from normjax import analysis
        >>> loss = lambda w: 0.5 * (w[1] * w[0]) ** 2  # dL/dw[1] = w[1] w[0]^2
        >>> shift = analysis.gradient_shift(loss, [1.0, 2.0], [3.0, 5.0])
        >>> shift.l2.tolist()
        [0.0, 16.0]

    Reference:
        Santurkar, Tsipras, Ilyas, Madry, "How Does Batch Normalization Help Optimization?", 2018,
        definition 2.1.
    """
    if len(before) != len(after):
        raise ValueError(
            f"before has {len(before)} layers and after {len(after)}: give the params of each"
        )
    before, after = (jax.tree.map(jnp.asarray, list(p)) for p in (before, after))
    if not before:
        raise ValueError("before is empty: give the params of each layer, in order")
    gradients = jax.grad(loss)(before)
    shifts = []
    for i, own in enumerate(before):
        # Earlier layers after the step, this one and later ones before it.
        def layer_loss(p: PyTree, i: int = i) -> jax.Array:
            return loss([*after[:i], p, *before[i + 1 :]])

        new, old = jax.grad(layer_loss)(own), gradients[i]
        l2 = length(minus(old, new))
        shifts.append(GradientShift(l2, cosine(old, new), ratio(l2, length(old))))
    return jax.tree.map(lambda *parts: jnp.stack(parts), *shifts)
