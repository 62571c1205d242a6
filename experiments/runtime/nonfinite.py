"""Finds the first tensors of a step that are not finite."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import normjax as nj
from experiments import tasks
from experiments.data import splits
from experiments.runtime.checkpoints import name

Tree = Any


@functools.partial(jax.jit, static_argnames=("task",))
def _stages(now: Tree, split: Tree, index: Any, weight: Any, *, task: tasks.Task) -> Tree:
    """Whether each tensor of a step is finite, in the order in which they are computed.

    And the gradient's norm, which a run checks: the squares of finite gradients may overflow.
    """
    key = jax.random.fold_in(now["key"], now["step"])
    batch = tasks.Batch(splits.take(split, index), weight, key)

    def loss_of(params: Tree) -> tuple[jax.Array, Tree]:
        scores, norm = task(params, now["norm"], batch, stats="batch", train=True)
        return scores.loss / scores.count, norm

    def counts_of(params: Tree) -> Tree:
        """How many values of the batch each norm with statistics took: none that overflowed."""
        _, norm = task(params, _accumulating(now["norm"]), batch, stats="batch", train=True)
        return jax.tree.map(
            lambda node: node.measured.count if isinstance(node, nj.Accumulator) else (),
            norm,
            is_leaf=lambda node: isinstance(node, nj.Accumulator),
        )

    # With weights of 0 every value is finite: fewer than those were beyond float32, or not numbers.
    reached = counts_of(jax.tree.map(jnp.zeros_like, now["params"]))
    measured = jax.tree.map(
        lambda got, all_: jnp.where((got >= all_).all(), 0.0, jnp.nan),
        counts_of(now["params"]),
        reached,
    )
    (loss, norm), grads = jax.value_and_grad(loss_of, has_aux=True)(now["params"])
    floats = jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.zeros(()), batch.examples
    )
    stages = (floats, now["params"], now["opt"], now["norm"], measured, norm, loss, grads)
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), (stages, optax.tree.norm(grads)))


def _accumulating(state: Tree) -> Tree:
    """Let the norms of a state count what they measure; a state without statistics stays."""
    try:
        return nj.accumulate_statistics(state)
    except ValueError:
        return state


NAMES = (
    "the batch's",
    "the parameters before it:",
    "the optimizer's state before it:",
    "the norms' state before it:",
    "what these norms measured of the batch:",
    "the norms' new statistics:",
    "the loss",
    "the gradients:",
)
SHOWN = 8  # paths of each kind


def report(task: tasks.Task, train_state: Tree, split: Tree, index: Any, weight: Any) -> str:
    """Name the tensors that are not finite, by path, in the step that follows a train state."""
    stages = _stages(train_state, split, index, weight, task=task)
    finite, norm_is_finite = jax.device_get(stages)
    lines = []
    for what, tree in zip(NAMES, finite, strict=True):
        bad = [name(path) for path, good in jax.tree.leaves_with_path(tree) if not good]
        if bad:
            more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            lines.append(f"{what} {', '.join(bad[:SHOWN])}{more}".strip())
    if not lines and not norm_is_finite:
        return "All tensors are finite, but the gradients are so large that their norm is not."
    if not lines:
        return "Repeated, that step is finite."
    then = f" Then {'; then '.join(lines[1:])}." if lines[1:] else ""
    return f"Not finite first: {lines[0]}.{then}"
