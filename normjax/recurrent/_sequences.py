"""Sequences: padding, reversal, carries. Time-major `[time, batch, …]` throughout."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from normjax.base import Array, PyTree


def padding(lengths: Array | None, steps: int, batch: int) -> jax.Array | None:
    """Return `[time, batch, 1]`, True on the steps of each sequence; `None` where all count."""
    if lengths is None:
        return None
    # Known lengths are checked now, also inside jit, where a jnp array would be a tracer.
    known = None if isinstance(lengths, jax.core.Tracer) else np.asarray(lengths)
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"lengths must be integers, one a sequence, and are {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(
            f"lengths of shape {lengths.shape} must be [batch] = ({batch},): the number of steps "
            "of each sequence (a mask is written mask.sum(time_axis))"
        )
    if known is not None:
        low, high = int(known.min()), int(known.max())
        if low < 0 or high > steps:
            raise ValueError(f"lengths from {low} to {high} do not fit sequences of {steps} steps")
    return (jnp.arange(steps)[:, None] < lengths[None, :])[..., None]


def reverse(x: jax.Array, lengths: Array | None) -> jax.Array:
    """Reverse each sequence of `[time, batch, …]` within its length; padding stays behind."""
    if lengths is None:
        return jnp.flip(x, 0)
    steps = jnp.arange(x.shape[0])[:, None]
    # A traced length cannot be refused; one past the end is the end, as in the mask.
    lengths = jnp.clip(jnp.asarray(lengths)[None, :], 0, x.shape[0])
    index = jnp.where(steps < lengths, lengths - 1 - steps, steps)
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=0)


def given_carry(carry: PyTree, zero: PyTree) -> PyTree:
    """Return a user's carry in the structure and dtype of ours; Flax's `(c, h)` tuple is fine."""
    want, got = jax.tree.leaves(zero), jax.tree.leaves(carry)
    if [jnp.shape(w) for w in want] != [jnp.shape(g) for g in got]:
        raise ValueError(
            f"carry has shapes {[jnp.shape(g) for g in got]} and must be "
            f"{type(zero).__name__} of shapes {[w.shape for w in want]}"
        )
    leaves = [jnp.asarray(g).astype(w.dtype) for g, w in zip(got, want, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(zero), leaves)


def vary_like(tree: PyTree, x: jax.Array) -> PyTree:
    """Mark a carry as varying over the device axes of `x`, which a scan in `shard_map` needs."""

    def varying(leaf: Any) -> tuple[str, ...]:
        kind = getattr(jax.typeof(leaf), "manual_axis_type", None)
        return tuple(getattr(kind, "varying", None) or ())

    axes = varying(x)

    def mark(leaf: jax.Array) -> jax.Array:
        have = varying(leaf)
        missing = tuple(a for a in axes if a not in have)
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, tree)
