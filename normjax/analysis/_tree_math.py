"""Computes with pytrees as vectors: lengths, angles and steps, in at least float32."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from normjax.statistics._shapes import stat_dtype
from normjax.statistics._types import PyTree


def probe(like: jax.Array) -> jax.Array:
    """Return fixed random values, from a seed that is unlikely to have produced the data too."""
    return jax.random.normal(jax.random.key(16180339), like.shape, like.dtype)


def common_dtype(tree: PyTree) -> jnp.dtype:
    """Return the dtype for lengths and angles: the widest of the leaves, at least float32."""
    dtypes = [stat_dtype(jnp.asarray(leaf).dtype) for leaf in jax.tree.leaves(tree)]
    if not dtypes:
        raise ValueError("there is no array in the tree: give a tree with at least one array")
    return max(dtypes, key=lambda d: d.itemsize)


def length(tree: PyTree) -> jax.Array:
    """Return the L2 norm over all leaves.

    It scales by the largest entry first, because squares of float32 values below 1e-23 are 0.
    """
    leaves = [leaf.astype(common_dtype(tree)) for leaf in map(jnp.asarray, jax.tree.leaves(tree))]
    largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x), initial=0.0) for x in leaves])
    safe = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return largest * jnp.sqrt(functools.reduce(jnp.add, [jnp.sum((x / safe) ** 2) for x in leaves]))


def dot(a: PyTree, b: PyTree) -> jax.Array:
    """Return the inner product of two trees of the same structure."""
    wide = common_dtype(a)
    products = jax.tree.map(
        lambda x, y: jnp.sum(jnp.asarray(x).astype(wide) * jnp.asarray(y).astype(wide)), a, b
    )
    return functools.reduce(jnp.add, jax.tree.leaves(products))


def minus(a: PyTree, b: PyTree) -> PyTree:
    """Return the difference of two trees of the same structure."""
    return jax.tree.map(jnp.subtract, a, b)


def times(a: PyTree, factor: jax.Array) -> PyTree:
    """Multiply each leaf by one number, in the dtype of the leaf."""
    return jax.tree.map(lambda x: x * jnp.asarray(factor).astype(jnp.asarray(x).dtype), a)


def moved(a: PyTree, direction: PyTree, distance: Any) -> PyTree:
    """Return `a + distance * direction`, each leaf in its own dtype."""
    return jax.tree.map(jnp.add, a, times(direction, distance))


def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return `a / b`, and 0 where a is 0, even if b is 0 too."""
    return a / jnp.where(a == 0, jnp.ones_like(b), b)


def cosine(a: PyTree, b: PyTree) -> jax.Array:
    """Return the cosine of the angle between two trees; 0 if one of them is 0."""
    size_a, size_b = length(a), length(b)
    one = jnp.ones_like(size_a)
    unit_a = times(a, 1 / jnp.where(size_a > 0, size_a, one))
    unit_b = times(b, 1 / jnp.where(size_b > 0, size_b, one))
    return dot(unit_a, unit_b)
