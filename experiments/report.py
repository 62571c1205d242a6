"""Draw the curves of some runs and write a table of their scores.

    python -m experiments.report DIR... [--out=DIR]
    python -m experiments.report --results

Each DIR is a workdir, or a folder with workdirs somewhere below. Writes curves.png and table.md
into --out (default: the folder named, or the one that all of them share) and prints the table.
The second form writes RESULTS.md, the ledger of claims, and its pictures, from results/claims/.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import app, flags, logging

from experiments.config import command_line
from experiments.ledger import table
from experiments.runtime.curves import report
from experiments.usage import UsageError, usage

_RESULTS = flags.DEFINE_bool(
    "results", False, "Write RESULTS.md and its pictures.", allow_override=True
)
_OUT = flags.DEFINE_string("out", "", "Folder for curves.png and table.md.", allow_override=True)


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.report``."""
    logging.set_verbosity(logging.WARNING)
    with usage():
        if _RESULTS.value:
            print(table.publish())
            return
        if len(argv) < 2:
            raise UsageError("write: python -m experiments.report DIR... [--out=DIR]")
        print(report(argv[1:], _OUT.value))


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
