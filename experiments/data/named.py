"""Reads any image classification set of TFDS by name, from array_record or tfrecord files.

`config.dataset` is the name as TFDS writes it, NAME[/CONFIG][:VERSION]. Shape, channels, classes
and splits are those of the builder's info. `config.data.train`, `valid` and `test` are split
expressions of TFDS; the defaults are "train", "test", and "validation" or, where there is none, the
last tenth of the training split. `config.data.valid` may also be a number: so many of the last
training examples, or below 1 that share of them.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from experiments.data import expressions, tfds_records
from experiments.data.images import arrange
from experiments.data.locate import cache_locally, find_any
from experiments.data.splits import Split
from experiments.usage import UsageError

CHUNK = 256  # images that are decoded at once
LARGEST_CHECKED = 10**10  # bytes of records that are read before a run, to find damaged ones


class Named(NamedTuple):
    """What a set's info says: features by name, the images' shape, classes, examples by split.

    A height or width of 0 is one that differs from image to image.
    """

    folder: str
    image: str
    label: str
    shape: tuple[int, int, int]
    classes: int
    counts: tuple[tuple[str, int], ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The examples of each split."""
        return dict(self.counts)


def describe(name: str, data_dir: str = "") -> Named | None:
    """Read what a prepared set is, or None if there is none of that name.

    Raises:
        UsageError: if it is no image classification; the message says what it is.
    """
    folder = find_any(name, data_dir)
    if folder is None:
        return None
    folder = cache_locally(folder)
    return _describe(name, str(folder), _stamps(folder))


def _stamps(folder: epath.PathLike) -> tuple[float, ...]:
    """Return when the files that describe a set were changed."""
    files = [epath.Path(folder) / name for name in ("dataset_info.json", "features.json")]
    for file in files:
        if not file.is_file():
            raise tfds_records.damaged(epath.Path(folder), f"it has no file {file.name}")
    return tuple(float(file.stat().mtime) for file in files)


@functools.lru_cache(maxsize=8)
def _builder(folder: str, stamps: Any) -> Any:
    """Load a builder from its folder; `stamps` are the times when its files were changed."""
    where = epath.Path(folder)
    info = tfds_records.read_json(where / "dataset_info.json")
    file_format = info.get("fileFormat", "tfrecord")
    if file_format not in tfds_records.FORMATS:
        raise UsageError(
            f"{folder} is stored as {file_format}; {' and '.join(tfds_records.FORMATS)} can be "
            "read. Remove it, and run: python -m experiments.prepare NAME"
        )
    tfds_records.check_classes(where / "features.json")
    import tensorflow_datasets as tfds

    with tfds_records.reading(where):
        return tfds.builder_from_directory(folder)


@functools.lru_cache(maxsize=8)
def _describe(name: str, folder: str, stamps: Any) -> Named:
    import tensorflow_datasets as tfds

    builder = _builder(folder, stamps)
    features = tfds.features

    def refused(why: str) -> UsageError:
        return UsageError(
            f"data set {name!r} is no image classification that can be read: {why} (its features: "
            f"{_listed(builder.info.features)}). Write a function that returns its splits, and "
            "name it by --config.data.source=PACKAGE.MODULE:FUNCTION."
        )

    known = dict(builder.info.features) if hasattr(builder.info.features, "items") else {}
    given = builder.info.supervised_keys
    pair = given if isinstance(given, tuple) and len(given) == 2 else ("image", "label")
    images = [k for k, v in known.items() if isinstance(v, features.Image)]
    labels = [k for k, v in known.items() if isinstance(v, features.ClassLabel)]
    if not images:
        raise refused("it has no images")
    image = pair[0] if pair[0] in images else images[0]
    label = pair[1] if pair[1] in known else labels[0] if len(labels) == 1 else ""
    if not label:
        raise refused(f"it has {len(labels)} labels to choose from" if labels else "no labels")
    if not isinstance(known[label], features.ClassLabel):
        raise refused(f"{label!r} is a {_kind(known[label])}, and no class of a known number")
    shape, dtype = known[image].shape, np.dtype(known[image].np_dtype)
    if dtype != np.uint8:
        raise refused(f"its images are {8 * dtype.itemsize}-bit {dtype}, and bytes are read")
    if len(shape) != 3 or not shape[2]:
        raise refused(f"its images have the shape {shape}, whose channels are unknown")
    classes = known[label].num_classes
    if not classes or classes < 2:
        raise refused(f"{label!r} has {classes or 'an unknown number of'} classes, not 2 or more")
    counts = tuple((split, part.num_examples) for split, part in builder.info.splits.items())
    height, width, channels = (int(n or 0) for n in shape)
    return Named(folder, image, label, (height, width, channels), classes, counts)


def _kind(feature: Any) -> str:
    return f"{type(feature).__name__} of shape {tuple(feature.shape)}"


def _listed(features: Any) -> str:
    pairs = features.items() if hasattr(features, "items") else [("", features)]
    return ", ".join(f"{key} {_kind(feature)}".strip() for key, feature in pairs)[:300]


# ----------------------------------------------------------------------------------------- images


