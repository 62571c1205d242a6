"""Reads image sets: digits from scikit-learn, MNIST and Fashion-MNIST from TFDS."""

from __future__ import annotations

import functools
import itertools

import numpy as np
from absl import logging

from experiments.config.defaults import SIDE, TRAIN_SIZE
from experiments.data import tfds_records
from experiments.data.locate import FOLDERS, cache_locally, find
from experiments.data.splits import Dataset, Split, take


def distort(dataset: Dataset, native: tuple[int, int, int], shift: int, contrast: float) -> Dataset:
    """Move every image and lower its contrast, by amounts that are drawn once and for all.

    Args:
        dataset: images of `native` values each, bytes.
        native: their height, width and channels.
        shift: the most by which an image moves along each side, in pixels; black follows it.
        contrast: the most that an image's deviations from its mean are divided by.
    """
    rng, (height, width, channels) = np.random.RandomState(0), native

    def one(split: Split) -> Split:
        pixels = np.asarray(split.pixels).reshape(-1, height, width, channels)
        count = len(pixels)
        if shift:
            padded = np.pad(pixels, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
            # [examples, rows to start at, columns to start at, channels, height, width], no copy
            windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (1, 2))
            top, left = rng.randint(0, 2 * shift + 1, (2, count))
            pixels = np.moveaxis(windows[np.arange(count), top, left], 1, -1)
        if contrast > 1:
            share = np.float32(1 / rng.uniform(1, contrast, (count, 1, 1)))
            flat = pixels.reshape(count, height, width * channels)
            mean = flat.mean((1, 2), keepdims=True, dtype=np.float32)
            pixels = np.rint(mean + share * (flat - mean)).astype(np.uint8)
        return split._replace(pixels=pixels.reshape(count, -1))

    return dataset.each(one)


def shrink(split: Split, native: tuple[int, int, int], side: int) -> Split:
    """Average blocks of pixels down to `side x side`."""
    height, width, channels = native
    down, across = height // side, width // side
    pixels = split.pixels.reshape(-1, height, width, channels)
    # One place of all blocks after another: seven times as fast as a mean over the blocks' axes.
    total = np.zeros((len(pixels), side, side, channels), np.uint32)
    for row, column in itertools.product(range(down), range(across)):
        total += pixels[:, row::down, column::across]
    mean = np.rint(total.astype(np.float32) / np.float32(down * across))
    return split._replace(pixels=mean.astype(np.uint8))


def arrange(split: Split, shape: tuple[int, int, int], layout: str | None) -> Split:
    """Lay images `[H, W, C]` out as pixels `[H * W(, C)]`, rows `[H, W * C]` or pictures."""
    height, width, channels = shape
    grey = channels == 1
    laid = {
        "images": shape,
        "rows": (height, width * channels),
        "pixels": (height * width,) if grey else (height * width, channels),
    }[layout or "pixels"]
    return split._replace(pixels=split.pixels.reshape(len(split.pixels), *laid))


def reorder(split: Split, index: np.ndarray) -> Split:
    """Take the pixels of every image in the order of `index`."""
    flat = split.pixels.reshape(len(split.pixels), -1)[:, index]
    return split._replace(pixels=flat.reshape(split.pixels.shape))


def pixel_order(kind: str, seed: int, length: int) -> np.ndarray:
    """Return the index vector of permuted MNIST.

    "permute" is a permutation. "sample" draws positions with replacement, as the published script
    does: about 37 % of the pixels never appear, so it is a harder task under the same name.
    """
    draw = np.random.RandomState(seed)  # its stream never changes, default_rng's may
    return draw.permutation(length) if kind == "permute" else draw.randint(0, length, length)


def load_digits_set() -> Dataset:
    """Read scikit-learn's 8 x 8 digits, in a fixed shuffle."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    index = np.random.RandomState(0).permutation(len(labels))
    pixels, labels = images[index].astype(np.uint8), labels[index].astype(np.int32)
    train, valid, test = (
        Split(pixels[a:b], labels[a:b]) for a, b in ((0, 1437), (1437, 1617), (1617, 1797))
    )
    return Dataset(train, valid, test, 16.0, 10)


@functools.lru_cache(maxsize=2)  # a sweep reads it many times, and nothing writes into it
def load_images(name: str, data_dir: str) -> Dataset:
    """Read an image set of TFDS; the end of its training split is the validation split."""
    full = _tfds(FOLDERS.get(name, name), data_dir, {"train": 60_000, "test": 10_000})
    train, cut = full["train"], TRAIN_SIZE[name]
    first, rest = (take(train, part) for part in (slice(0, cut), slice(cut, None)))
    return Dataset(first, rest, full["test"], 255.0, 10)


def _tfds(name: str, data_dir: str, sizes: dict[str, int]) -> dict[str, Split]:
    folder = cache_locally(find(name, data_dir))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it would recommend a faster image library, each time
    splits = {}
    for split, source in tfds_records.sources(folder, sizes, ("image", "label")).items():
        size = sizes[split]
        pixels = np.empty((size, SIDE[name] ** 2), np.uint8)
        labels = np.empty((size,), np.int32)
        with tfds_records.reading(folder):
            for start in range(0, size, 256):  # in chunks: several times faster than one by one
                chunk = source.__getitems__(range(start, min(start + 256, size)))
                for i, example in enumerate(chunk, start):
                    pixels[i], labels[i] = example["image"].reshape(-1), example["label"]
        splits[split] = Split(pixels, labels)
    logging.set_verbosity(verbosity)
    return splits
