"""Tells what is known of a data set before a model is built: kind, shapes, classes, sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.config import defaults
from experiments.config.defaults import DATASETS, FOLD_SIZE, SIDE, TRAIN_SIZE
from experiments.data import arrays, expressions, locate, named
from experiments.data.splits import size
from experiments.usage import UsageError, nearest, short

IMAGES, FRAMES, WORDS, TEXT = KINDS = ("images", "sequences", "words", "text")
UNKNOWN = 2**31  # examples of a text, which are counted when it is read


class Facts(NamedTuple):
    """What a config's data are; of images `shape` is (height, width, channels) as they are read."""

    kind: str
    classes: int
    examples: int  # of the training split, before config.data.train_size
    shape: tuple[int, ...] = ()  # of sequences (steps, features)


def of(config: Mapping[str, Any]) -> Facts:
    """Return the facts of a config's data.

    Raises:
        UsageError: if there is no such data set on this machine, or it cannot be classified.
    """
    name, options = config["dataset"], config["data"]
    if own(config):
        kind, dataset = arrays.load(options)
        return Facts(kind, dataset.classes, size(dataset.train), dataset.train[0].shape[1:])
    if name in SIDE:
        side = options["side"] or SIDE[name]
        return Facts(IMAGES, 10, TRAIN_SIZE[name], (side, side, 1))
    if name == "fsdd":
        examples = FOLD_SIZE if options["fold"] else TRAIN_SIZE[name]
        return Facts(FRAMES, 10, examples, (options["length"], 20))
    if name == "imdb_reviews":
        return Facts(WORDS, 2, TRAIN_SIZE[name], (options["length"],))
    if name == "text":
        return Facts(TEXT, 0, UNKNOWN, (options["length"] + 1,))
    found = known(name, config["data_dir"])
    train = expressions.parts(name, found.sizes, options)["train"]
    return Facts(
        IMAGES,
        found.classes,
        expressions.count(train),
        named.shape(name, found, options["side"]),
    )


def own(config: Mapping[str, Any]) -> bool:
    """Whether the data are arrays of the user's own."""
    return bool(config["data"].get("source")) or config["dataset"] == "npz"


def by_name(config: Mapping[str, Any]) -> bool:
    """Whether the data are a set of TFDS, by its name."""
    return config["dataset"] not in DATASETS and not own(config)


def known(name: str, data_dir: str) -> named.Named:
    """Describe a prepared TFDS set, or say which sets there are."""
    found = named.describe(name, data_dir)
    if found is not None:
        return found
    here = [one for one in locate.prepared(data_dir) if one.partition("/")[0] not in DATASETS]
    names = [*DATASETS, *here]
    message = (
        f"config.dataset={short(name)} is unknown; known: {', '.join(names)}.{nearest(name, names)}"
    )
    if locate.parse(name) is not None:
        root = locate.root_folder(data_dir)
        message += (
            f" No TFDS set of that name is in {root}: point NORMJAX_DATA_DIR or --config.data_dir "
            f"at the folder that has it, or run: python -m experiments.prepare {name} "
            f"--data_dir={root}"
        )
    raise UsageError(message)


def timesteps(config: Mapping[str, Any]) -> int:
    """Return the number of steps of the longest sequence in a config's data."""
    if not by_name(config) and not own(config):
        return defaults.timesteps(config)
    facts, layout = of(config), config["data"]["layout"]
    if facts.kind == IMAGES:
        height, width, _ = facts.shape
        return height if layout == "rows" else height * width
    return facts.shape[0] - (facts.kind == TEXT)


def image_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return height, width and channels of a config's images as they are read."""
    found = of(config)
    if found.kind != IMAGES:
        raise UsageError(
            f"config.task={config['task']!r} is for images, and config.dataset="
            f"{config['dataset']!r} is {found.kind}; known: {', '.join(SIDE)}, and any image set "
            "of TFDS or of your own."
        )
    height, width, channels = found.shape
    return height, width, channels