def shape(name: str, named: Named, side: int) -> tuple[int, int, int]:
    """Return the shape of an image as it is read."""
    height, width, channels = named.shape
    if side:
        return side, side, channels
    if not height or not width:
        raise UsageError(
            f"the images of {name} differ in size; write --config.data.side=64, for instance: "
            "each is scaled to that side and cut to its middle square."
        )
    return height, width, channels


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """Scale an image `[H, W, C]` so that its shorter side is `side`, and take the middle square."""
    from PIL import Image

    height, width, _ = image.shape
    scale = side / min(height, width)
    size = max(side, round(scale * width)), max(side, round(scale * height))
    # a channel at a time: Pillow knows no images of two channels, or of five
    layers = [
        np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BILINEAR))
        for channel in np.moveaxis(image, -1, 0)
    ]
    whole = np.stack(layers, axis=-1)
    top, left = (whole.shape[0] - side) // 2, (whole.shape[1] - side) // 2
    return whole[top : top + side, left : left + side]


class Images:
    """Some examples of a set, read and decoded on demand: `images.read(numbers)`.

    What a process opens stays its own, so that workers can be given one.

    Args:
        named: the set.
        intervals: which of its examples, and in which order.
        shape: of an image as it is read; smaller than the set's if images are scaled.
        layout: `config.data.layout`.
        verify: whether every checksum is computed.
    """

    def __init__(
        self,
        named: Named,
        intervals: Sequence[expressions.Part],
        shape: tuple[int, int, int],
        layout: str = "images",
        verify: bool = True,
    ):
        self.named, self.intervals = named, tuple(intervals)
        self.shape, self.layout = shape, layout
        splits = self._builder.info.splits
        with tfds_records.reading(epath.Path(named.folder)):
            self.files = {
                split: tfds_records.Records(
                    [str(path) for path in splits[split].filepaths],
                    splits[split].shard_lengths,
                    self._builder.info.file_format.value,
                    verify,
                )
                for split, *_ in self.intervals
            }
        self.ends = np.cumsum([b - a for _, a, b in self.intervals])

    def check(self) -> None:
        """Read the records of a set of up to 10 GB once, undecoded, so that damage shows early."""
        splits = self._builder.info.splits
        if sum(splits[split].num_bytes for split in self.files) > LARGEST_CHECKED:
            return
        for split, a, b in self.intervals:
            for start in range(a, b, CHUNK):
                self.files[split].read(np.arange(start, min(start + CHUNK, b)))

    @property
    def _builder(self) -> Any:
        return _builder(self.named.folder, _stamps(self.named.folder))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_features"}

    @functools.cached_property
    def _features(self) -> Any:
        """The parser of image and label alone."""
        import tensorflow_datasets as tfds

        known = self._builder.info.features
        own = {key: known[key] for key in (self.named.image, self.named.label)}
        return tfds.features.FeaturesDict(own), {self.named.image: tfds.decode.SkipDecoding()}

    def read(self, numbers: Sequence[int] | np.ndarray) -> Split:
        """Return the examples of some numbers, as arrays."""
        numbers = np.asarray(numbers)
        piece = np.searchsorted(self.ends, numbers, side="right")
        pixels = np.empty((len(numbers), *self.shape), np.uint8)
        labels = np.empty(len(numbers), np.int32)
        for i, (split, a, b) in enumerate(self.intervals):
            at = np.flatnonzero(piece == i)
            within = numbers[at] - (self.ends[i] - (b - a)) + a
            for place, number, record in zip(
                at, within, self.files[split].read(within), strict=True
            ):
                with self._named(split, int(number)):
                    pixels[place], labels[place] = self._decode(record)
        return arrange(Split(pixels, labels), self.shape, self.layout)

    @contextlib.contextmanager
    def _named(self, split: str, number: int) -> Iterator[None]:
        """Turn what a broken example raises into an error that names it."""
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            why = f"example {number} of {split}: {type(error).__name__}: {error}"
            raise tfds_records.damaged(epath.Path(self.named.folder), why) from error

    def _decode(self, record: bytes) -> tuple[np.ndarray, int]:
        features, skip = self._features
        example = features.deserialize_example_np(record, decoders=skip)
        label = int(example[self.named.label])
        if not 0 <= label < self.named.classes:
            raise UsageError(
                f"{self.named.folder} has a label {label}, and its {self.named.classes} classes "
                f"are 0 to {self.named.classes - 1}: TFDS writes -1 where labels are not public. "
                "Leave that split out, by --config.data.test='train[90%:]' for instance."
            )
        image = decode(example[self.named.image], self.shape[2])
        if image.shape != self.shape:
            differs = not self.named.shape[0] or not self.named.shape[1]
            if not differs and image.shape != self.named.shape:
                raise ValueError(f"an image of {image.shape}, not {self.named.shape}")
            image = resize(image, self.shape[0])
        return image, label


@functools.lru_cache(maxsize=3)  # a sweep reads it many times, and nothing writes into it
def whole(
    named: Named, intervals: tuple[expressions.Part, ...], shape: tuple[int, int, int]
) -> Split:
    """Read all examples of some intervals, in chunks: images `[examples, H, W, C]`."""
    images = Images(named, intervals, shape)
    chunks = [
        images.read(np.arange(start, min(start + CHUNK, len(images))))
        for start in range(0, len(images), CHUNK)
    ]
    pixels, labels = zip(*chunks, strict=True)
    return Split(np.concatenate(pixels), np.concatenate(labels))


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """Decode a PNG or JPEG to bytes `[H, W, channels]`."""
    from PIL import Image

    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"an image of mode {image.mode}, of more than 8 bits")
        wanted = modes.get(channels, image.mode)
        pixels = np.asarray(image if image.mode == wanted else image.convert(wanted))
    return pixels[..., None] if pixels.ndim == 2 else pixels
