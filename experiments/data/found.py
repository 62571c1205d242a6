"""Lists the data sets that are on this machine."""

from __future__ import annotations

import os

from etils import epath

from experiments.config.defaults import DATASETS
from experiments.data import locate, named
from experiments.data.sequences import find_text
from experiments.usage import UsageError


def lines(data_dir: str = "") -> list[tuple[str, str]]:
    """Return name and content of the data sets that a run can read here, by name."""
    root = locate.root_folder(data_dir)
    found = [("digits", "8 x 8 x 1, 10 classes, inside scikit-learn")]
    ready = locate.prepared(data_dir)
    for name in DATASETS:
        folder = locate.FOLDERS.get(name, name)
        if locate.SUBSETS.get(folder, folder) in ready:
            found.append((name, f"in {root}"))
    for name in ready:
        if name.partition("/")[0] not in DATASETS:
            found.append((name, _described(name, data_dir)))
    return found + [(f"text, --config.data.text={name}", words) for name, words in _texts()]


def _described(name: str, data_dir: str) -> str:
    try:
        set_ = named.describe(name, data_dir)
    except UsageError as error:
        reason = str(error).partition("read: ")[2].partition(" (its features")[0]
        return f"no images to classify: {reason}" if reason else str(error)[:100]
    if set_ is None:
        return "not there any more"
    sides = [str(n) if n else "?" for n in set_.shape]
    sizes = ", ".join(f"{split} {size:,}" for split, size in set_.counts)
    return f"{' x '.join(sides)}, {set_.classes} classes: {sizes}"


def _texts() -> list[tuple[str, str]]:
    """Return the folders of text in the data folder."""
    root = os.environ.get("NORMJAX_DATA_DIR")
    folder = epath.Path(root).expanduser() / "text" if root else None
    found = []
    for path in sorted(folder.iterdir()) if folder is not None and folder.is_dir() else ():
        try:
            files = find_text(path.name)
        except UsageError:
            continue
        found.append((path.name, ", ".join(p.name for parts in files.values() for p in parts)))
    return found
