"""Computes gradients and Jacobians of a recurrent layer through time."""

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
    """Gradient of a loss with respect to the hidden state of each step.

    Attributes:
        norm: L2 norm over the units of dLoss/dh_t, mean over the batch; `[time]`.
        gradient: dLoss/dh_t, `[batch, time, hidden]`.
        loss: value of the loss.
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
    r"""Compute the gradient of a loss with respect to the hidden state of every step.

    $$\Big\| \frac{\partial L}{\partial h_t} \Big\|_2, \quad t = 1 \dots T$$

    It is the total derivative, through every later step and, in mode `"batch"`, through the batch
    statistics.

    Args:
        layer: a batch-major recurrent layer.
        params: its parameters.
        state: its state.
        x: inputs.
        loss: function of the outputs `[batch, time, hidden]` and the last carry; if it is a mean
            over the batch, the gradients have its factor 1 / batch.
        stats: `"batch"` or `"running"`.
        keywords: other arguments of `layer.apply`, such as `lengths` or `key`.

    Returns:
        `GradientThroughTime`.

    Raises:
        TypeError: `layer` is not a single recurrent layer.
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

    # The gradient of a perturbation of h_t, taken at 0, is that of h_t.
    zero = jnp.zeros((*x.shape[:2], layer.hidden), x.dtype)
    value, gradient = jax.value_and_grad(run)(zero)
    # Scale first: squares of float32 values below 1e-23 are 0.
    largest = jnp.max(jnp.abs(gradient), axis=-1, keepdims=True)
    unit = gradient / jnp.where(largest > 0, largest, 1)
    norm = largest[..., 0] * jnp.linalg.norm(unit, axis=-1)
    return GradientThroughTime(norm.mean(0), gradient, value)


class JacobianThroughTime(NamedTuple):
    """Singular values of the Jacobians from one hidden state to a later one, largest first.

    There is one Jacobian per *system*: each sequence is a system, or the whole batch is one if
    batch statistics couple its sequences.

    Attributes:
        step: those of dh_{t+1} / dh_t, t = 1 ... T - 1; `[systems, time - 1, size]`.
        product: those of dh_T / dh_t, the total derivative through all steps between;
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
    r"""Compute the singular values of the hidden-to-hidden Jacobians of a recurrent layer.

    $$\sigma_i\Big(\frac{\partial h_{t+1}}{\partial h_t}\Big), \qquad
      \sigma_i\Big(\frac{d h_T}{d h_t}\Big), \quad t = 1 \dots T - 1$$

    Values near 1 preserve a gradient; products of values below 1 vanish, of values above 1
    explode. If the carry is h alone, the second Jacobian is the product of the first over the
    steps. The cell of an LSTM is a separate path: dh_{t+1}/dh_t is taken with the cell c_t
    constant, and dh_T/dh_t includes the paths through all later cells.

    The result is exact, by forward mode with one direction for each unit and step, which suits
    small layers. It pushes (T - 1) `size` tangents through the sequence; if the sequences are
    coupled, `size` is batch times hidden.

    Args:
        layer: a batch-major recurrent layer.
        params: its parameters.
        state: its state.
        x: inputs, at least two steps.
        stats: `"running"`, or `"batch"`: with a norm that uses batch statistics each h then
            depends on every sequence of the batch, and the Jacobian is that of the whole batch.
        keywords: other arguments of `layer.apply`, such as `lengths` or `key`.

    Returns:
        `JacobianThroughTime`.

    Raises:
        TypeError: `layer` is not a single recurrent layer.
        ValueError: the layer is time-major, or x has only one step.

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
    # Only norms couple the sequences of a batch; other states, such as a power iteration's, do not.
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
        # Sequences are independent, so one tangent can perturb the same unit of all of them.
        eye = jnp.eye(hidden, dtype=x.dtype)[:, None]
        directions = jnp.broadcast_to(eye, (hidden, batch, hidden))

    def singular_values(tangents: jax.Array) -> jax.Array:
        """From tangents `[direction, batch, hidden]` to `[systems, size]`."""
        tangents = tangents.astype(stat_dtype(tangents.dtype))
        # [1, batch * hidden, batch * hidden] or [batch, hidden, hidden].
        rows = tangents.reshape(1, len(tangents), -1) if coupled else jnp.swapaxes(tangents, 0, 1)
        return jnp.linalg.svd(rows, compute_uv=False)

    def at(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Perturb h_t in each direction; read the tangents of h_{t+1} and of h_T.
        def push(direction: jax.Array) -> tuple[jax.Array, jax.Array]:
            _, (dy, dlast) = jax.jvp(run, (zero,), (zero.at[:, t].set(direction),))
            return jnp.take(dy, t + 1, axis=1), dlast

        step, last = jax.vmap(push)(directions)
        return singular_values(step), singular_values(last)

    # [time - 1, systems, size] each.
    step, product = lax.map(at, jnp.arange(time - 1))
    return JacobianThroughTime(jnp.swapaxes(step, 0, 1), jnp.swapaxes(product, 0, 1))


def _batch_major(layer: Any, who: str) -> None:
    """Raise unless `layer` is a single batch-major recurrent layer."""
    check_single(layer, who)
    if layer.time_major:
        raise ValueError(f"{who} takes a batch-major layer: write time_major=False")
