"""Reads the records of a prepared TFDS set; what is damaged is named with what to do."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

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
