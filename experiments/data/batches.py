"""Makes batches of indices: endless and checkpointable for training, exact for evaluation."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from experiments.data import splits

AHEAD = 8  # batches that are made before they are asked for


class Order:
    """The batches of indices of all epochs, by number from `first` on; a source for Grain.

    Every epoch has a new order; a batch may span two epochs, so no example is left out.
    With shuffle "once" every epoch has the same batches in a new order; examples that fill no batch
    are left out.
    """

    def __init__(self, size: int, batch_size: int, seed: int, shuffle: str = "epoch"):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.first, self.fixed = 0, None
        if shuffle == "once":
            whole = size // batch_size
            self.fixed = permuted(size, seed, range(whole * batch_size)).reshape(whole, batch_size)

    def __len__(self) -> int:
        return 2**31 - 1  # an endless order has no length

    def __getitem__(self, number: int) -> np.ndarray:
        number += self.first
        if self.fixed is not None:
            epoch, place = divmod(number, len(self.fixed))
            return self.fixed[permuted(len(self.fixed), self.seed + epoch, [place])[0]]
        epoch, at = divmod(number * self.batch_size, self.size)
        parts, rows = [], self.batch_size
        while rows:
            places = range(at, min(at + rows, self.size))
            parts.append(permuted(self.size, self.seed + epoch, places))
            rows, epoch, at = rows - len(places), epoch + 1, 0
        return np.concatenate(parts)


# Grain takes about 10 us an index, which for a batch is more than the step of a small network, so
# the orders of small data sets are kept (100 MB at most): arms and rates of a claim share them.
KEPT, SMALL = 256, 50_000


def permuted(size: int, seed: int, places: Sequence[int]) -> np.ndarray:
    """Return what is at some places of Grain's permutation of so many indices, int64."""
    if size <= SMALL:
        return _permutation(size, seed)[np.asarray(places)]
    shuffled = grain.MapDataset.range(size).shuffle(seed=seed % 2**32)
    return np.array([shuffled[place] for place in places], np.int64)


@functools.lru_cache(maxsize=KEPT)
def _permutation(size: int, seed: int) -> np.ndarray:
    shuffled = grain.MapDataset.range(size).shuffle(seed=seed % 2**32)
    found = np.fromiter((shuffled[i] for i in range(size)), np.int64, size)
    found.setflags(write=False)
    return found


def batches(size: int, batch_size: int, seed: int, shuffle: str = "epoch") -> Any:
    """Return an endless iterator of int64 index batches, with get_state and set_state."""
    numbered = grain.MapDataset.source(Order(size, batch_size, seed, shuffle))
    # A thread makes the next epoch's order while the device computes.
    return iter(
        numbered.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD))
    )


def evaluation_batches(size: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and weights ``[batches, rows]`` that visit every example once.

    All batches have one size, at most `batch_size`; the last is filled up with rows of weight 0,
    since a last batch of three examples would have batch statistics unlike the others'.
    """
    count = -(-size // batch_size)
    rows = -(-size // count)
    index = np.arange(count * rows)
    weight = (index < size).astype(np.float32)
    return np.minimum(index, size - 1).reshape(count, rows), weight.reshape(count, rows)


# --------------------------------------------------------------------------------------- streams


class _Read:
    """Reads the examples of a batch of indices, in whichever process has it."""

    def __init__(self, split: splits.Streamed):
        self.split = split

    def __call__(self, index: np.ndarray) -> Any:
        _end_with_parent()
        return self.split.read(index)


@functools.cache
def _end_with_parent() -> None:
    """End this worker with the run that started it, also where that is killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def read_ahead(split: splits.Streamed, rows: Any, workers: int = 0) -> Iterator[Any]:
    """Read batches of a split on disk in the background, in the order of `rows`.

    Args:
        split: the split.
        rows: batches of indices, by place.
        workers: so many processes read, which take seconds to start; 0: a thread does.
    """
    read = grain.MapDataset.source(rows).map(_Read(split))
    if not workers:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
        return iter(read.to_iter_dataset(options))
    if not flags.FLAGS.is_parsed():  # Grain looks for flags of its own there
        flags.FLAGS.mark_as_parsed()
    direct = read.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return iter(direct.mp_prefetch(processes))


class Stream:
    """An endless iterator over batches of a split on disk, in the order of `batches`.

    Its state is that of `batches` too: a run may continue with its data in memory, or with other
    workers.
    """

    def __init__(self, split: splits.Streamed, batch_size: int, seed: int, shuffle: str = "epoch"):
        self.split = split
        self.order = Order(len(split), batch_size, seed, shuffle)
        self.next_index = 0
        self.running: Iterator[Any] | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        if self.running is None:
            self.order.first = self.next_index
            self.running = read_ahead(self.split, self.order, self.split.workers)
        self.next_index += 1
        return next(self.running)

    def get_state(self) -> dict[str, int]:
        """Return the number of the next batch."""
        return {"next_index": self.next_index}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on with the batch of that number."""
        self.next_index, self.running = state["next_index"], None


def training(split: Any, batch_size: int, seed: int, shuffle: str = "epoch") -> Any:
    """Return `batches` of a split's indices, or the `Stream` of a split on disk."""
    if isinstance(split, splits.Streamed):
        return Stream(split, batch_size, seed, shuffle)
    return batches(splits.size(split), batch_size, seed, shuffle)


def next_rows(split: Any, iterator: Any, steps: int) -> tuple[Any, np.ndarray]:
    """Return a split and the indices of the next batches into it, `[steps, rows]`.

    Of a split on disk it is a split of these rows alone.
    """
    drawn = [next(iterator) for _ in range(steps)]
    if not isinstance(split, splits.Streamed):
        return split, np.stack([np.asarray(rows, np.int32) for rows in drawn])
    rows = splits.size(drawn[0])
    index = np.arange(steps * rows, dtype=np.int32).reshape(steps, rows)
    return jax.tree.map(lambda *x: np.concatenate(x), *drawn), index
