"""Finds prepared data sets on this machine, or says how to prepare them."""

from __future__ import annotations

import os

from etils import epath

from experiments.data import records
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
    file_format = records.read_json(versions[-1]).get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise UsageError(
            f"data set {name!r} in {root} is stored as {file_format}, which needs TensorFlow to "
            f"read. To have it as array_record, {instruction}"
        )
    return versions[-1].parent


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
