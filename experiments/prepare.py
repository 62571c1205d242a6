"""Download a TFDS set and store it as array_record, the only step that needs TensorFlow.

python -m experiments.prepare NAME [--data_dir=DIR]
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from absl import app, flags

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
    if name not in SETS:
        known = ("digits", *SETS, "fsdd")
        raise UsageError(
            f"unknown data set {name!r}; known: {', '.join(known)}.{nearest(name, known)}"
        )
    try:
        return str(locate.find(SETS[name], folder))
    except UsageError:
        pass  # missing: prepare it
    for module in ("tensorflow", "importlib_resources"):
        if importlib.util.find_spec(module) is None:
            raise UsageError(
                f"preparing {name!r} needs {module}, once (training does not): "
                "pip install --group prepare, then run this again. A folder prepared on another "
                "machine can simply be copied."
            )
    import tensorflow_datasets as tfds

    root = locate.root_folder(folder)
    builder = tfds.builder(
        locate.SUBSETS.get(SETS[name], SETS[name]), data_dir=str(root), file_format="array_record"
    )
    builder.download_and_prepare()
    return str(locate.find(SETS[name], folder))


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
