"""Finds prepared data sets on this machine, or says how to prepare them."""

from __future__ import annotations

import json
import os

from etils import epath

from experiments.runtime.checkpoints import local
from experiments.usage import UsageError

FOLDERS = {"pmnist": "mnist"}  # names of TFDS where they differ
SUBSETS = {"imdb_reviews": "imdb_reviews/plain_text"}


def data_dir(asked: str = "") -> epath.Path:
    """Where TFDS sets are: config.data_dir, NORMJAX_DATA_DIR, TFDS_DATA_DIR, the home folder."""
    if asked:
        return epath.Path(asked).expanduser()
    if root := os.environ.get("NORMJAX_DATA_DIR"):
        inside = epath.Path(root).expanduser() / "tensorflow_datasets"
        return inside if inside.is_dir() else inside.parent
    return epath.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def find(name: str, asked: str = "") -> epath.Path:
    """The folder of a prepared TFDS set, or at once (no network is asked) how to prepare it."""
    root = data_dir(asked)
    short, name = name, SUBSETS.get(name, name)
    how = f"run: python -m experiments.prepare {short} --data_dir={root}"
    if name == "fsdd":
        how = (
            "store github.com/Jakobovski/free-spoken-digit-dataset there as array_record, with "
            "features audio, label, speaker and index, by tfds.dataset_builders."
            "store_as_tfds_dataset."
        )
    found = sorted((root / name).glob("*/dataset_info.json"))
    if not found:
        raise UsageError(
            f"data set {short!r} is not in {root} (no {name}/VERSION/dataset_info.json there). "
            f"Point NORMJAX_DATA_DIR or --config.data_dir at the folder that has it, or {how}"
        )
    kept_as = json.loads(found[-1].read_text()).get("fileFormat", "tfrecord")
    if kept_as != "array_record":
        raise UsageError(
            f"data set {name!r} in {root} is stored as {kept_as}, which needs TensorFlow to read. "
            f"To have it as array_record, {how}"
        )
    return found[-1].parent


def cache_locally(folder: epath.Path) -> epath.Path:
    """A set's folder on this machine: one in a bucket is copied, once, into ~/.cache/normjax.

    Records could be read from the bucket too, with a request for each of them.
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
