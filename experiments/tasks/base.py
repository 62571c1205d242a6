"""The contract between the training program and a study's model."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any


class Scores(NamedTuple):
    """Sums, so that batches and devices add up; a mean is `loss / count`, once, at the end."""

    loss: jax.Array  # nats, or what the task minimizes
    correct: jax.Array  # right predictions; 0 where the task has none
    count: jax.Array  # type: ignore[assignment]  # predictions: examples, or a text's tokens


class Task(abc.ABC):
    """Model and loss as pure functions; subclasses are frozen dataclasses, so `jit` caches on them.

    A batch is the split's pytree with its leading axis gathered: any arrays `[examples, ...]`.
    """

    @abc.abstractmethod
    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Return `(params, norm)`: what is trained, and the state of the norms."""

    @abc.abstractmethod
    def scores(
        self,
        params: Tree,
        norm: Tree,
        batch: Any,
        *,
        stats: str,
        train: bool,
        weight: jax.Array | None = None,
        key: jax.Array | None = None,
        axis_name: str | None = None,
    ) -> tuple[Scores, Tree]:
        """Return the batch's sums and the next state of the norms.

        `stats` is "batch" or "running", as for a norm; `train` switches dropout and its like,
        which draw from `key`. Rows of `weight` 0 are padding: they enter no sum and no statistic,
        whatever they hold; `None` is no padding. `axis_name`: the device axis that the batch is
        split over, for statistics alone; the caller adds up the sums.
        """


def cross_entropy(logits: jax.Array, labels: jax.Array, weight: jax.Array | None = None) -> Scores:
    """Cross-entropy and right answers over the last axis, summed with weights of labels' shape."""
    weight = jnp.ones(labels.shape) if weight is None else weight
    log_p = jax.nn.log_softmax(logits)
    loss = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    # where, not a product: a padded row may hold anything, and 0 times infinity is not 0
    loss = jnp.where(weight > 0, weight * loss, 0.0)
    return Scores(loss.sum(), (weight * correct).sum(), weight.sum())
