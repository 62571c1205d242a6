"""Evaluate the best parameters of a finished or stopped run.

    python -m experiments.evaluate --workdir=DIR [--split=test] [--stats=population] [--how=mean]

`--stats`: "population" (estimated now over the training set, as `--how` says), "batch" (those of
the evaluated batch) or "running" (the moving average of training).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging
from etils import epath

from experiments import usage
from experiments.config import command_line, defaults, models
from experiments.runtime import members, step
from experiments.runtime.workdir import read_json
from experiments.usage import UsageError

STATS = ("population", "batch", "running")
SPLITS = ("test", "valid", "train")

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", allow_override=True)
_SPLIT = flags.DEFINE_string("split", "test", "test, valid or train")
_STATS = flags.DEFINE_string("stats", "population", "population, batch or running")
_HOW = flags.DEFINE_string("how", "", "pooled, unbiased or mean; empty: the run's config says")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS folder", allow_override=True)


def evaluate(
    workdir: epath.PathLike, *, split: str, stats: str, how: str = "", data_dir: str = ""
) -> dict[str, Any]:
    """Score the best parameters in a workdir."""
    usage.one_of("--split", split, SPLITS)
    usage.one_of("--stats", stats, STATS)
    if how:
        usage.one_of("--how", how, defaults.POPULATION)
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise UsageError(f"{workdir} holds no run (no config.json); name a --workdir of train.")
    config = defaults.completed(read_json(path, "config")["config"])
    config["data_dir"] = data_dir or config["data_dir"]
    run = members.load_finished(config, path.parent)
    scores = step.evaluate(
        run.params,
        run.statistics(stats, how),
        getattr(run.dataset, split),
        task=run.task,
        stats="batch" if stats == "batch" else "running",
        batch_size=run.config["eval_batch_size"],
    )
    found = {"name": config["name"], "split": split, "stats": stats, "step": run.step}
    if stats == "population":
        found["how"] = how or run.config["population"]["how"]
    if stats == "running" and (note := models.early(config["model"], run.step)):
        found["note"] = note
    return {**found, **scores}


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.evaluate``."""
    logging.set_verbosity(logging.WARNING)
    with usage.usage():
        command_line.no_arguments(argv)
        if not _WORKDIR.value:
            raise UsageError("write --workdir=DIR, the folder of a run.")
        scores = evaluate(
            epath.Path(_WORKDIR.value).expanduser(),
            split=_SPLIT.value,
            stats=_STATS.value,
            how=_HOW.value,
            data_dir=_DATA_DIR.value,
        )
        print(json.dumps(scores))


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
