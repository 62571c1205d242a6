"""Loads data sets in three splits: images as sequences, rows or pictures, with labels.

=============  =================  ============================================================
name           train/valid/test   where it comes from
=============  =================  ============================================================
digits         1437/180/180       8 x 8, scikit-learn, inside the package; a fixed shuffle
mnist          50000/10000/10000  28 x 28, TFDS `mnist`
pmnist         50000/10000/10000  the same, every image reordered by one fixed index vector
fashion_mnist  50000/10000/10000  28 x 28, TFDS `fashion_mnist`
=============  =================  ============================================================

Spoken digits, film reviews and texts: see `experiments.data.sequences`; any other image set of
TFDS: `experiments.data.named`; your own arrays: `experiments.data.arrays`.

TFDS has its own fixed order, not the upstream one, and "the first 50,000" are the first 50,000 of
that order. Pixels are bytes until the model scales them to [0, 1]. A data set of at most
`config.data.memory` GB is decoded once and stays on the device; a batch is a vector of indices into
it. A larger one stays on the disk, and its batches, the same ones, are read in the background. A
split is any pytree of arrays with a leading axis of examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from experiments.config.defaults import SIDE, TRAIN_SIZE
from experiments.data import arrays, expressions, facts, named, sequences
from experiments.data.images import (
    arrange,
    distort,
    load_digits_set,
    load_images,
    pixel_order,
    reorder,
    shrink,
)
from experiments.data.locate import FOLDERS, cache_locally, find
from experiments.data.splits import Dataset, Streamed, draw, size, take
from experiments.usage import UsageError

USUAL: dict[str, Any] = {"source": "", "folder": "", "valid": "", "memory": 2.0, "workers": 0}


def load(
    name: str,
    *,
    data_dir: str = "",
    permutation: str = "permute",
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Read a set by name; `permutation` and `seed` are for pmnist, `options` is config.data."""
    options = {**USUAL, **(options or {})}
    config = {"dataset": name, "data_dir": data_dir, "data": options}
    if facts.own(config):
        dataset = _own(options)
    elif name in SIDE:
        dataset = load_digits_set() if name == "digits" else load_images(name, data_dir)
        dataset = _changed(dataset, (SIDE[name], SIDE[name], 1), options)
    elif facts.by_name(config):
        dataset = _named(name, data_dir, options)
    else:
        folder = cache_locally(find(name, data_dir)) if name in TRAIN_SIZE else None
        splits, classes, words, vectors = sequences.load(name, folder, data_dir, options)
        train, valid, test = splits
        dataset = Dataset(train, valid, test, 1.0, classes, words, vectors)
    if name == "pmnist":
        index = pixel_order(permutation, seed, dataset.train.pixels[0].size)
        dataset = dataset.each(lambda split: reorder(split, index))
    if options.get("draw", 0):
        # Segments of a text stay in their parts of it, and a fold says which recordings validate.
        pooled = name != "text" and not options.get("fold", 0)
        dataset = draw(_in_memory(dataset, "draw"), options["draw"], pooled=pooled)
    for split in ("train", "valid", "test"):
        whole, limit = getattr(dataset, split), options.get(f"{split}_size", 0)
        if limit > size(whole):
            raise UsageError(
                f"config.data.{split}_size={limit}, but the {split} split of {name} has "
                f"{size(whole)} examples; 0 takes them all."
            )
        if limit:
            streamed = isinstance(whole, Streamed)
            part = whole.first(limit) if streamed else take(whole, slice(0, limit))
            dataset = dataset._replace(**{split: part})
    return dataset


def _changed(dataset: Dataset, native: tuple[int, int, int], options: Mapping[str, Any]) -> Dataset:
    """Distort, shrink and lay out images as `config.data` says."""
    changes = options.get("shift", 0), options.get("contrast", 1.0)
    if changes != (0, 1.0):
        dataset = distort(_in_memory(dataset, "shift and contrast"), native, *changes)
    side, shape = options.get("side"), native
    if side and side != native[0]:
        dataset = dataset.each(lambda split: shrink(split, native, side))
        shape = (side, side, native[2])
    return dataset.each(lambda split: arrange(split, shape, options.get("layout")))


