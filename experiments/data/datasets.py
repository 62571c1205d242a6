"""Loads data sets in three splits: images as sequences, rows or pictures, with labels.

=============  =================  ============================================================
name           train/valid/test   where it comes from
=============  =================  ============================================================
digits         1437/180/180       8 x 8, scikit-learn, inside the package; a fixed shuffle
mnist          50000/10000/10000  28 x 28, TFDS `mnist`
pmnist         50000/10000/10000  the same, every image reordered by one fixed index vector
fashion_mnist  50000/10000/10000  28 x 28, TFDS `fashion_mnist`
=============  =================  ============================================================

Spoken digits, film reviews and texts: see `experiments.data.sequences`.

TFDS has its own fixed order, not the upstream one, and "the first 50,000" are the first 50,000 of
that order. Pixels are bytes until the model scales them to [0, 1]. A data set is
decoded once and stays on the device; a batch is a vector of indices into it. A split is any pytree
of arrays with a leading axis of examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from experiments.config.defaults import SIDE, TRAIN_SIZE
from experiments.data import sequences
from experiments.data.images import (
    arrange,
    distort,
    load_digits_set,
    load_images,
    pixel_order,
    reorder,
)
from experiments.data.locate import FOLDERS, cache_locally, find
from experiments.data.splits import Dataset, draw, size, take
from experiments.usage import UsageError


def load(
    name: str,
    *,
    data_dir: str = "",
    permutation: str = "permute",
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Read a set by name; `permutation` and `seed` are for pmnist, `options` is config.data."""
    options = options or {}
    if name in SIDE:
        dataset = load_digits_set() if name == "digits" else load_images(name, data_dir)
        if (changes := (options.get("shift", 0), options.get("contrast", 1.0))) != (0, 1.0):
            dataset = distort(dataset, SIDE[name], *changes)
        dataset = arrange(dataset, SIDE[name], **{k: options.get(k) for k in ("side", "layout")})
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
        dataset = draw(dataset, options["draw"], pooled=pooled)
    for split in ("train", "valid", "test"):
        whole, limit = getattr(dataset, split), options.get(f"{split}_size", 0)
        if limit > size(whole):
            raise UsageError(
                f"config.data.{split}_size={limit}, but the {split} split of {name} has "
                f"{size(whole)} examples; 0 takes them all."
            )
        if limit:
            dataset = dataset._replace(**{split: take(whole, slice(0, limit))})
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
    if config["dataset"] == "text":
        sequences.find_text(config["data"]["text"], config["data_dir"])
    elif config["dataset"] != "digits":
        find(FOLDERS.get(config["dataset"], config["dataset"]), config["data_dir"])
    vectors = config["data"]["vectors"]
    if vectors and not epath.Path(vectors).expanduser().is_file():
        raise UsageError(f"config.data.vectors={vectors!r} is no file; write the path of one.")
