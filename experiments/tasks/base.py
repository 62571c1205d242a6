"""Defines `Task`, the contract between the training program and a study's model."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.models.base import Call

Tree = Any
TOP_FIVE_FROM = 10  # classes of an example: with more, its top five are counted too


class Scores(NamedTuple):
    """Sums, so that batches and devices add up; a mean is `loss / count`, once, at the end."""

    loss: jax.Array  # nats, or whatever the task minimizes
    correct: jax.Array  # right predictions; 0 for a task without them
    count: jax.Array  # type: ignore[assignment]  # predictions: examples, or a text's tokens
    top5: jax.Array | None = None  # right ones among the five best; None: not counted


class Batch(NamedTuple):
    """Some examples of a split, with their weights and a key for what is random in a step."""

    examples: Any  # the split's pytree, its leading axis gathered: any arrays [examples, ...]
    weight: jax.Array | None = None  # [examples]; 0 marks padding, None is no padding
    key: Any = None  # a PRNG key


class Task(abc.ABC):
    """Model and loss as pure functions.

    Subclasses are frozen dataclasses, so that equal tasks share one compiled program. One that has
    the fields `smoothing` and `dtype` gets them from `config.optim.label_smoothing` and
    `config.dtype`.
    """

    dtype: str = "float32"

    def cast(self, x: Tree) -> Tree:
        """Return arrays in the dtype of the computation; integers stay."""
        if self.dtype == "float32":
            return x
        return jax.tree.map(lambda v: v.astype(self.dtype) if _is_float32(v) else v, x)

    def cast_weights(self, params: Tree) -> Tree:
        """Return weights in the dtype of the computation; parameters of norms stay float32.

        These are groups of arrays of which none has two axes or more. The parameters that are
        trained stay float32 too: this is a copy.
        """
        if self.dtype == "float32":
            return params
        leaves = jax.tree.leaves_with_path(params)
        matrices = {path[:-1] for path, leaf in leaves if leaf.ndim >= 2}

        def one(path: Any, leaf: jax.Array) -> jax.Array:
            return self.cast(leaf) if path[:-1] in matrices else leaf

        return jax.tree.map_with_path(one, params)

    @abc.abstractmethod
    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Return `(params, norm)`: what is trained, and the state of the norms."""

    @abc.abstractmethod
    def scores(self, params: Tree, norm: Tree, batch: Batch, call: Call) -> tuple[Scores, Tree]:
        """Return the batch's sums and the next state of the norms.

        Rows of weight 0, at which the mask of the call is False, enter no sum and no statistic,
        whatever they hold.
        """

    def __call__(
        self,
        params: Tree,
        norm: Tree,
        batch: Batch,
        *,
        stats: str,
        train: bool = False,
        axis_name: str | None = None,
    ) -> tuple[Scores, Tree]:
        """Return the `scores` of a batch: a task is the whole model as a function.

        `stats` is "batch" or "running", as for a norm; `train` switches on dropout and other noise,
        drawn from the batch's key. `axis_name` is the device axis that the batch is split over,
        for statistics alone; the caller adds up the sums.
        """
        mask = None if batch.weight is None else batch.weight > 0
        return self.scores(params, norm, batch, Call(stats, train, mask, batch.key, axis_name))


def _is_float32(x: jax.Array) -> bool:
    return jnp.result_type(x) == jnp.float32


def without_padding(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Set rows to 0 where the mask is False: a padded row may hold anything."""
    return x if mask is None else jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0)


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    weight: jax.Array | None = None,
    *,
    smoothing: float = 0.0,
) -> Scores:
    """Sum cross-entropy and right answers over the last axis of `logits [..., classes]`.

    Args:
        logits: scores of the classes.
        labels: classes `[...]`, or shares of them `[..., classes]`, of which the greatest is right.
        weight: `[...]`; None is 1.
        smoothing: s, for a target of (1 - s) labels and s / classes of every class.

    Of examples with more than ten classes the sums have the right answers among the top five too.
    """
    weight = jnp.ones(logits.shape[:-1]) if weight is None else weight
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    log_p = jax.nn.log_softmax(logits)
    if labels.ndim == logits.ndim:  # shares of each class, as mixup makes them
        loss, labels = -(labels * log_p).sum(-1), jnp.argmax(labels, axis=-1)
    else:
        loss = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * log_p.mean(-1)
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    # where, not a product: a padded row may hold anything, and 0 times infinity is not 0
    loss = jnp.where(weight > 0, weight * loss, 0.0)
    top5 = None
    if labels.ndim == 1 and logits.shape[-1] > TOP_FIVE_FROM:
        right = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        among = jnp.isfinite(right[:, 0]) & ((logits > right).sum(-1) < 5)
        top5 = jnp.where(weight > 0, weight * among, 0.0).sum()
    return Scores(loss.sum(), (weight * correct).sum(), weight.sum(), top5)
