"""Sequences: padding, reversal, carries. Time-major `[time, batch, …]` throughout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from normjax._internal import _checks
from normjax._internal._manual_axes import vary, varying
from normjax.statistics._types import Array, PyTree


def padding(lengths: Array | None, steps: int, batch: int) -> jax.Array | None:
    """Return `[time, batch, 1]`, True on the steps of each sequence; `None` where all count."""
    if lengths is None:
        return None
    lengths = _checks.lengths("lengths", lengths, steps, (batch,))
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


def checked_carry(carry: PyTree, zero: PyTree) -> PyTree:
    """Return a user's carry in the structure and dtype of `zero`."""
    if hasattr(zero, "_fields") and type(carry) in (tuple, list):
        # Flax's order is (c, h) and torch's (h, c), and their shapes are the same.
        name, fields = type(zero).__name__, ", ".join(f"{f}=…" for f in zero._fields)
        raise TypeError(
            f"a plain {type(carry).__name__} does not say which is which in a carry: write "
            f"carry={name}({fields})"
        )
    want, got = jax.tree.leaves(zero), jax.tree.leaves(carry)
    if [jnp.shape(w) for w in want] != [jnp.shape(g) for g in got]:
        raise ValueError(
            f"carry has shapes {[jnp.shape(g) for g in got]} and must be "
            f"{type(zero).__name__} of shapes {[w.shape for w in want]}"
        )
    leaves = [jnp.asarray(g).astype(w.dtype) for g, w in zip(got, want, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(zero), leaves)


def vary_like(tree: PyTree, x: jax.Array) -> PyTree:
    """Give a carry the device axes of x `[time, batch, …]`, which a scan needs to go on with it.

    Inside `shard_map` it varies over them; on explicit axes of a mesh its batch is split over them.
    """
    batch = jax.typeof(x).sharding.spec[1]
    if batch is not None:
        tree = jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, PartitionSpec(batch)), tree)
    axes = varying(x)
    if not axes:
        return tree
    return jax.tree.map(lambda leaf: vary(leaf, axes), tree)
