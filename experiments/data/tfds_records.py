"""Reads the records of a prepared TFDS set; what is damaged is named with what to do."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from experiments.usage import UsageError

# A features.json names Python classes, which TFDS imports: of any module in the working directory
# too, were they not checked.
_FEATURE = re.compile(r"tensorflow_datasets\.core\.features\.[a-z_]+\.[A-Za-z]+")


def damaged(path: epath.Path, why: Any) -> UsageError:
    """Make the error for a file of a data set that cannot be read."""
    reason = " ".join(str(why).split())[:160]
    folder = path if path.is_dir() else path.parent
    return UsageError(
        f"{path} is damaged ({reason}); remove {folder} and prepare it again "
        "(python -m experiments.prepare NAME), or copy it from another machine."
    )


def read_json(path: epath.Path) -> dict[str, Any]:
    """Read one of a set's JSON files."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(value, dict):
        raise damaged(path, "it is no JSON object")
    return value


def check_classes(path: epath.Path) -> None:
    """Refuse a features.json with classes that are not TFDS's own."""
    stack: list[Any] = [read_json(path)]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack += node
        if not isinstance(node, dict):
            continue
        for key, value in node.items():
            # "type" is the key that older versions of TFDS wrote.
            named = key in ("pythonClassName", "type") and isinstance(value, str)
            if named and not _FEATURE.fullmatch(value):
                raise UsageError(
                    f"{path} names the class {value[:80]!r}, which is not one of TFDS's own "
                    "features (tensorflow_datasets.core.features...), and is not loaded; remove "
                    f"{path.parent} and prepare it again."
                )
            stack.append(value)


def sources(folder: epath.Path, sizes: dict[str, int], features: Sequence[str]) -> dict[str, Any]:
    """Return the examples of each split, after a check of every file that they come from."""
    for name in ("dataset_info.json", "features.json"):
        if not (folder / name).is_file():
            raise damaged(folder, f"it has no file {name}")
    info = read_json(folder / "dataset_info.json")
    check_classes(folder / "features.json")
    for split, size in sizes.items():
        _check_split(folder, info, split, size)
    import tensorflow_datasets as tfds

    with reading(folder):
        builder = tfds.builder_from_directory(folder)
        missing = [name for name in features if name not in builder.info.features]
        if missing:
            raise damaged(folder / "features.json", f"it has no feature {missing[0]!r}")
        return {split: builder.as_data_source(split=split) for split in sizes}


def _check_split(folder: epath.Path, info: dict[str, Any], split: str, size: int) -> None:
    """Refuse record files that are missing, cut short, altered, or another split's."""
    from array_record.python import array_record_module

    files = sorted(folder.glob(f"*-{split}.array_record-*"))
    if not files:
        raise damaged(folder, f"it has no file *-{split}.array_record-*")
    count = length = 0
    for file in files:
        try:
            reader = array_record_module.ArrayRecordReader(str(file))
            records = reader.read_all()
            if len(records) != reader.num_records() or not records:
                raise RuntimeError(f"{len(records)} of {reader.num_records()} records can be read")
            reader.read([len(records) - 1])  # by the index at its end, which a cut file lacks
            reader.close()
        except (RuntimeError, IndexError, ValueError, OSError) as error:
            raise damaged(file, error) from error
        count, length = count + len(records), length + sum(map(len, records))
    if count != size:
        raise UsageError(
            f"{folder} has {count} {split} examples, and should have {size}; remove it and "
            "prepare it again."
        )
    try:
        declared = {part["name"]: int(part["numBytes"]) for part in info["splits"]}[split]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(folder / "dataset_info.json", f"no bytes of split {split!r}") from error
    if length != declared:
        raise damaged(
            folder,
            f"its {split} records have {length} bytes, dataset_info.json says {declared}: is it "
            "another set's or split's file?",
        )


@contextlib.contextmanager
def reading(folder: epath.Path) -> Iterator[None]:
    """Turn what TFDS raises on damaged files into an error that names the folder."""
    try:
        yield
    except UsageError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise damaged(folder, f"{type(error).__name__}: {error}") from error


# ------------------------------------------------------------------- records of either format

FORMATS = ("array_record", "tfrecord")
_HEADER = 12  # bytes before a record of a tfrecord file: its length and the length's checksum


