"""Finds the first tensors of a step that are not finite."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments import tasks
from experiments.data import splits
from experiments.runtime.checkpoints import name

Tree = Any


@functools.partial(jax.jit, static_argnames=("task",))
def _stages(now: Tree, split: Tree, index: Any, weight: Any, *, task: tasks.Task) -> Tree:
    """Whether each tensor of a step is finite, in the order in which they are computed."""
    key = jax.random.fold_in(now["key"], now["step"])
    batch = tasks.Batch(splits.take(split, index), weight, key)

    def loss_of(params: Tree) -> tuple[jax.Array, Tree]:
        scores, norm = task.scores(params, now["norm"], batch, stats="batch", train=True)
        return scores.loss / scores.count, norm

    (loss, norm), grads = jax.value_and_grad(loss_of, has_aux=True)(now["params"])
    floats = jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.zeros(()), batch.examples
    )
    stages = (floats, now["params"], now["opt"], now["norm"], norm, loss, grads)
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), stages)


NAMES = (
    "the batch's",
    "the parameters before it:",
    "the optimizer's state before it:",
    "the norms' state before it:",
    "the norms' new statistics:",
    "the loss",
    "the gradients:",
)
SHOWN = 8  # paths of each kind


def report(task: tasks.Task, train_state: Tree, split: Tree, index: Any, weight: Any) -> str:
    """Name the tensors that are not finite, by path, in the step that follows a train state."""
    finite = jax.device_get(_stages(train_state, split, index, weight, task=task))
    lines = []
    for what, tree in zip(NAMES, finite, strict=True):
        bad = [name(path) for path, good in jax.tree.leaves_with_path(tree) if not good]
        if bad:
            more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            lines.append(f"{what} {', '.join(bad[:SHOWN])}{more}".strip())
    if not lines:
        return "Repeated, that step is finite."
    then = f" Then {'; then '.join(lines[1:])}." if lines[1:] else ""
    return f"Not finite first: {lines[0]}.{then}"
