"""What a loss feels of the past: gradients and Jacobians through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Inexact

from normjax.base import Stats
from normjax.recurrent import Recurrent
from normjax.recurrent._carry import hidden_of
from normjax.recurrent._checks import check_single
from normjax.statistics._shapes import stat_dtype
from normjax.statistics._types import Array, PyTree


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
        TypeError: no single layer.
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
    _batch_major(layer, "gradient_through_time")
    x = jnp.asarray(x)

    def run(hidden_perturbation: jax.Array) -> jax.Array:
        (y, carry), _ = layer.apply(
            params, state, x, stats=stats, hidden_perturbation=hidden_perturbation, **keywords
        )
        return loss(y, carry)

    zero = jnp.zeros((*x.shape[:2], layer.hidden), x.dtype)
    value, gradient = jax.value_and_grad(run)(zero)
    # Scaled: the square of a float32 is 0 below 1e-23, where the gradient itself is not.
    largest = jnp.max(jnp.abs(gradient), axis=-1, keepdims=True)
    unit = gradient / jnp.where(largest > 0, largest, 1)
    norm = largest[..., 0] * jnp.linalg.norm(unit, axis=-1)
    return GradientThroughTime(norm.mean(0), gradient, value)


class JacobianThroughTime(NamedTuple):
    """Singular values of what one hidden state does to a later one, largest first.

    A *system* is what one Jacobian is taken of: each sequence by itself, or the whole batch at
    once where its statistics tie the sequences together.

    Attributes:
        step: of dh_{t+1} / dh_t, t = 1 ... T - 1; `[systems, time - 1, size]`.
        product: of dh_T / dh_t, the total derivative through all steps between;
            `[systems, time - 1, size]`.
    """

    step: Float[Array, "systems steps size"]
    product: Float[Array, "systems steps size"]


def jacobian_through_time(
    layer: Recurrent,
    params: PyTree,
    state: PyTree,
    x: Inexact[Array, "batch time features"],
    *,
    stats: Stats = "running",
    **keywords: Any,
) -> JacobianThroughTime:
    r"""Singular values of the hidden-to-hidden Jacobians of a recurrent layer.

    $$\sigma_i\Big(\frac{\partial h_{t+1}}{\partial h_t}\Big), \qquad
      \sigma_i\Big(\frac{d h_T}{d h_t}\Big), \quad t = 1 \dots T - 1$$

    Values near 1 let a gradient through; products of values below 1 vanish and above 1 explode.
    For a layer whose carry is h alone the second is the product of the first over the steps. An
    LSTM's cell is a path of its own: from h_t to h_{t+1} the cell c_t is held, and dh_T/dh_t
    contains all that goes through the later cells.

    Exact, by forward mode with one direction a unit and step: meant for small layers. It runs
    (T - 1) `size` tangents through the sequence, and in mode `"batch"` `size` is
    batch times hidden.

    Args:
        layer: a batch-major recurrent layer.
        params: its parameters.
        state: its state.
        x: inputs, at least two steps.
        stats: `"running"`, or `"batch"`: with a norm that keeps statistics each h then depends on
            every sequence of the batch, and the Jacobian is that of the whole batch.
        keywords: other arguments of `layer.apply`, such as `lengths` or `key`.

    Returns:
        `JacobianThroughTime`.

    Raises:
        TypeError: no single layer.
        ValueError: the layer is time-major, or x has one step.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import analysis, recurrent
        >>> layer = recurrent.rnn(3, recurrent_init="identity")
        >>> params, state = layer.init(jax.random.key(0), features=2)
        >>> jacobian = analysis.jacobian_through_time(layer, params, state, jnp.zeros((1, 4, 2)))
        >>> jacobian.product[0, 0].tolist()  # tanh has slope 1 at 0
        [1.0, 1.0, 1.0]

    Reference:
        Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013,
        section 2; Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of
        learning in deep linear neural networks", 2014 (singular values of products).
    """
    _batch_major(layer, "jacobian_through_time")
    x = jnp.asarray(x)
    batch, time, hidden = x.shape[0], x.shape[1], layer.hidden
    if time < 2:
        raise ValueError(f"x of shape {x.shape} has one step: a Jacobian leads from one to another")
    # Kept weights (a power iteration's) tie nothing: it is the norms that meet the whole batch.
    coupled = stats == "batch" and any(n.norm.stateful for n in layer.norms().values())

    def run(hidden_perturbation: jax.Array) -> tuple[jax.Array, jax.Array]:
        (y, carry), _ = layer.apply(
            params, state, x, stats=stats, hidden_perturbation=hidden_perturbation, **keywords
        )
        return y, hidden_of(carry)

    zero = jnp.zeros((batch, time, hidden), x.dtype)
    if coupled:
        directions = jnp.eye(batch * hidden, dtype=x.dtype).reshape(-1, batch, hidden)
    else:
        # Sequences do not meet, so one tangent pushes the same unit of all of them.
        eye = jnp.eye(hidden, dtype=x.dtype)[:, None]
        directions = jnp.broadcast_to(eye, (hidden, batch, hidden))

    def singular(moved: jax.Array) -> jax.Array:
        """From `[direction, batch, hidden]` to the singular values of each system."""
        moved = moved.astype(stat_dtype(moved.dtype))
        rows = moved.reshape(1, len(moved), -1) if coupled else jnp.swapaxes(moved, 0, 1)
        return jnp.linalg.svd(rows, compute_uv=False)

    def at(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        def push(direction: jax.Array) -> tuple[jax.Array, jax.Array]:
            _, (dy, dlast) = jax.jvp(run, (zero,), (zero.at[:, t].set(direction),))
            return jnp.take(dy, t + 1, axis=1), dlast

        step, last = jax.vmap(push)(directions)
        return singular(step), singular(last)

    step, product = lax.map(at, jnp.arange(time - 1))
    return JacobianThroughTime(jnp.swapaxes(step, 0, 1), jnp.swapaxes(product, 0, 1))


def _batch_major(layer: Any, who: str) -> None:
    check_single(layer, who)
    if layer.time_major:
        raise ValueError(f"{who} takes a batch-major layer: write time_major=False")
