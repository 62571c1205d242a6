"""Reads arrays of the user's own: a folder of .npz files, or what a function returns.

Three splits "train", "valid" and "test", each a mapping with the arrays of its examples:

====================  ==========================================================================
images                `x [n, H, W]` or `[n, H, W, C]`, uint8 from 0 to 255, or floats as they are
                      fed to the model (then with the axis C), and `y [n]`
sequences             `x [n, time, features]`, floats, and `y [n]`
words                 `x [n, time]`, integers from 0, and `y [n]`
text                  `x [n, length + 1]`, integers from 0, and no `y`: the next token is predicted
====================  ==========================================================================

`y` holds classes as integers from 0. Of sequences and words `lengths [n]`, integers from 1 to
`time`, says how many steps an example has; what follows is padding, any finite number. Without it
all have `time` steps. Values are not standardized. Where there is no "valid", `config.data.valid`
says how many of the last training examples, or which share of them, validate: a tenth by default.

A folder, `config.data.folder` with `config.dataset="npz"`, has a file for each split, whose name
says which. A function, `config.data.source="package.module:function"`, takes nothing or a
dictionary, `config.data`, and returns a mapping of the splits; "classes" and "vocabulary" beside
them are the numbers of classes and words, if not all of them occur.
"""

from __future__ import annotations

import functools
import inspect
import json
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from experiments.data.sequences import Segments, Sequences
from experiments.data.splits import Dataset, Split
from experiments.usage import UsageError, imported, nearest, told

SPLITS = ("train", "valid", "test")
CHUNK = 4096  # examples that are looked at at once: arrays may be on the disk


class Rows:
    """The examples of a pytree of arrays, in memory or mapped from the disk."""

    def __init__(self, split: Any):
        self.split = split

    def __len__(self) -> int:
        return len(self.split[0])

    def read(self, numbers: np.ndarray) -> Any:
        """Return the examples of some numbers."""
        return type(self.split)(*(np.asarray(x[np.asarray(numbers)]) for x in self.split))


# -------------------------------------------------------------------------------------- the arrays


def _chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    yield from (x[start : start + CHUNK] for start in range(0, len(x), CHUNK))


def _range(x: np.ndarray) -> tuple[int, int]:
    parts = [(int(part.min()), int(part.max())) for part in _chunks(x) if part.size]
    return min(low for low, _ in parts), max(high for _, high in parts)


def _kind(where: str, x: np.ndarray, labelled: bool) -> str:
    """Return what an array of examples is, by its type and its axes."""
    known = {
        ("u1", 3): "images",
        ("u1", 4): "images",
        ("f", 4): "images",
        ("f", 3): "sequences",
        ("i", 2): "words" if labelled else "text",
    }
    letter = "u1" if x.dtype == np.uint8 and x.ndim > 2 else x.dtype.kind.replace("u", "i")
    if (letter, x.ndim) in known:
        return known[letter, x.ndim]
    hint = ""
    if letter == "f" and x.ndim == 2:
        hint = " Of one number a step write x[:, :, None]."
    if letter == "i" and x.ndim in (3, 4):
        hint = (
            f" Images are uint8, not {x.dtype}: scale them to 0 to 255, or to floats [n, H, W, C]."
        )
    raise UsageError(
        f"{where}: x of {x.dtype} with shape {x.shape} is none of: images, uint8 [n, H, W(, C)] or "
        f"floats [n, H, W, C]; sequences, floats [n, time, features]; words, integers [n, time]."
        f"{hint}"
    )


