"""An LSTM and a BN-LSTM on real handwritten digits, in a few minutes on a laptop.

    python -m experiments.demo --workdir=runs/demo [--fresh]

Started again, a demo that was stopped goes on, and a finished one is shown at once; --fresh does
it all again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from etils import epath

from experiments import report, train, usage
from experiments.config import command_line
from experiments.usage import UsageError

VARIANTS = ("lstm", "bn_lstm")

_FRESH = flags.DEFINE_bool("fresh", False, "Remove what is in the workdir and start over.")


def demo(workdir: epath.Path, *, fresh: bool = False) -> str:
    """Train both, draw the curves and return the table."""
    from configs.recurrent_bn import digits

    folders = [workdir / variant for variant in VARIANTS]
    if fresh:
        for folder in folders:  # only what a demo made: a workdir may be any folder
            if (folder / "config.json").exists():
                folder.rmtree()
    finished = all((folder / "final.json").exists() for folder in folders)
    for variant, folder in zip(VARIANTS, folders, strict=True):
        train.train(digits.get_config(variant), folder)
    told = report.report(folders, workdir)
    if finished:
        told += f"\nThis demo had been run before; to run it again: --fresh (workdir {workdir})."
    return told


def main(argv: Sequence[str]) -> None:
    """Entry point of ``python -m experiments.demo``."""
    logging.set_verbosity(logging.WARNING)
    with usage.usage():
        command_line.no_arguments(argv)
        workdir = flags.FLAGS["workdir"].value
        if not workdir:
            raise UsageError("write --workdir=DIR, for instance --workdir=runs/demo.")
        try:
            print(demo(epath.Path(workdir), fresh=_FRESH.value))
        except train.Interrupted as error:
            print(str(error), file=sys.stderr)
            sys.exit(128 + error.number)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from the last checkpoint.", file=sys.stderr)
            sys.exit(130)
        except train.Diverged as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