def _named(name: str, data_dir: str, options: Mapping[str, Any]) -> Dataset:
    """Read an image set of TFDS, or set up its reading where it is large."""
    found = facts.known(name, data_dir)
    parts = expressions.parts(name, found.sizes, options)
    shape = named.shape(name, found, options.get("side", 0))
    examples = sum(map(expressions.count, parts.values()))
    streamed = examples * np.prod(shape) > 1e9 * options["memory"]
    layout, three = options.get("layout") or "pixels", ("train", "valid", "test")
    if streamed:
        each = [named.Images(found, parts[split], shape, layout, verify=False) for split in three]
        for images in each:
            images.check()
            images.read(np.arange(1))
        train, valid, test = (Streamed(images, options["workers"]) for images in each)
        dataset = Dataset(train, valid, test, 255.0, found.classes)
        if _distorts(options):
            _in_memory(dataset, "shift and contrast")
        return dataset
    pictures = [named.whole(found, tuple(parts[split]), shape) for split in three]
    _require_classes(name, pictures[0])
    decoded = Dataset(pictures[0], pictures[1], pictures[2], 255.0, found.classes)
    return _changed(decoded, shape, {**options, "side": 0})


def _distorts(options: Mapping[str, Any]) -> bool:
    return (options.get("shift", 0), options.get("contrast", 1.0)) != (0, 1.0)


def _require_classes(name: str, train: Any) -> None:
    if (train.labels == train.labels[0]).all():
        raise UsageError(
            f"all {len(train.labels):,} training images of {name} have the label "
            f"{int(train.labels[0])}: with one class there is nothing to tell apart; write another "
            "--config.data.train."
        )


def _own(options: Mapping[str, Any]) -> Dataset:
    """Read arrays of the user's own; large ones stay where they are."""
    kind, dataset = arrays.load(options)
    if kind == facts.IMAGES:
        shape = dataset.train.pixels.shape[1:]
        if options.get("side") or _distorts(options):
            raise UsageError(
                "config.data.side, shift and contrast are for sets by name; give your own images "
                "the size that you want."
            )
        dataset = dataset.each(lambda split: arrange(split, shape, options.get("layout")))
    if sum(x.nbytes for x in jax.tree.leaves(dataset[:3])) > 1e9 * options["memory"]:
        dataset = dataset.each(lambda split: Streamed(arrays.Rows(split)))
    return dataset


def _in_memory(dataset: Dataset, what: str) -> Dataset:
    """Refuse what is done to all examples at once, where they are on the disk."""
    if isinstance(dataset.train, Streamed):
        raise UsageError(
            f"config.data.{what} needs a data set in memory, and this one is larger than "
            "config.data.memory; write a larger number of GB there."
        )
    return dataset


def load_config_data(config: Mapping[str, Any]) -> Dataset:
    """Read the data set of a checked config."""
    dataset = load(
        config["dataset"],
        data_dir=config["data_dir"],
        permutation=config["permutation"],
        seed=config["permutation_seed"],
        options=config["data"],
    )
    examples = size(dataset.train)
    if config["batch_size"] > examples:  # of a text, which was counted only now
        raise UsageError(
            f"config.batch_size={config['batch_size']}, but there are {examples} training "
            f"examples; write a number from 1 to {examples}."
        )
    return dataset


def require(config: Mapping[str, Any]) -> None:
    """Refuse a config whose data set is missing, before anything is written."""
    if facts.own(config) or facts.by_name(config):
        facts.of(config)
    elif config["dataset"] == "text":
        sequences.find_text(config["data"]["text"], config["data_dir"])
    elif config["dataset"] != "digits":
        find(FOLDERS.get(config["dataset"], config["dataset"]), config["data_dir"])
    vectors = config["data"]["vectors"]
    if vectors and not epath.Path(vectors).expanduser().is_file():
        raise UsageError(f"config.data.vectors={vectors!r} is no file; write the path of one.")