def _split(where: str, given: Any) -> tuple[str, dict[str, np.ndarray]]:
    """Check the arrays of a split, and return what they are."""
    if isinstance(given, tuple | list) and len(given) in (2, 3):
        given = dict(zip(("x", "y", "lengths"), given, strict=False))
    if not isinstance(given, Mapping) or "x" not in given:
        raise UsageError(
            f"{where} must be a mapping with the arrays 'x' and 'y', or a pair of these, and is "
            f"{type(given).__name__}."
        )
    for key in given:
        if key not in ("x", "y", "lengths"):
            raise UsageError(
                f"{where} has an array {key!r}; known: x, y, lengths."
                f"{nearest(key, ('x', 'y', 'lengths'))}"
            )
    arrays = {key: np.asanyarray(value) for key, value in given.items() if value is not None}
    x, n = arrays["x"], len(arrays["x"]) if arrays["x"].ndim else 0
    kind = _kind(where, x, "y" in arrays)
    if not n:
        raise UsageError(f"{where} is empty: x has the shape {x.shape}.")
    if not x.size:
        raise UsageError(f"{where}: x of shape {x.shape} has an axis of length 0.")
    if kind not in ("text",) and "y" not in arrays:
        raise UsageError(f"{where} has no labels; add y [{n}], the classes as integers from 0.")
    if x.dtype.kind == "f" and not all(np.isfinite(part).all() for part in _chunks(x)):
        raise UsageError(f"{where}: x holds numbers that are not finite; pad with 0.")
    for key in ("y", "lengths"):
        if key in arrays and (arrays[key].dtype.kind not in "iu" or arrays[key].shape != (n,)):
            raise UsageError(
                f"{where}: {key} must be {n} integers, one for each row of x, and is "
                f"{arrays[key].dtype} of shape {arrays[key].shape}."
            )
    if "lengths" in arrays:
        if kind not in ("sequences", "words"):
            raise UsageError(f"{where}: lengths are for sequences and words, and x is {kind}.")
        low, high = _range(arrays["lengths"])
        if low < 1 or high > x.shape[1]:
            raise UsageError(
                f"{where}: lengths go from {low} to {high}, and must be from 1 to {x.shape[1]}, "
                "the steps of x."
            )
    for key in ("y", "x") if kind in ("words", "text") else ("y",):
        if key in arrays and _range(arrays[key])[0] < 0:
            raise UsageError(f"{where}: {key} holds {_range(arrays[key])[0]}; number from 0.")
    return kind, arrays


def _hold_out(where: str, given: dict[str, Any], valid: str) -> None:
    """Take the validation set from the end of the training set."""
    arrays = given["train"]
    n = len(arrays["x"])
    try:
        number = float(valid or 0.1)
    except ValueError as error:
        raise UsageError(
            f"{where} has no split 'valid', and config.data.valid={valid!r} is no number; write "
            "how many of the last training examples validate, or which share: 0.1."
        ) from error
    count = round(number * n) if 0 < number < 1 else int(number)
    if not 0 < count < n or (number >= 1 and count != number):
        raise UsageError(
            f"config.data.valid={valid or '0.1'!r} of {n:,} training examples leaves one of both "
            f"empty; write a number from 1 to {max(1, n - 1)}, or a share such as 0.1."
        )
    given["valid"] = {key: x[n - count :] for key, x in arrays.items()}
    given["train"] = {key: x[: n - count] for key, x in arrays.items()}


def _number(where: str, key: str, given: Any, found: int) -> int:
    """Return a number of classes or words: the one given, or as many as occur."""
    if given is None:
        return found
    if not isinstance(given, int | np.integer) or given < found:
        raise UsageError(
            f"{where}: {key}={given!r} must be an integer of at least {found}, one more than the "
            "greatest there is."
        )
    return int(given)


def checked(given: Any, where: str, valid: str = "") -> tuple[str, Dataset]:
    """Check splits of arrays against the contract above; return what they are, and the data set.

    Args:
        given: a mapping with "train", "test" and, maybe, "valid", "classes" and "vocabulary".
        where: what gave them, for messages.
        valid: `config.data.valid`, for splits without "valid".

    Raises:
        UsageError: with what to write instead.
    """
    if not isinstance(given, Mapping):
        raise UsageError(
            f"{where} must be a mapping with 'train', 'valid' and 'test', and is "
            f"{type(given).__name__}."
        )
    extra = {*SPLITS, "classes", "vocabulary"}
    for key in given:
        if key not in extra:
            raise UsageError(f"{where} has {key!r}, which is no split.{nearest(key, extra)}")
    for split in ("train", "test"):
        if split not in given:
            raise UsageError(
                f"{where} has no split {split!r}; it has {', '.join(given) or 'none'}."
            )
    found, kinds = {}, set()
    for split in SPLITS:
        if given.get(split) is not None:
            kind, found[split] = _split(f"{split} of {where}", given[split])
            kinds.add(kind)
    if len(kinds) > 1:
        raise UsageError(f"the splits of {where} are of unlike kinds: {', '.join(sorted(kinds))}.")
    if "valid" not in found:
        _hold_out(where, found, valid)
    shapes = {split: arrays["x"].shape[1:] for split, arrays in found.items()}
    if len(set(shapes.values())) > 1 or len({a["x"].dtype for a in found.values()}) > 1:
        types = {split: arrays["x"].dtype for split, arrays in found.items()}
        each = ", ".join(f"{split} {shapes[split]} {types[split]}" for split in found)
        raise UsageError(
            f"the splits of {where} differ in the shape or type of an example: {each}."
        )
    kind = kinds.pop()
    words = classes = 0
    if kind in ("words", "text"):
        occur = 1 + max(_range(arrays["x"])[1] for arrays in found.values())
        words = _number(where, "vocabulary", given.get("vocabulary"), occur)
    if kind != "text":
        occur = 1 + max(_range(arrays["y"])[1] for arrays in found.values())
        classes = _number(where, "classes", given.get("classes"), occur)
        low, high = _range(found["train"]["y"])
        if low == high:
            raise UsageError(
                f"all training labels of {where} are {low}: with one class there is nothing to "
                "tell apart."
            )
    white = 255.0 if found["train"]["x"].dtype == np.uint8 else 1.0
    train, valid, test = (_pack(kind, found[split]) for split in SPLITS)
    return kind, Dataset(train, valid, test, white, classes or words, words)


