"""Finds prepared data sets on this machine, or says how to prepare them."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from etils import epath

from experiments.data import tfds_records
from experiments.runtime.checkpoints import local
from experiments.usage import UsageError

FOLDERS = {"pmnist": "mnist"}  # names of TFDS where they differ
FSDD = (
    "store github.com/Jakobovski/free-spoken-digit-dataset there as array_record, with features "
    "audio, label, speaker and index, by tfds.dataset_builders.store_as_tfds_dataset."
)
SUBSETS = {"imdb_reviews": "imdb_reviews/plain_text"}


def root_folder(data_dir: str = "") -> epath.Path:
    """Return the TFDS folder: config.data_dir, NORMJAX_DATA_DIR, TFDS_DATA_DIR or at home."""
    if data_dir:
        return epath.Path(data_dir).expanduser()
    if root := os.environ.get("NORMJAX_DATA_DIR"):
        inside = epath.Path(root).expanduser() / "tensorflow_datasets"
        return inside if inside.is_dir() else inside.parent
    return epath.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def find(name: str, data_dir: str = "") -> epath.Path:
    """Return the folder of a prepared TFDS set, or say how to prepare it; uses no network."""
    root = root_folder(data_dir)
    short, name = name, SUBSETS.get(name, name)
    instruction = f"run: python -m experiments.prepare {short} --data_dir={root}"
    if name == "fsdd":
        instruction = FSDD
    versions = sorted((root / name).glob("*/dataset_info.json"))
    if not versions:
        raise UsageError(
            f"data set {short!r} is not in {root} (no {name}/VERSION/dataset_info.json there). "
            "Point NORMJAX_DATA_DIR or --config.data_dir at the folder that has it, or "
            f"{instruction}"
        )
    file_format = tfds_records.read_json(versions[-1]).get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise UsageError(
            f"data set {name!r} in {root} is stored as {file_format}, which needs TensorFlow to "
            f"read. To have it as array_record, {instruction}"
        )
    return versions[-1].parent


class Name(NamedTuple):
    """The name of a TFDS set as TFDS writes it: NAME[/CONFIG][:VERSION]."""

    name: str
    config: str = ""
    version: str = ""


_NAME = re.compile(r"([a-z][a-z0-9_]*)(?:/([\w.+=-]+))?(?::(\d+\.\d+\.\d+))?")


def parse(name: str) -> Name | None:
    """Read NAME[/CONFIG][:VERSION]; None for what is no such name."""
    found = _NAME.fullmatch(name) if len(name) < 200 else None
    return Name(*(part or "" for part in found.groups())) if found else None


def _versions(folder: epath.Path) -> dict[str, epath.Path]:
    """Return the folders of a set's versions, the oldest first."""
    found = {p.parent.name: p.parent for p in folder.glob("*/dataset_info.json")}
    numbered = {v: p for v, p in found.items() if re.fullmatch(r"\d+\.\d+\.\d+", v)}
    return dict(sorted(numbered.items(), key=lambda one: [int(n) for n in one[0].split(".")]))


def find_any(name: str, data_dir: str = "") -> epath.Path | None:
    """Return the folder of any prepared TFDS set, the newest version, or None.

    Raises:
        UsageError: if the set is there, but not that version, or if it has several configs.
    """
    asked, root = parse(name), root_folder(data_dir)
    if asked is None or not (root / asked.name).is_dir():
        return None
    folder = root / asked.name / asked.config
    versions = _versions(folder)
    if not versions and not asked.config:
        inside = sorted(p.name for p in folder.iterdir() if p.is_dir() and _versions(p))
        if len(inside) > 1:
            raise UsageError(
                f"data set {name!r} has several configs in {root}; write one of "
                f"{', '.join(f'{asked.name}/{c}' for c in inside)}."
            )
        versions = _versions(folder / inside[0]) if inside else {}
    if not versions:
        return None
    version = asked.version or list(versions)[-1]
    if version not in versions:
        raise UsageError(
            f"data set {name!r} has no version {version} in {root}; write one of "
            f"{', '.join(versions)}."
        )
    return versions[version]


def prepared(data_dir: str = "") -> list[str]:
    """Return the names of all TFDS sets in the data folder."""
    root, names = root_folder(data_dir), []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if not folder.is_dir() or parse(folder.name) is None:
            continue
        if _versions(folder):
            names.append(folder.name)
        names += [
            f"{folder.name}/{p.name}"
            for p in sorted(folder.iterdir())
            if p.is_dir() and _versions(p)
        ]
    return names


def cache_locally(folder: epath.Path) -> epath.Path:
    """Return a set's folder on this machine; one in a bucket is copied, once, to ~/.cache/normjax.

    Reading records from the bucket itself would take one request for each.
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
