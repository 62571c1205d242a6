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


ACTIVATION_BY_NAME: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": tanh,
    "relu": jax.nn.relu,
    # Deep Speech 2: min(max(z, 0), 20).
    "clipped_relu": lambda z: jnp.clip(z, 0, 20),
}
