"""Trains a task on images that are changed at random; its evaluations see them as they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from experiments.data import augment
from experiments.tasks.base import Batch, Call, Scores, Task

STREAM = 0x0A06  # sets the key of augmentation apart from those of dropout and other noise


@dataclasses.dataclass(frozen=True)
class Augmented(Task):
    """A task whose training batches are augmented by `steps`, drawn from the batch's key."""

    task: Task
    steps: augment.Steps
    classes: int

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return `(params, norm)` of the task."""
        return self.task.init(key)

    def scores(self, params: Any, norm: Any, batch: Batch, call: Call) -> tuple[Scores, Any]:
        """Score a batch; augmented, in training."""
        if call.train:
            key = jax.random.fold_in(batch.key, STREAM)
            changed = augment.apply(self.steps, key, batch.examples, self.classes)
            batch = batch._replace(examples=changed)
        return self.task.scores(params, norm, batch, call)
