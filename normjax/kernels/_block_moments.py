"""Mean and centred values of a block inside a kernel, as exact as those of `normjax.moments`."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def centred(
    x: jax.Array, axis: int, count: float | jax.Array, inside: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the mean over `axis`, which keeps size 1, and `x - mean`, both from two passes.

    If the mean is large, one sum leaves a rounding error that is large compared with the spread;
    the second pass corrects it. Values that are not `inside` must be 0 and stay 0.
    """
    mean, d = _subtract(x, axis, count, inside)
    rest, d = _subtract(d, axis, count, inside)
    return mean + rest, d


def _subtract(
    x: jax.Array, axis: int, count: float | jax.Array, inside: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Subtract the mean over `axis` in one pass; return the mean and the difference."""
    mean = jnp.sum(x, axis, keepdims=True) / jnp.asarray(count, jnp.float32)
    d = x - mean
    return mean, d if inside is None else jnp.where(inside, d, 0.0)
