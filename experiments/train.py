"""Train one config in one workdir.

    python -m experiments.train --config=configs/recurrent_bn/digits.py:bn_lstm --workdir=DIR

A run that was killed and is started again with the same command gives the same metrics, to the
bit, as one that never stopped. `experiments.runtime.run` describes the workdir and where a run
starts, `experiments.runtime.exits` the exit statuses, `experiments.runtime.parallel` runs on many
devices, `experiments.runtime.distributed` runs of many processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from experiments.config import command_line, models
from experiments.runtime import distributed, exits, measures
from experiments.runtime.run import train
from experiments.usage import UsageError

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="FILE.py:VARIANT", allow_override=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.", allow_override=True)


def summary(final: Mapping[str, Any]) -> str:
    """Describe a finished run, its scores in the words of its task."""
    lines = [
        f"{final['name']}: best step {final['best_step']} of {final['steps']}, {final['seconds']} s"
    ]
    note = models.early(final["config"]["model"], final["best_step"])
    return "\n".join([*lines, *measures.lines(final), *[f"note: {note}"] * bool(note)])


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.train``."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax is verbose at INFO
    with exits.statuses():
        command_line.no_arguments(argv)
        if _CONFIG.value is None:
            raise UsageError("write --config=configs/recurrent_bn/digits.py:bn_lstm, for instance.")
        if not _WORKDIR.value:
            raise UsageError("write --workdir=DIR, the folder for this run.")
        distributed.main()
        with exits.reraise_as_broken("nothing was changed."):
            final = train(_CONFIG.value, epath.Path(_WORKDIR.value).expanduser())
        if jax.process_index() == 0:
            print(summary(final))


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
