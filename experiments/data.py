"""Sequences of pixels with a label: scikit-learn's digits, sequential MNIST, permuted MNIST.

========  =====  ===================  =========================================================
name      steps  train/valid/test     where it comes from
========  =====  ===================  =========================================================
digits    64     1437/180/180         scikit-learn, inside the package; split by a fixed shuffle
mnist     784    50000/10000/10000    TFDS `mnist`, one pixel a step in scan order
pmnist    784    50000/10000/10000    the same, every image reordered by one fixed index vector
========  =====  ===================  =========================================================

TFDS keeps its own fixed order, not the upstream one, so "the first 50,000" are the first 50,000 of
that order. Pixels are in [0, 1] when the model sees them and bytes until then. A data set is
decoded once and stays on the device; a batch is a vector of indices into it.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from experiments.config import TIMESTEPS, TRAIN_SIZE, UsageError


class Split(NamedTuple):
    """Images as byte sequences ``[examples, steps]`` and labels ``[examples]``."""

    pixels: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array


class Dataset(NamedTuple):
    """Three splits, the byte value that is 1.0, and the number of classes."""

    train: Split
    valid: Split
    test: Split
    white: float
    classes: int

    def on_device(self) -> Dataset:
        """The same with its splits on the accelerator, where batches are gathered."""
        train, valid, test = (Split(*map(jnp.asarray, split)) for split in self[:3])
        return self._replace(train=train, valid=valid, test=test)


def load(name: str, *, data_dir: str = "", permutation: str = "permute", seed: int = 0) -> Dataset:
    """Read a data set by name; `permutation` and `seed` matter to pmnist only."""
    if name == "digits":
        return _digits()
    full = _tfds("mnist", data_dir, {"train": 60_000, "test": 10_000})
    train, test = full["train"], full["test"]
    if name == "pmnist":
        index = order(permutation, seed, TIMESTEPS[name])
        train, test = (Split(s.pixels[:, index], s.labels) for s in (train, test))
    cut = TRAIN_SIZE[name]
    valid = Split(train.pixels[cut:], train.labels[cut:])
    return Dataset(Split(train.pixels[:cut], train.labels[:cut]), valid, test, 255.0, 10)


def order(permutation: str, seed: int, length: int) -> np.ndarray:
    """The index vector of permuted MNIST.

    "permute" is a permutation. "sample" draws positions with replacement, as the published script
    does: about 37 % of the pixels never appear, so it is a harder task under the same name.
    """
    draw = np.random.RandomState(seed)  # its stream is frozen for good, default_rng's is not
    return draw.permutation(length) if permutation == "permute" else draw.randint(0, length, length)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    index = np.random.RandomState(0).permutation(len(labels))
    pixels, labels = images[index].astype(np.uint8), labels[index].astype(np.int32)
    train, valid, test = (
        Split(pixels[a:b], labels[a:b]) for a, b in ((0, 1437), (1437, 1617), (1617, 1797))
    )
    return Dataset(train, valid, test, 16.0, 10)


def data_dir(asked: str = "") -> pathlib.Path:
    """Where TFDS sets are: config.data_dir, NORMJAX_DATA_DIR, TFDS_DATA_DIR, the home folder."""
    if asked:
        return pathlib.Path(asked).expanduser()
    if root := os.environ.get("NORMJAX_DATA_DIR"):
        inside = pathlib.Path(root).expanduser() / "tensorflow_datasets"
        return inside if inside.is_dir() else inside.parent
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def find(name: str, asked: str = "") -> pathlib.Path:
    """The folder of a prepared TFDS set, or at once (no network is asked) how to prepare it."""
    root = data_dir(asked)
    how = f"run: python -m experiments.prepare {name} --data_dir={root}"
    found = sorted((root / name).glob("*/dataset_info.json"))
    if not found:
        raise UsageError(
            f"data set {name!r} is not in {root} (no {name}/VERSION/dataset_info.json there). "
            f"Point NORMJAX_DATA_DIR or --config.data_dir at the folder that has it, or {how}"
        )
    kept_as = json.loads(found[-1].read_text()).get("fileFormat", "tfrecord")
    if kept_as != "array_record":
        raise UsageError(
            f"data set {name!r} in {root} is stored as {kept_as}, which needs TensorFlow to read. "
            f"To have it as array_record, {how}"
        )
    return found[-1].parent


def _tfds(name: str, asked: str, sizes: dict[str, int]) -> dict[str, Split]:
    folder = find(name, asked)
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it would recommend a faster image library, each time
    splits = {}
    for split, size in sizes.items():
        source: Any = builder.as_data_source(split=split)
        if len(source) != size:
            raise UsageError(f"{folder} has {len(source)} {split} examples; {name} has {size}.")
        pixels = np.empty((size, TIMESTEPS[name]), np.uint8)
        labels = np.empty((size,), np.int32)
        for start in range(0, size, 256):  # in chunks: several times faster than one by one
            chunk = source.__getitems__(range(start, min(start + 256, size)))
            for i, example in enumerate(chunk, start):
                pixels[i], labels[i] = example["image"].reshape(-1), example["label"]
        splits[split] = Split(pixels, labels)
    logging.set_verbosity(verbosity)
    return splits


def batches(size: int, batch_size: int, seed: int) -> Any:
    """An endless checkpointable iterator (get_state, set_state) of int64 index batches.

    Every epoch has a new order; a batch may reach over the end of one, so no example is left out.
    """
    indices = grain.MapDataset.range(size).shuffle(seed=seed).repeat()
    dataset = indices.batch(batch_size, drop_remainder=True)
    # Indices cost nothing to make: reading ahead in threads would only add a thread.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


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
