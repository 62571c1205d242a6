"""Which tensors of a step were the first that are not finite."""

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
    """Every tensor of a step that may fail, in the order in which they are made."""
    batch = splits.take(split, index)
    key = jax.random.fold_in(now["key"], now["step"])

    def loss_of(params: Tree) -> tuple[jax.Array, Tree]:
        how: dict[str, Any] = {"stats": "batch", "train": True, "weight": weight, "key": key}
        scores, norm = task.scores(params, now["norm"], batch, **how)
        return scores.loss / scores.count, norm

    (loss, norm), grads = jax.value_and_grad(loss_of, has_aux=True)(now["params"])
    floats = jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.zeros(()), batch
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
SHOWN = 8


def report(task: tasks.Task, now: Tree, split: Tree, index: Any, weight: Any) -> str:
    """Name them, by path; `now` is the state before the step."""
    found = jax.device_get(_stages(now, split, index, weight, task=task))
    told = []
    for what, tree in zip(NAMES, found, strict=True):
        bad = [name(path) for path, good in jax.tree.leaves_with_path(tree) if not good]
        if bad:
            more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            told.append(f"{what} {', '.join(bad[:SHOWN])}{more}".strip())
    if not told:
        return "Taken again, that step is finite."
    then = f" Then {'; then '.join(told[1:])}." if told[1:] else ""
    return f"Not finite first: {told[0]}.{then}"
