"""Adds up the gradient of a step over microbatches, with the statistics of the whole batch.

`config.optim.accumulate` microbatches have one set of parameters and, together, one optimizer
step. Each is normalized by its own statistics, as a small batch always is; the running averages
then move once, towards the exact statistics of all microbatches together, as those of one large
batch would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import normjax
from experiments.config.models import running_norms
from experiments.tasks.base import Batch, Task
from experiments.usage import UsageError

Tree = Any


class Microbatches(NamedTuple):
    """How many a step has, and how it moves the norms' running averages."""

    parts: int
    decay: float | None = None  # weight of the old value; None: no norm has running averages
    correction: int = 0  # 1: the variance that is stored is the unbiased one


def microbatches(parts: int, task: Task) -> Microbatches:
    """Return what a step of so many parts needs to know of the norms of a task.

    Raises:
        UsageError: two norms have unlike decays or corrections.
    """
    norms = list(running_norms(task))
    if not norms:
        return Microbatches(parts)
    decay = _common("decay", [norm.decay for norm in norms])
    # A norm that stores no spread has no correction, and takes any.
    found = [norm.correction for norm in norms if hasattr(norm, "correction")]
    return Microbatches(parts, decay, _common("correction", found) if found else 0)


def _common(name: str, values: list[Any]) -> Any:
    """Return the value that all norms have."""
    unlike = sorted(set(values))
    if len(unlike) > 1:
        raise UsageError(
            f"config.optim.accumulate updates all running averages with one {name}, and the "
            f"model's norms have {', '.join(map(str, unlike))}; write the same {name} for each."
        )
    return unlike[0]


def gradient_of_sum(
    training: Callable[..., tuple[Any, Tree]],
    params: Tree,
    norm: Tree,
    batch: Batch,
    micro: Microbatches,
) -> tuple[Any, Tree, Tree]:
    """Return the batch's sums, the next state of the norms, and the gradient of the summed loss.

    `training(params, norm, batch)` returns sums and state.
    """
    rows, count = jax.tree.leaves(batch.examples)[0].shape[0], micro.parts
    if rows % count:
        raise UsageError(
            f"config.optim.accumulate={count} does not divide {rows}, the rows of a batch on a "
            "device; write a batch_size that it does."
        )

    def split(x: jax.Array) -> jax.Array:  # [rows, ...] to [count, rows / count, ...]
        # every count-th row: rows that are split over devices stay where they are
        return jnp.moveaxis(x.reshape(rows // count, count, *x.shape[1:]), 1, 0)

    parts = jax.tree.map(split, (batch.examples, batch.weight))

    def one(state: Tree, i: Any) -> tuple[tuple[Any, Tree], Tree]:
        examples, weight = jax.tree.map(lambda x: x[i], parts)
        key = None if batch.key is None else jax.random.fold_in(batch.key, i)

        def loss(params: Tree) -> tuple[jax.Array, tuple[Any, Tree]]:
            scores, new = training(params, state, Batch(examples, weight, key))
            return scores.loss, (scores, new)

        grads, (scores, new) = jax.grad(loss, has_aux=True)(params)
        return (scores, grads), new

    def step(carry: Any, i: jax.Array) -> tuple[Any, None]:
        sums, state = carry
        more, state = one(state, i)
        return (jax.tree.map(jnp.add, sums, more), state), None

    start = norm if micro.decay is None else normjax.accumulate_statistics(norm)
    # What the first microbatch makes is the structure of the carry.
    first = one(start, 0)
    ((scores, grads), state), _ = jax.lax.scan(step, first, jnp.arange(1, count))
    if micro.decay is not None:
        state = normjax.finalize_statistics(state, decay=micro.decay, correction=micro.correction)
    return scores, state, grads
