"""Data sets in three splits: images as sequences, rows or pictures, with labels.

=============  =================  ============================================================
name           train/valid/test   where it comes from
=============  =================  ============================================================
digits         1437/180/180       8 x 8, scikit-learn, inside the package; a fixed shuffle
mnist          50000/10000/10000  28 x 28, TFDS `mnist`
pmnist         50000/10000/10000  the same, every image reordered by one fixed index vector
fashion_mnist  50000/10000/10000  28 x 28, TFDS `fashion_mnist`
=============  =================  ============================================================

Spoken digits, film reviews and texts: see `experiments.corpora`.

TFDS keeps its own fixed order, not the upstream one, so "the first 50,000" are the first 50,000 of
that order. Pixels are in [0, 1] when the model sees them and bytes until then. A data set is
decoded once and stays on the device; a batch is a vector of indices into it. A split is any pytree
of arrays with a leading axis of examples.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from experiments import corpora
from experiments.checkpoints import local
from experiments.config import SIDE, TRAIN_SIZE, UsageError


class Split(NamedTuple):
    """Bytes ``[examples, steps]``, ``[examples, H, W]`` or ``[examples, H, W, 1]``, and labels."""

    pixels: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array


class Dataset(NamedTuple):
    """Three splits, the byte that is 1.0, the numbers of classes and of words (0: no words).

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
        """The same with its splits on the accelerator, where batches are gathered."""
        return self.each(lambda split: jax.tree.map(jnp.asarray, split))

    def each(self, change: Callable[[Any], Any]) -> Dataset:
        """The same with each split changed."""
        train, valid, test = map(change, self[:3])
        return self._replace(train=train, valid=valid, test=test)


def size(split: Any) -> int:
    """Number of examples."""
    return jax.tree.leaves(split)[0].shape[0]


def take(split: Any, index: Any) -> Any:
    """The batch at some indices."""
    return jax.tree.map(lambda x: x[index], split)


