"""Holds a data set as three splits, in memory or on disk, and takes batches from them by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Split(NamedTuple):
    """Pixels ``[examples, steps(, C)]``, ``[examples, H, W * C]`` or ``[examples, H, W, C]``.

    They are bytes, or floats of an array of the user's. Labels are integers.
    """

    pixels: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array


class Source(Protocol):
    """Examples that are read when they are asked for, in whichever process asks."""

    def __len__(self) -> int: ...

    def read(self, numbers: np.ndarray) -> Any:
        """Return the examples of some numbers as a pytree of arrays."""


class Streamed:
    """A split that is too large for the device: batches of it are read in the background.

    Args:
        source: where the examples come from.
        workers: processes that read them in training; 0: a thread does, as in evaluation.
        start, stop: which of the source's examples are in the split.
    """

    def __init__(self, source: Source, workers: int = 0, start: int = 0, stop: int | None = None):
        self.source, self.workers, self.start = source, workers, start
        self.stop = len(source) if stop is None else stop

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, numbers: np.ndarray) -> Any:
        """Return the examples of some numbers as a pytree of arrays."""
        return self.source.read(np.asarray(numbers) + self.start)

    def first(self, count: int) -> Streamed:
        """Return the first so many examples."""
        return Streamed(self.source, self.workers, self.start, self.start + count)


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
        return self.each(
            lambda split: split if isinstance(split, Streamed) else jax.tree.map(jnp.asarray, split)
        )

    def each(self, change: Callable[[Any], Any]) -> Dataset:
        """Apply a function to each split."""
        train, valid, test = map(change, self[:3])
        return self._replace(train=train, valid=valid, test=test)


def size(split: Any) -> int:
    """Return the number of examples of a split."""
    if isinstance(split, Streamed):
        return len(split)
    return jax.tree.leaves(split)[0].shape[0]


def take(split: Any, index: Any) -> Any:
    """Gather the examples at some indices; of a split on disk, read them."""
    if isinstance(split, Streamed):
        return split.read(index)
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
