"""Carries: the hidden state in one, noise on it, and zoneout between two."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from normjax.statistics._types import PyTree


def hidden_of(carry: PyTree) -> jax.Array:
    """Return the hidden state of a carry, whatever the cell."""
    return carry.h if hasattr(carry, "h") else carry


def with_hidden(carry: PyTree, h: jax.Array) -> PyTree:
    """Return a carry with another hidden state."""
    return carry._replace(h=h) if hasattr(carry, "h") else h


def with_noise(carry: PyTree, deviation: float, key: jax.Array) -> PyTree:
    """Add noise to the hidden state, and to nothing else."""
    h = hidden_of(carry)
    noise = jnp.asarray(deviation, h.dtype) * jax.random.normal(key, h.shape, h.dtype)
    return with_hidden(carry, h + noise)


def zoneout(key: jax.Array | None, rate: float, old: jax.Array, new: jax.Array) -> jax.Array:
    """Keep each old value with probability `rate`, or mix by it where there is no key."""
    if not rate:
        return new
    if key is None:
        share = jnp.asarray(rate, new.dtype)
        return share * old + (1 - share) * new
    return jnp.where(jax.random.bernoulli(key, rate, new.shape), old, new)
