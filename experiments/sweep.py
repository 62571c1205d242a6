r"""Train one config over seeds and a grid, each run in a folder of its own.

    python -m experiments.sweep --config=FILE.py:VARIANT --workdir=DIR --seeds=5 \
        --grid=optim.learning_rate=1e-2,1e-3 --grid=model.hidden=50,100 \
        [--together=8] [--workers=2]

Started again, a stopped sweep continues, within a run too. Runs that differ only in seed and
learning rate share one compiled program; with --together=N, N of them, whose norms may start from
other scales too, are trained side by side in it (`experiments.runtime.together`), which is for
accelerators. With --workers=N, N processes train at once, which is for CPUs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from experiments.config import command_line
from experiments.runtime import exits, measures, members
from experiments.runtime.workdir import write_json
from experiments.usage import UsageError, literal

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="FILE.py:VARIANT", allow_override=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", allow_override=True)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0 to N - 1 for every cell of the grid.")
_TOGETHER = flags.DEFINE_integer("together", 1, "Runs trained side by side in one program.")
_WORKERS = flags.DEFINE_integer("workers", 1, "Processes that train at once, on a CPU.")
_GRID = flags.DEFINE_multi_string("grid", [], "KEY=VALUE,VALUE,...; several make a product.")


def grid(words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the cells of a product of --grid=KEY=VALUE,VALUE."""
    axes = []
    for word in words:
        key, equals, values = word.partition("=")
        if not equals or not values:
            raise UsageError(f"--grid={word}: write --grid=KEY=VALUE,VALUE")
        axes.append([(key, literal(value)) for value in values.split(",")])
    for cell in itertools.product(*axes):
        yield dict(cell)


def sweep(
    config: Any,
    workdir: epath.Path,
    *,
    seeds: int,
    cells: Sequence[dict[str, Any]],
    together: int = 1,
    workers: int = 1,
) -> list[dict[str, Any]]:
    """Train every cell with every seed; the results so far are in `workdir/sweep.json`."""
    members_of = [(cell, seed) for cell in cells for seed in range(seeds)]
    runs = []
    for cell, seed in members_of:
        changes = {**cell, "seed": seed}
        name = ",".join(f"{k}={v}" for k, v in changes.items()).replace("/", "_")
        runs.append((members.with_changes(config, changes), workdir / name))
    results: dict[int, dict[str, Any]] = {}
    for i, result in members.run_members(runs, together=together, workers=workers):
        cell, seed = members_of[i]
        results[i] = {"cell": cell, "seed": seed, **result}
        write_json(workdir / "sweep.json", [results[i] for i in sorted(results)])
    return [results[i] for i in sorted(results)]


def table(results: Sequence[Mapping[str, Any]], config: Any) -> str:
    """Mean and standard deviation over seeds in the task's words, one line per cell."""
    lines = []
    for _, group in itertools.groupby(results, key=lambda r: json.dumps(r["cell"])):
        runs = list(group)
        words = " ".join(f"{k}={v}" for k, v in runs[0]["cell"].items()) or "as configured"
        unit = runs[0]["cell"].get("data.unit", config.data.unit)
        measure = measures.main({"task": config.task, "data": {"unit": unit}})
        numbers = []
        for scores in ("valid batch", "test population"):
            key = f"{scores.replace(' ', '.')}.{measure.key}"
            values = np.array([measure.of(run["metrics"][key]) for run in runs])
            spread = f" ± {measure.write(values.std(ddof=1))}" if len(values) > 1 else ""
            numbers.append(f"{scores} {measure.write(values.mean())}{spread}")
        diverged = int(sum(run["metrics"]["diverged"] for run in runs))
        end = f", {diverged} diverged" if diverged else ""
        lines.append(f"{words}: {measure.name} {', '.join(numbers)}{end}")
    seeds = len({r["seed"] for r in results})
    if seeds > 1:
        lines.append(
            f"mean ± sample standard deviation over {seeds} seeds (of the runs, not of their mean)"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.sweep``."""
    logging.set_verbosity(logging.WARNING)
    with exits.statuses():
        command_line.no_arguments(argv)
        config, workdir = _CONFIG.value, _WORKDIR.value
        if config is None or not workdir:
            raise UsageError("write --config=FILE.py:VARIANT and --workdir=DIR.")
        if _SEEDS.value < 1:
            raise UsageError(f"--seeds={_SEEDS.value} must be at least 1.")
        cells = list(grid(_GRID.value))
        results = sweep(
            config,
            epath.Path(workdir).expanduser(),
            seeds=_SEEDS.value,
            cells=cells,
            together=_TOGETHER.value,
            workers=_WORKERS.value,
        )
        print(table(results, config))


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
