"""Makes few arrays of many small ones: what a loop reads, writes or adds up once a step.

On a GPU each small array costs a kernel, longer to start than to run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from normjax.statistics._types import Moments, PyTree


def join_moments(tree: PyTree, axis: int) -> PyTree:
    """Return the tree with mean and variance of each `Moments` stacked: their gradient is one."""

    def join(m: Any) -> Any:
        if not isinstance(m, Moments) or m.mean.dtype != m.var.dtype:
            return m
        return Joined(jnp.stack([m.mean, m.var], axis), m.count)

    return jax.tree.map(join, tree, is_leaf=lambda m: isinstance(m, Moments))


def split_moments(tree: PyTree) -> PyTree:
    """Return what `join_moments` was given, one step of it."""
    return jax.tree.map(
        lambda m: Moments(m.both[0], m.both[1], m.count) if isinstance(m, Joined) else m,
        tree,
        is_leaf=lambda m: isinstance(m, Joined),
    )


class Joined(NamedTuple):
    """`Moments` with mean and variance in one array."""

    both: jax.Array
    count: Any


class Constant(NamedTuple):
    """A NumPy array that can be hashed and compared."""

    dtype: np.dtype
    shape: tuple[int, ...]
    data: bytes

    def array(self) -> np.ndarray:
        """Return the array, read-only."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stacked:
    """The leaves of a tree, those of one shape and dtype in one array.

    Attributes:
        arrays: stacked leaves `[leaves, ...]`; in front of that, outside of a loop, its steps.
        treedef: the tree.
        places: of each leaf its array and position in it; or the leaf, a constant of the trace.
    """

    arrays: list[jax.Array]
    treedef: Any = dataclasses.field(metadata={"static": True})
    places: tuple[tuple[int, int] | Constant, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, tree: PyTree) -> Stacked:
        """Stack the leaves in their order; NumPy arrays are constants, which no loop writes."""
        leaves, treedef = jax.tree.flatten(tree)
        groups: dict[Any, list[jax.Array]] = {}
        places: list[tuple[int, int] | Constant] = []
        for leaf in leaves:
            if isinstance(leaf, np.ndarray):
                places.append(Constant(leaf.dtype, leaf.shape, leaf.tobytes()))
                continue
            group = groups.setdefault(jax.typeof(leaf), [])
            places.append((list(groups).index(jax.typeof(leaf)), len(group)))
            group.append(leaf)
        return cls([jnp.stack(group) for group in groups.values()], treedef, tuple(places))

    def of_steps(self, steps: int) -> PyTree:
        """Return the tree of all steps, each leaf with a leading axis of them."""
        leaves = [
            jnp.broadcast_to(place.array(), (steps, *place.shape))
            if isinstance(place, Constant)
            else self.arrays[place[0]][:, place[1]]
            for place in self.places
        ]
        return jax.tree.unflatten(self.treedef, leaves)


def join_vectors(tree: PyTree) -> tuple[list[jax.Array], Callable[[list[jax.Array]], PyTree]]:
    """Join the leaves with one axis longer than 1, by dtype, and return the way back.

    The gradient of each of the joined arrays is one sum over the steps of a loop.
    """
    leaves, treedef = jax.tree.flatten(tree)
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault(_joins(leaf) or i, []).append(i)
    arrays = [
        leaves[group[0]]
        if len(group) == 1
        else jnp.concatenate([leaves[i].reshape(-1) for i in group])
        for group in groups.values()
    ]

    def split(arrays: list[jax.Array]) -> PyTree:
        found = dict.fromkeys(range(len(leaves)))
        for group, array in zip(groups.values(), arrays, strict=True):
            if len(group) == 1:
                found[group[0]] = array
                continue
            # Its transpose is one concatenation.
            parts = lax.split(array, [leaves[i].size for i in group])
            for i, part in zip(group, parts, strict=True):
                found[i] = part.reshape(leaves[i].shape)
        return jax.tree.unflatten(treedef, [found[i] for i in range(len(leaves))])

    return arrays, split


def _joins(leaf: jax.Array) -> tuple[Any, ...] | None:
    """What leaves that can be joined have in common; `None` for one that stays as it is."""
    if not isinstance(leaf, jax.Array):
        return None
    kind = jax.typeof(leaf)
    split = any(names is not None for names in kind.sharding.spec)  # over axes that are explicit
    if split or not leaf.size or max(leaf.shape, default=0) != leaf.size:
        return None
    varying = getattr(kind, "manual_axis_type", None) or getattr(kind, "vma", None)
    return (leaf.dtype, kind.weak_type, varying)