def _pack(kind: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """Make the pytree of a split; types become those of the device."""
    x = arrays["x"]
    if kind == "text":
        return Segments(x.astype(np.int32))
    if x.dtype != np.uint8 or kind == "words":
        x = x.astype(np.int32 if kind == "words" else np.float32, copy=False)
    labels = arrays["y"].astype(np.int32)
    if kind == "images":
        return Split(x[..., None] if x.ndim == 3 else x, labels)
    lengths = arrays.get("lengths", np.full(len(x), x.shape[1]))
    return Sequences(x, lengths.astype(np.int32), labels)


# ------------------------------------------------------------------------------------ their origin


def load(options: Mapping[str, Any]) -> tuple[str, Dataset]:
    """Read the arrays that `config.data` names, and what they are."""
    if options["source"]:
        kept = json.dumps(dict(options), sort_keys=True)
        return _from_function(options["source"], kept)
    folder = epath.Path(options["folder"]).expanduser()
    files = find_npz(options["folder"])
    stamps = tuple((split, str(p), float(p.stat().mtime)) for split, p in files.items())
    return _from_folder(str(folder), stamps, options["valid"])


def find_npz(folder: str) -> dict[str, epath.Path]:
    """Return the files of a folder by split."""
    where = epath.Path(folder).expanduser()
    if not folder or not where.is_dir():
        raise UsageError(
            f"config.data.folder={folder!r} is no folder; config.dataset='npz' reads train.npz, "
            "valid.npz and test.npz of one. Write --config.data.folder=FOLDER."
        )
    found: dict[str, epath.Path] = {}
    for path in sorted(where.glob("*.npz")):
        splits = [split for split in SPLITS if split in path.name]
        if len(splits) != 1 or splits[0] in found:
            raise UsageError(
                f"{path}: each file of {folder} is one split, with train, valid or test in its "
                "name."
            )
        found[splits[0]] = path
    for split in ("train", "test"):
        if split not in found:
            names = ", ".join(path.name for path in found.values()) or "no .npz file"
            raise UsageError(f"{folder} has no {split}.npz; it has {names}.")
    return found


@functools.lru_cache(maxsize=2)
def _from_folder(folder: str, stamps: Any, valid: str) -> tuple[str, Dataset]:
    given: dict[str, Any] = {}
    for split, path, _ in stamps:
        try:
            with np.load(path, allow_pickle=False) as file:
                given[split] = {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UsageError(
                f"{path} is damaged, or no .npz ({' '.join(str(error).split())[:160]}); write it "
                "with np.savez(path, x=x, y=y, lengths=lengths)."
            ) from error
    return checked(given, folder, valid)


@functools.lru_cache(maxsize=2)
def _from_function(source: str, kept: str) -> tuple[str, Dataset]:
    options = json.loads(kept)
    make = imported("config.data.source", source, "function", callable)
    try:
        takes = bool(inspect.signature(make).parameters)
    except (TypeError, ValueError):
        takes = False
    try:
        given = make(options) if takes else make()
    except UsageError:
        raise
    except Exception as error:  # whatever the function raises
        raise UsageError(f"config.data.source={source!r} failed: {told(error)}.") from error
    return checked(given, f"config.data.source={source!r}", options["valid"])
