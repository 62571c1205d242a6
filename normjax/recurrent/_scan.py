"""What a layer makes before its scan, what the scan keeps of a step, and what it need not write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from normjax.statistics._types import PyTree


def makes_ahead() -> bool:
    """Whether input terms are made and measured before the scan, all steps at once.

    What several devices, or an accelerator, do at once for all steps, one CPU does better step by
    step: a step fits into its cache, and a sequence does not.
    """
    return jax.default_backend() != "cpu" or jax.device_count() > 1


def makes_late(shape: tuple[int, ...]) -> bool:
    """Whether one CPU makes the input term of x `[time, batch, features]` in the scan as well.

    Made ahead, it is written and read, and its gradient too: `batch` rows a step. Made in the
    step, it costs the gradient of the weights, `features` rows a step, to be added to.
    """
    return shape[2] < shape[1]


def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x @ weight`, of a single feature as one multiplication: no product that is worth keeping."""
    return x * weight if x.shape[-1] == 1 else x @ weight


# Products and sums, what devices exchanged, and the values of exp's kin: dear to make again.
KEPT = (
    "dot_general",
    "reduce_sum",
    "psum",
    "psum_invariant",
    "logistic",
    "tanh",
    "custom_jvp_call",
)


def worth_keeping(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether the backward pass keeps a step's value, or makes it again from what is kept.

    What is left to be made again are masks, differences and products of single values: as many
    numbers, and hardly any work. It halves the memory of a long sequence.
    """
    return primitive.name in KEPT


def exchanged(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a value came from other devices: too dear to ask for twice."""
    return primitive.name in ("psum", "psum_invariant")


def walk(
    step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    xs: PyTree,
    steps: int,
    chunk: int | None,
) -> tuple[PyTree, PyTree]:
    """Scan; with `chunk`, what a step keeps is kept for that many steps at a time.

    Backward, each chunk is then run again from the carry that it began with. Memory goes as
    `steps / chunk + chunk` and no longer as `steps`, for one more pass forward.
    """
    if chunk is None or chunk >= steps:
        return lax.scan(step, carry, xs)

    def some(carry: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        return lax.scan(step, carry, xs)

    some = jax.checkpoint(some, prevent_cse=False, policy=exchanged)
    whole = steps - steps % chunk
    cut = jax.tree.map(lambda v: v[:whole].reshape(-1, chunk, *v.shape[1:]), xs)
    carry, ys = lax.scan(some, carry, cut)
    ys = jax.tree.map(lambda v: v.reshape(whole, *v.shape[2:]), ys)
    if whole < steps:
        carry, rest = some(carry, jax.tree.map(lambda v: v[whole:], xs))
        ys = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, rest)
    return carry, ys


def apart(measured: PyTree) -> tuple[PyTree, list[jax.Array]]:
    """What is the same in every step, and what is not; a step is traced once, so NumPy's is.

    The first need not be written down once a step.
    """
    leaves, tree = jax.tree.flatten(measured)
    fixed = [leaf if isinstance(leaf, np.ndarray) else None for leaf in leaves]
    return (tree, fixed), [leaf for leaf in leaves if not isinstance(leaf, np.ndarray)]


def together(still: PyTree, moving: list[jax.Array], steps: int) -> PyTree:
    """The tree that `apart` took apart, with a leading axis of steps everywhere."""
    tree, fixed = still
    rest = iter(moving)
    return tree.unflatten(
        next(rest) if leaf is None else jnp.broadcast_to(leaf, (steps, *leaf.shape))
        for leaf in fixed
    )
