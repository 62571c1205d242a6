"""Batches of indices: endless and checkpointable for training, exact for evaluation."""

from __future__ import annotations

from typing import Any

import grain
import numpy as np


def batches(size: int, batch_size: int, seed: int, shuffle: str = "epoch") -> Any:
    """An endless checkpointable iterator (get_state, set_state) of int64 index batches.

    Every epoch has a new order; a batch may reach over the end of one, so no example is left out.
    With shuffle "once" the same examples always meet in a batch, and each epoch has these batches
    in a new order; examples that fill no batch are left out.
    """
    indices = grain.MapDataset.range(size).shuffle(seed=seed)
    if shuffle == "once":
        # as a table: Grain's own shuffle would deal anew for each epoch
        dealt = list(indices.batch(batch_size, drop_remainder=True))
        dataset = grain.MapDataset.source(dealt).shuffle(seed=seed).repeat()
    else:
        dataset = indices.repeat().batch(batch_size, drop_remainder=True)
    # Shuffling takes Grain 14 us an index: a thread does it while the device takes its steps.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)))


def evaluation_batches(size: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights ``[batches, rows]`` that visit every example once.

    The batches are of one even size, at most `batch_size`, and the last is filled up with rows of
    weight 0: a last batch of three examples would have batch statistics of its own kind.
    """
    count = -(-size // batch_size)
    rows = -(-size // count)
    index = np.arange(count * rows)
    weight = (index < size).astype(np.float32)
    return np.minimum(index, size - 1).reshape(count, rows), weight.reshape(count, rows)
