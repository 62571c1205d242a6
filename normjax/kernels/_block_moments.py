"""Statistics of what is on the chip, as `normjax.moments` takes them from memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def centred(
    x: jax.Array, axis: int, count: float | jax.Array, inside: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Mean over `axis`, of size 1 there, and `x - mean`: two passes, the first corrected.

    Of a large mean one sum leaves a rounding error that is large beside the spread; the second
    finds it. What is not `inside` must be 0, and stays so.
    """
    mean, d = _subtract(x, axis, count, inside)
    rest, d = _subtract(d, axis, count, inside)
    return mean + rest, d


def _subtract(
    x: jax.Array, axis: int, count: float | jax.Array, inside: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    mean = jnp.sum(x, axis, keepdims=True) / jnp.asarray(count, jnp.float32)
    d = x - mean
    return mean, d if inside is None else jnp.where(inside, d, 0.0)
