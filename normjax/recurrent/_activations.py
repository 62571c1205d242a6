"""Nonlinearities whose values the backward pass keeps: `exp` costs more than a product.

Their derivative is a function of the value alone. JAX's own rules use the value from before a
name could be given to it, so the rules here give the name first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from normjax._internal._checkpoint_names import ACTIVATIONS, checkpoint_name


@jax.custom_jvp
def sigmoid(z: jax.Array) -> jax.Array:
    """Logistic function, for gates."""
    return jax.nn.sigmoid(z)


@sigmoid.defjvp
def _sigmoid_jvp(primals: Any, tangents: Any) -> Any:
    value = checkpoint_name(jax.nn.sigmoid(primals[0]), ACTIVATIONS)
    return value, tangents[0] * value * (1 - value)


@jax.custom_jvp
def tanh(z: jax.Array) -> jax.Array:
    """Hyperbolic tangent, for candidates and outputs."""
    return jnp.tanh(z)


@tanh.defjvp
def _tanh_jvp(primals: Any, tangents: Any) -> Any:
    value = checkpoint_name(jnp.tanh(primals[0]), ACTIVATIONS)
    # 1 - value**2 without the rounding of a square near 1.
    return value, (tangents[0] + tangents[0] * value) * (1 - value)


def _lstm_gates(z: jax.Array) -> jax.Array:
    i, f, g, o = jnp.split(z, 4, axis=-1)
    gates = [jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)]
    return jnp.concatenate(gates, axis=-1)


@jax.custom_jvp
def lstm_gates(z: jax.Array) -> list[jax.Array]:
    """Return sigmoid of blocks i, f, o and tanh of block g, of `[batch, 4 * hidden]` in i, f, g, o.

    Backward, they are read from one array, which a loop stores at once.
    """
    return jnp.split(_lstm_gates(z), 4, axis=-1)


@lstm_gates.defjvp
def _lstm_gates_jvp(primals: Any, tangents: Any) -> Any:
    gates = jnp.split(checkpoint_name(_lstm_gates(primals[0]), ACTIVATIONS), 4, axis=-1)
    dz = jnp.split(tangents[0], 4, axis=-1)
    # Of a sigmoid v (1 - v), of tanh (1 + v) (1 - v).
    slopes = [(1 + v if k == 2 else v) * (1 - v) for k, v in enumerate(gates)]
    return gates, [d * slope for d, slope in zip(dz, slopes, strict=True)]


ACTIVATION_BY_NAME: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": tanh,
    "relu": jax.nn.relu,
    # Deep Speech 2: min(max(z, 0), 20).
    "clipped_relu": lambda z: jnp.clip(z, 0, 20),
}
