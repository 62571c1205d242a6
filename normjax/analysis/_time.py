"""What a loss feels of the past: gradients through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from normjax.base import Array, PyTree, Stats
from normjax.recurrent import Recurrent


class GradientThroughTime(NamedTuple):
    """How a loss depends on the hidden state of each step.

    Attributes:
        norm: L2 norm over the units of dLoss/dh_t, mean over the batch; `[time]`.
        gradient: dLoss/dh_t, `[batch, time, hidden]`.
        loss: the loss.
    """

    norm: Float[Array, " time"]
    gradient: Float[Array, "batch time hidden"]
    loss: Float[Array, ""]


def gradient_through_time(
    layer: Recurrent,
    params: PyTree,
    state: PyTree,
    x: Inexact[Array, "batch time features"],
    loss: Callable[[jax.Array, PyTree], jax.Array],
    *,
    stats: Stats = "batch",
    **keywords: Any,
) -> GradientThroughTime:
    r"""Gradient of a loss with respect to the hidden state of every step.

    $$\Big\| \frac{\partial L}{\partial h_t} \Big\|_2, \quad t = 1 \dots T$$

    It is the total derivative: through every later step, and through the batch statistics
    in mode `"batch"`.

    Args:
        layer: a batch-major recurrent layer.
        params: its parameters.
        state: its state.
        x: inputs.
        loss: function of the outputs `[batch, time, hidden]` and the last carry; a mean over
            the batch carries its 1 / batch into the result.
        stats: `"batch"` or `"running"`.
        keywords: other arguments of `layer.apply`, such as `lengths` or `key`.

    Returns:
        `GradientThroughTime`.

    Raises:
        ValueError: the layer is time-major.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import analysis, recurrent
        >>> layer = recurrent.rnn(4)
        >>> params, state = layer.init(jax.random.key(0), features=2)
        >>> last = lambda y, carry: carry.sum()
        >>> g = analysis.gradient_through_time(layer, params, state, jnp.ones((3, 6, 2)), last)
        >>> g.norm.shape, float(g.norm[-1])
        ((6,), 2.0)

    Reference:
        Cooijmans et al., "Recurrent Batch Normalization", 2017, section 4 and figure 1.
    """
    if layer.time_major:
        raise ValueError("gradient_through_time takes a batch-major layer: write time_major=False")
    x = jnp.asarray(x)

    def run(nudge: jax.Array) -> jax.Array:
        (y, carry), _ = layer.apply(params, state, x, stats=stats, nudge=nudge, **keywords)
        return loss(y, carry)

    zero = jnp.zeros((*x.shape[:2], layer.hidden), x.dtype)
    value, gradient = jax.value_and_grad(run)(zero)
    # Scaled: the square of a float32 is 0 below 1e-23, where the gradient itself is not.
    largest = jnp.max(jnp.abs(gradient), axis=-1, keepdims=True)
    unit = gradient / jnp.where(largest > 0, largest, 1)
    norm = largest[..., 0] * jnp.linalg.norm(unit, axis=-1)
    return GradientThroughTime(norm.mean(0), gradient, value)