@functools.cache
def _crc_table() -> np.ndarray:
    """Return the CRC-32C of every byte, `[256]`."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


def masked_crc(blocks: Sequence[bytes]) -> np.ndarray:
    """Compute the checksum that a tfrecord file has of each of some blocks, `[blocks]`.

    It is the CRC-32C, rotated by 15 bits, plus a constant. All blocks are computed at once, byte
    by byte: the interpreter's own loop would take a hundred times as long.
    """
    lengths = np.array([len(block) for block in blocks])
    order = np.argsort(-lengths, kind="stable")
    longest = int(lengths.max(initial=0))
    # [bytes, blocks], the longest block first: the first so many have a byte at each place
    data = np.zeros((longest, len(blocks)), np.uint8)
    for column, i in enumerate(order):
        data[: lengths[i], column] = np.frombuffer(blocks[i], np.uint8)
    table, crc = _crc_table(), np.full(len(blocks), 0xFFFFFFFF, np.uint32)
    reach = np.searchsorted(-lengths[order], -np.arange(longest), side="left")
    for row, n in zip(data, reach, strict=True):
        crc[:n] = table[(crc[:n] ^ row[:n]) & 0xFF] ^ (crc[:n] >> 8)
    crc = crc ^ np.uint32(0xFFFFFFFF)
    rotated = (crc >> 15) | (crc << 17)
    result = np.empty_like(crc)
    result[order] = rotated + np.uint32(0xA282EAD8)
    return result


class Records:
    """The records of a split, `records.read(numbers)`, from files of array_record or tfrecord.

    Files are opened in each process that reads them. array_record verifies its own checksums; those
    of tfrecord, of which NumPy computes 5 MB a second where records are large, only with `verify`.
    """

    def __init__(
        self, files: Sequence[str], lengths: Sequence[int], file_format: str, verify: bool = True
    ):
        self.files, self.format, self.verify = tuple(files), file_format, verify
        self.ends = np.cumsum(lengths)
        for file in map(epath.Path, self.files):
            if not file.is_file():
                raise damaged(file, "it is missing")
        self._opened: dict[int, Any] = {}

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def read(self, numbers: Sequence[int] | np.ndarray) -> list[bytes]:
        """Return the records of some numbers, in their order."""
        numbers = np.asarray(numbers)
        file = np.searchsorted(self.ends, numbers, side="right")
        found: list[bytes] = [b""] * len(numbers)
        for i in np.unique(file):
            at = np.flatnonzero(file == i)
            first = int(self.ends[i - 1]) if i else 0
            for place, record in zip(at, self._read(int(i), numbers[at] - first), strict=True):
                found[place] = record
        return found

    def _read(self, i: int, numbers: np.ndarray) -> Sequence[bytes]:
        path = epath.Path(self.files[i])
        expected = int(self.ends[i]) - (int(self.ends[i - 1]) if i else 0)
        try:
            if i not in self._opened:
                array_record = self.format == "array_record"
                opened = _Array(path) if array_record else _TFRecord(path, self.verify)
                if len(opened) != expected:
                    raise ValueError(f"it has {len(opened)} records and should have {expected}")
                self._opened[i] = opened
            return self._opened[i].read(numbers)
        except (RuntimeError, IndexError, ValueError, OSError) as error:
            raise damaged(path, error) from error


class _Array:
    """A file of array_record, which has an index and checksums of its own."""

    def __init__(self, path: epath.Path):
        from array_record.python import array_record_module

        self.reader = array_record_module.ArrayRecordReader(str(path))

    def __len__(self) -> int:
        return int(self.reader.num_records())

    def read(self, numbers: np.ndarray) -> Sequence[bytes]:
        return self.reader.read([int(n) for n in numbers])


class _TFRecord:
    """A file of tfrecord: lengths and records one after the other, each with a checksum."""

    def __init__(self, path: epath.Path, verify: bool):
        self.path, self.verify = path, verify
        starts: list[int] = []
        lengths: list[int] = []
        headers: list[bytes] = []
        size, at = path.stat().length, 0
        with open(path, "rb") as file:
            while at < size:
                file.seek(at)
                header = file.read(_HEADER)
                length = int.from_bytes(header[:8], "little")
                if len(header) < _HEADER or at + _HEADER + length + 4 > size:
                    raise ValueError(f"record {len(starts)} is cut short")
                starts.append(at + _HEADER)
                lengths.append(length)
                headers.append(header)
                at += _HEADER + length + 4
        self.starts, self.lengths = starts, lengths
        _require_crc([h[:8] for h in headers], [h[8:] for h in headers], range(len(headers)))

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, numbers: np.ndarray) -> Sequence[bytes]:
        found, sums = [], []
        with open(self.path, "rb") as file:
            for n in numbers:
                file.seek(self.starts[n])
                found.append(file.read(self.lengths[n]))
                sums.append(file.read(4))
        if self.verify:
            _require_crc(found, sums, numbers)
        return found


def _require_crc(blocks: Sequence[bytes], sums: Sequence[bytes], numbers: Any) -> None:
    wanted = np.frombuffer(b"".join(sums), "<u4")
    wrong = np.flatnonzero(masked_crc(blocks) != wanted)
    if len(wrong):
        raise ValueError(f"record {numbers[wrong[0]]} has another checksum")
