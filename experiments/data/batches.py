"""Makes batches of indices: endless and checkpointable for training, exact for evaluation."""

from __future__ import annotations

from typing import Any

import grain
import numpy as np


def batches(size: int, batch_size: int, seed: int, shuffle: str = "epoch") -> Any:
    """Return an endless iterator of int64 index batches, with get_state and set_state.

    Every epoch has a new order; a batch may span two epochs, so no example is left out.
    With shuffle "once" every epoch has the same batches in a new order; examples that fill no batch
    are left out.
    """
    indices = grain.MapDataset.range(size).shuffle(seed=seed)
    if shuffle == "once":
        # as a list: Grain's own shuffle would make new batches in each epoch
        fixed = list(indices.batch(batch_size, drop_remainder=True))
        dataset = grain.MapDataset.source(fixed).shuffle(seed=seed).repeat()
    else:
        dataset = indices.repeat().batch(batch_size, drop_remainder=True)
    # Shuffling takes Grain 14 us per index: a thread does it while the device computes.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)))


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
