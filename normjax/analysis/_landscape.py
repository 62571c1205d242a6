"""Measures how well a gradient predicts loss and gradient along its own direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from normjax.analysis._tree_math import cosine, length, minus, moved, ratio
from normjax.statistics._types import Array, PyTree


class GradientPredictiveness(NamedTuple):
    """Loss and gradient after a gradient step, for several step sizes.

    Attributes:
        step_sizes: eta; `[steps]`.
        loss: loss at w - eta g; `[steps]`.
        gradient_change: L2 distance between the gradient there and g; `[steps]`.
        cosine: cosine of the angle between the two; `[steps]`.
        smoothness: `gradient_change` divided by the distance moved, eta ||g||; `[steps]`.
        beta: largest value of `smoothness`, the effective beta-smoothness.
        start_loss: loss at w.
        gradient_norm: ||g||.
    """

    step_sizes: Float[Array, "*runs steps"]
    loss: Float[Array, "*runs steps"]
    gradient_change: Float[Array, "*runs steps"]
    cosine: Float[Array, "*runs steps"]
    smoothness: Float[Array, "*runs steps"]
    beta: Float[Array, "*runs"]
    start_loss: Float[Array, "*runs"]
    gradient_norm: Float[Array, "*runs"]


def gradient_predictiveness(
    loss: Callable[[PyTree], jax.Array], params: PyTree, step_sizes: Float[Array, " steps"]
) -> GradientPredictiveness:
    r"""Measure loss and gradient along the direction of the gradient, and the effective smoothness.

    $$L(w - \eta g), \qquad \|\nabla L(w - \eta g) - g\|_2, \qquad
      \beta = \max_\eta \frac{\|\nabla L(w - \eta g) - g\|_2}{\eta \|g\|_2}, \qquad
      g = \nabla L(w)$$

    For a quadratic loss beta does not depend on eta and is at most the largest absolute eigenvalue
    of the Hessian. Otherwise it is a lower bound of the Lipschitz constant of the gradient, along
    the one direction that training takes.

    Args:
        loss: function of the parameters that returns one number; close over the batch.
        params: pytree of floating arrays.
        step_sizes: eta, not 0; in the paper's figure a range around the learning rate.

    Returns:
        `GradientPredictiveness`. Results of several training steps, stacked with
        `jax.tree.map(lambda *a: jnp.stack(a), *results)`, are plotted as bands over training.

    Example:
        >>> import jax.numpy as jnp
        >>> from normjax import analysis
        >>> loss = lambda w: 0.5 * 3.0 * (w @ w)
        >>> result = analysis.gradient_predictiveness(loss, jnp.ones(2), jnp.array([0.1, 0.2]))
        >>> round(float(result.beta), 4)
        3.0

    Reference:
        Santurkar, Tsipras, Ilyas, Madry, "How Does Batch Normalization Help Optimization?", 2018,
        section 3.1 and figure 4.
    """
    start_loss, gradient = jax.value_and_grad(loss)(params)
    size = length(gradient)

    def after_step(step_size: jax.Array) -> tuple[jax.Array, ...]:
        value, other = jax.value_and_grad(loss)(moved(params, gradient, -step_size))
        change = length(minus(other, gradient))
        smoothness = ratio(change, jnp.abs(step_size).astype(size.dtype) * size)
        return value, change, cosine(other, gradient), smoothness

    step_sizes = jnp.asarray(step_sizes)
    # One step size after the other, so that one further gradient is in memory at a time.
    values, change, angle, smoothness = lax.map(after_step, step_sizes)
    return GradientPredictiveness(
        step_sizes, values, change, angle, smoothness, jnp.max(smoothness), start_loss, size
    )
