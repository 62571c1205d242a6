"""Download any TFDS set and store it as array_record, the only step that needs TensorFlow.

python -m experiments.prepare NAME[/CONFIG][:VERSION] [--data_dir=DIR]
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from absl import app, flags
from etils import epath

from experiments.data import locate
from experiments.usage import UsageError, nearest, usage

SETS = {"mnist": "mnist", "pmnist": "mnist", "fashion_mnist": "fashion_mnist"}
SETS["imdb_reviews"] = "imdb_reviews"

_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS folder to write to.", allow_override=True)


def prepare(name: str, folder: str = "") -> str:
    """Prepare one set, if it is missing, and return its folder."""
    if name == "digits":
        return "nothing to do: the digits are inside scikit-learn"
    if name == "fsdd":
        raise UsageError(
            "spoken digits are not TFDS's to download. Either copy the folder fsdd from a machine "
            f"that has it, or {locate.FSDD} The folder of all sets is "
            f"{locate.root_folder(folder)}."
        )
    known = ("digits", *SETS, "fsdd")
    if name not in SETS and locate.parse(name) is None:
        raise UsageError(
            f"unknown data set {name[:80]!r}; known: {', '.join(known)}, and every set of TFDS as "
            f"NAME or NAME/CONFIG.{nearest(name, known)}"
        )
    if (found := _find(name, folder)) is not None:
        return str(found)
    if name not in SETS:
        _require_builder(name, known)
    for module in ("tensorflow", "importlib_resources"):
        if importlib.util.find_spec(module) is None:
            raise UsageError(
                f"preparing {name!r} needs {module}, once (training does not): "
                "pip install --group prepare, then run this again. A folder prepared on another "
                "machine can simply be copied."
            )
    import tensorflow_datasets as tfds

    root, plain = locate.root_folder(folder), SETS.get(name, name)
    builder = tfds.builder(
        locate.SUBSETS.get(plain, plain), data_dir=str(root), file_format="array_record"
    )
    builder.download_and_prepare()
    return str(_find(name, folder) or builder.data_path)


def _find(name: str, folder: str) -> epath.Path | None:
    """Return the folder of a prepared set, or None if it is missing."""
    if name not in SETS:
        return locate.find_any(name, folder)
    try:
        return locate.find(SETS[name], folder)
    except UsageError:
        return None


def _require_builder(name: str, known: Sequence[str]) -> None:
    """Refuse a name that is none of TFDS's; uses no network."""
    import tensorflow_datasets as tfds

    builders = tfds.list_builders(with_community_datasets=False)
    if name.partition("/")[0].partition(":")[0] not in builders:
        raise UsageError(
            f"unknown data set {name!r}; known: {', '.join(known)}, and {len(builders):,} sets of "
            f"TFDS {tfds.__version__}.{nearest(name, [*known, *builders])}"
        )


def _parse(argv: Sequence[str]) -> list[str]:
    with usage():
        try:
            return flags.FLAGS(list(argv))
        except flags.Error as error:
            raise UsageError(str(error)) from error


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.prepare``."""
    with usage():
        if len(argv) != 2:
            raise UsageError("write: python -m experiments.prepare NAME [--data_dir=DIR]")
        print(prepare(argv[1], _DATA_DIR.value))


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=_parse))
