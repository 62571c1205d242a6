"""Train an LSTM and a BN-LSTM on real handwritten digits, in a few minutes on a laptop.

    python -m experiments.demo --workdir=runs/demo [--fresh]

Started again, a stopped demo continues and a finished one is shown at once; --fresh runs it all
again.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import app, flags, logging
from etils import epath

from experiments.config import command_line
from experiments.runtime import curves, exits, run
from experiments.usage import UsageError

VARIANTS = ("lstm", "bn_lstm")

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of both runs.", allow_override=True)
_FRESH = flags.DEFINE_bool(
    "fresh", False, "Remove the demo's runs and start over.", allow_override=True
)


def demo(workdir: epath.Path, *, fresh: bool = False) -> str:
    """Train both, draw the curves and return the table."""
    from configs.recurrent_bn import digits

    folders = [workdir / variant for variant in VARIANTS]
    if fresh:
        for folder in folders:  # only runs: a workdir may be any folder
            if (folder / "config.json").exists():
                folder.rmtree()
    finished = all((folder / "final.json").exists() for folder in folders)
    for variant, folder in zip(VARIANTS, folders, strict=True):
        run.train(digits.get_config(variant), folder)
    shown = curves.report(folders, workdir)
    if finished:
        shown += f"\nThis demo had been run before; to run it again: --fresh (workdir {workdir})."
    return shown


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.demo``."""
    logging.set_verbosity(logging.WARNING)
    with exits.statuses():
        command_line.no_arguments(argv)
        if not _WORKDIR.value:
            raise UsageError("write --workdir=DIR, for instance --workdir=runs/demo.")
        print(demo(epath.Path(_WORKDIR.value).expanduser(), fresh=_FRESH.value))


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
