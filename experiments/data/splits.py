"""Holds a data set in memory as three splits, and takes batches from them by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Split(NamedTuple):
    """Bytes ``[examples, steps]``, ``[examples, H, W]`` or ``[examples, H, W, 1]``, and labels."""

    pixels: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array


class Dataset(NamedTuple):
    """Three splits, the byte that is 1.0, the numbers of classes and words (0: no words).

    `vectors` are those of the words that `config.data.vectors` has, `[words, numbers]`, else NaN.
    """

    train: Any
    valid: Any
    test: Any
    white: float
    classes: int
    vocabulary: int = 0
    vectors: np.ndarray | None = None

    def on_device(self) -> Dataset:
        """Move the splits to the accelerator, where batches are gathered."""
        return self.each(lambda split: jax.tree.map(jnp.asarray, split))

    def each(self, change: Callable[[Any], Any]) -> Dataset:
        """Apply a function to each split."""
        train, valid, test = map(change, self[:3])
        return self._replace(train=train, valid=valid, test=test)


def size(split: Any) -> int:
    """Return the number of examples of a split."""
    return jax.tree.leaves(split)[0].shape[0]


def take(split: Any, index: Any) -> Any:
    """Gather the examples at some indices."""
    return jax.tree.map(lambda x: x[index], split)


def draw(dataset: Dataset, seed: int, *, pooled: bool = True) -> Dataset:
    """Shuffle the training examples, and with `pooled` draw training and validation set anew.

    The test set stays, so that runs on different draws answer the same questions.
    """
    rng, count = np.random.default_rng(seed), size(dataset.train)
    if not pooled:
        return dataset._replace(train=take(dataset.train, rng.permutation(count)))
    both = jax.tree.map(
        lambda a, b: np.concatenate([np.asarray(a), np.asarray(b)]), dataset.train, dataset.valid
    )
    order = rng.permutation(size(both))
    return dataset._replace(train=take(both, order[:count]), valid=take(both, order[count:]))