def load(
    name: str,
    *,
    data_dir: str = "",
    permutation: str = "permute",
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Read a set by name; `permutation` and `seed` matter to pmnist, `options` is config.data."""
    options = options or {}
    if name in SIDE:
        dataset = _digits() if name == "digits" else _images(name, data_dir)
        dataset = _arrange(dataset, SIDE[name], **{k: options.get(k) for k in ("side", "layout")})
    else:
        folder = near(find(name, data_dir)) if name in TRAIN_SIZE else None
        splits, classes, words, vectors = corpora.load(name, folder, data_dir, options)
        train, valid, test = splits
        dataset = Dataset(train, valid, test, 1.0, classes, words, vectors)
    if name == "pmnist":
        index = order(permutation, seed, dataset.train.pixels[0].size)
        dataset = dataset.each(lambda split: _reorder(split, index))
    for split in ("train", "valid", "test"):
        whole, few = getattr(dataset, split), options.get(f"{split}_size", 0)
        if few > size(whole):
            raise UsageError(
                f"config.data.{split}_size={few}, but the {split} split of {name} has "
                f"{size(whole)} examples; 0 takes them all."
            )
        if few:
            dataset = dataset._replace(**{split: take(whole, slice(0, few))})
    return dataset


def of(config: Mapping[str, Any]) -> Dataset:
    """The data set of a checked config."""
    return load(
        config["dataset"],
        data_dir=config["data_dir"],
        permutation=config["permutation"],
        seed=config["permutation_seed"],
        options=config["data"],
    )


def require(config: Mapping[str, Any]) -> None:
    """Say at once, before anything is made, what a config's data set lacks."""
    if config["dataset"] == "text":
        corpora.find_text(config["data"]["text"], config["data_dir"])
    elif config["dataset"] != "digits":
        find(FOLDERS.get(config["dataset"], config["dataset"]), config["data_dir"])
    given = config["data"]["vectors"]
    if given and not epath.Path(given).expanduser().is_file():
        raise UsageError(f"config.data.vectors={given!r} is no file; write the path of one.")


FOLDERS = {"pmnist": "mnist"}  # names of TFDS where they differ
SUBSETS = {"imdb_reviews": "imdb_reviews/plain_text"}


def _arrange(dataset: Dataset, native: int, side: int | None, layout: str | None) -> Dataset:
    def one(split: Split) -> Split:
        pixels = split.pixels.reshape(-1, native, native)
        if side and side != native:
            block = native // side
            tiles = pixels.reshape(-1, side, block, side, block).astype(np.float32)
            pixels = np.rint(tiles.mean((2, 4))).astype(np.uint8)
        if layout == "images":
            return split._replace(pixels=pixels[..., None])
        return split._replace(
            pixels=pixels if layout == "rows" else pixels.reshape(len(pixels), -1)
        )

    return dataset.each(one)


def _reorder(split: Split, index: np.ndarray) -> Split:
    flat = split.pixels.reshape(len(split.pixels), -1)[:, index]
    return split._replace(pixels=flat.reshape(split.pixels.shape))


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


@functools.lru_cache(maxsize=2)  # a sweep reads it many times; nobody writes into it
def _images(name: str, asked: str) -> Dataset:
    full = _tfds(FOLDERS.get(name, name), asked, {"train": 60_000, "test": 10_000})
    train, cut = full["train"], TRAIN_SIZE[name]
    first, rest = (take(train, part) for part in (slice(0, cut), slice(cut, None)))
    return Dataset(first, rest, full["test"], 255.0, 10)


def data_dir(asked: str = "") -> epath.Path:
    """Where TFDS sets are: config.data_dir, NORMJAX_DATA_DIR, TFDS_DATA_DIR, the home folder."""
    if asked:
        return epath.Path(asked).expanduser()
    if root := os.environ.get("NORMJAX_DATA_DIR"):
        inside = epath.Path(root).expanduser() / "tensorflow_datasets"
        return inside if inside.is_dir() else inside.parent
    return epath.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def find(name: str, asked: str = "") -> epath.Path:
    """The folder of a prepared TFDS set, or at once (no network is asked) how to prepare it."""
    root = data_dir(asked)
    short, name = name, SUBSETS.get(name, name)
    how = f"run: python -m experiments.prepare {short} --data_dir={root}"
    if name == "fsdd":
        how = (
            "store github.com/Jakobovski/free-spoken-digit-dataset there as array_record, with "
            "features audio, label, speaker and index, by tfds.dataset_builders."
            "store_as_tfds_dataset."
        )
    found = sorted((root / name).glob("*/dataset_info.json"))
    if not found:
        raise UsageError(
            f"data set {short!r} is not in {root} (no {name}/VERSION/dataset_info.json there). "
            f"Point NORMJAX_DATA_DIR or --config.data_dir at the folder that has it, or {how}"
        )
    kept_as = json.loads(found[-1].read_text()).get("fileFormat", "tfrecord")
    if kept_as != "array_record":
        raise UsageError(
            f"data set {name!r} in {root} is stored as {kept_as}, which needs TensorFlow to read. "
            f"To have it as array_record, {how}"
        )
    return found[-1].parent


def near(folder: epath.Path) -> epath.Path:
    """A set's folder on this machine: one in a bucket is copied, once, into ~/.cache/normjax.

    Records could be read from the bucket too, with a request for each of them.
    """
    if local(folder):
        return folder
    cache = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    here = cache / "normjax" / os.fspath(folder).replace("://", "/")
    here.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        copied = here / path.name
        if not copied.exists() or copied.stat().length != path.stat().length:
            partial = here / f"{path.name}.{os.getpid()}.partial"
            path.copy(partial, overwrite=True)
            partial.replace(copied)
    return here


def _tfds(name: str, asked: str, sizes: dict[str, int]) -> dict[str, Split]:
    folder = near(find(name, asked))
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it would recommend a faster image library, each time
    splits = {}
    for split, size in sizes.items():
        source: Any = builder.as_data_source(split=split)
        if len(source) != size:
            raise UsageError(f"{folder} has {len(source)} {split} examples; {name} has {size}.")
        _whole(folder, split)
        pixels = np.empty((size, SIDE[name] ** 2), np.uint8)
        labels = np.empty((size,), np.int32)
        for start in range(0, size, 256):  # in chunks: several times faster than one by one
            chunk = source.__getitems__(range(start, min(start + 256, size)))
            for i, example in enumerate(chunk, start):
                pixels[i], labels[i] = example["image"].reshape(-1), example["label"]
        splits[split] = Split(pixels, labels)
    logging.set_verbosity(verbosity)
    return splits


def _whole(folder: epath.Path, split: str) -> None:
    """Refuse record files that were cut short: what is left of them may read as an empty set."""
    from array_record.python import array_record_module

    for file in sorted(folder.glob(f"*-{split}.array_record-*")):
        try:
            reader = array_record_module.ArrayRecordReader(str(file))
            if not (count := reader.num_records()):
                raise RuntimeError("it holds no record")
            reader.read([count - 1])
            reader.close()
        except (RuntimeError, IndexError) as error:
            raise UsageError(
                f"{file} is damaged ({str(error)[:120]}); remove {folder} and prepare it again."
            ) from error


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
