"""Train one config over seeds and a grid, one run after another, each in a folder of its own.

    python -m experiments.sweep --config=FILE.py:VARIANT --workdir=DIR --seeds=5 \
        --grid=optim.learning_rate=1e-2,1e-3 --grid=model.hidden=50,100

A sweep that was stopped goes on where it was, inside a run too: every run is one of
`experiments.train`. Runs that differ only in seed and learning rate share one compiled program.
(Training the members side by side under `vmap` was tried on a CPU and is slower there: 50 units,
64 steps, LSTM 5.3 ms a member and step for 3 at once, 3.3 ms alone.)
"""

from __future__ import annotations

import ast
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import app, flags, logging
from etils import epath

from experiments import report, tasks, train, usage
from experiments.config import command_line, defaults, validate
from experiments.data import datasets, splits
from experiments.runtime import exits, metrics, step
from experiments.runtime.checkpoints import Checkpoints
from experiments.runtime.workdir import write_json
from experiments.usage import UsageError

_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0 to N - 1 for every cell of the grid.")
_GRID = flags.DEFINE_multi_string("grid", [], "KEY=VALUE,VALUE,...; several make a product.")


class Finished(NamedTuple):
    """A trained run with what more may be measured of it: its best parameters."""

    task: tasks.Task
    params: Any
    norm: Any
    dataset: splits.Dataset
    config: dict[str, Any]


def with_changes(config: Any, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A copy of a config with some keys, given by path, replaced."""
    config = ml_collections.ConfigDict(config)
    known = defaults.flatten(config.to_dict())
    for key in changes:
        if key not in known:
            raise UsageError(f"config.{key} is no key.{usage.nearest(key, known)}")
    config.update_from_flattened_dict(dict(changes))
    return config


def run_member(config: Any, workdir: epath.Path) -> dict[str, Any]:
    """Train one run, unless it is finished, and return its metrics; one that diverges has some too.

    A diverged run scores as a model that knows nothing would: 1 / classes right, log(classes);
    what such a model has not, a course of the loss, is NaN.
    """
    lost = workdir / "diverged.json"
    if not lost.exists():
        try:
            return run_metrics(train.train(config, workdir), workdir)
        except train.Diverged as error:
            write_json(lost, {"message": str(error)})
    plain = validate.check(config)
    return _knows_nothing(plain, datasets.load_config_data(plain).classes)


def _knows_nothing(config: Mapping[str, Any], classes: int) -> dict[str, Any]:
    loss = math.log(classes) if classes else math.inf
    scores = {"loss": loss, "accuracy": 1 / classes if classes else 0.0}
    kinds = ("population", "batch", "running")
    told = {f"{s}.{k}.{n}": v for s in ("valid", "test") for k in kinds for n, v in scores.items()}
    told |= {"train.loss": loss, "train.accuracy": scores["accuracy"], "diverged": 1.0}
    told |= {"area.train": loss, "area.valid": loss, "area.error": 1 - scores["accuracy"]}
    told |= {"rough.valid": math.nan, "gap.end": math.nan}  # 0 would be the best there is
    never = float(config["steps"] + config["eval_every"])
    return {"metrics": {**told, "steps_to_target": never}, "curves": {}, "seconds": 0.0}


def run_metrics(final: Mapping[str, Any], workdir: epath.Path) -> dict[str, Any]:
    """Numbers and curves of a finished run.

    `area.train` and `area.valid` are the means of the loss over the run's rows, `area.error` that
    of the validation error: how fast it learned. `rough.valid` is the mean change of the validation
    loss from one evaluation to the next in the second half, `gap.end` what it exceeds the training
    loss by at the end. `steps_to_target` counts one evaluation more than
    there were for a run that never came there.
    """
    rows = metrics.read_rows(workdir / "metrics.jsonl")
    by = {s: [r for r in rows if r["split"] == s] for s in ("train", "valid")}
    told = {
        f"{split}.{kind}.{name}": value
        for split in ("valid", "test")
        for kind, scores in final[split].items()
        for name, value in scores.items()
    }
    told |= {f"train.{k}": by["train"][-1][k] for k in ("loss", "accuracy")}
    told |= {f"area.{s}": float(np.mean([r["loss"] for r in by[s]])) for s in by}
    told["area.error"] = float(np.mean([1 - r["accuracy"] for r in by["valid"]]))
    late = [r["loss"] for r in by["valid"][len(by["valid"]) // 2 :]]
    told["rough.valid"] = float(np.abs(np.diff(late)).mean()) if len(late) > 1 else 0.0
    told["gap.end"] = by["valid"][-1]["loss"] - by["train"][-1]["loss"]
    config = final["config"]
    reached = final["steps_to_target"]
    told["steps_to_target"] = float(reached or config["steps"] + config["eval_every"])
    told["diverged"] = 0.0
    curves = {
        f"{split}.{name}": [float(f"{r[name]:.4g}") for r in by[split]]
        for split in by
        for name in ("loss", "accuracy")
    } | {f"{split}.step": [r["step"] for r in by[split]] for split in by}
    return {"metrics": told, "curves": curves, "seconds": final["seconds"]}


def load_finished(config: Any, workdir: epath.Path) -> Finished:
    """The best parameters of a finished run, and what they were trained on."""
    plain = validate.check(config)
    dataset = datasets.load_config_data(plain).on_device()
    task = tasks.build(plain, dataset)
    checkpoints = Checkpoints(workdir)
    try:
        like = step.start(task, step.optimizer(plain["optim"]), plain)
        best = checkpoints.restore(like)[0]["best"]
    finally:
        checkpoints.close()
    return Finished(task, best["params"], best["norm"], dataset, plain)


# ---------------------------------------------------------------------------------- the command


def grid(given: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The cells of a product of --grid=KEY=VALUE,VALUE."""
    axes = []
    for word in given:
        key, equals, values = word.partition("=")
        if not equals or not values:
            raise UsageError(f"--grid={word}: write --grid=KEY=VALUE,VALUE")
        axes.append([(key, _literal(value)) for value in values.split(",")])
    for cell in itertools.product(*axes):
        yield dict(cell)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def sweep(
    config: Any, workdir: epath.Path, *, seeds: int, cells: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Train every cell with every seed; the results so far are in `workdir/sweep.json`."""
    results = []
    for cell in cells:
        for seed in range(seeds):
            changes = {**cell, "seed": seed}
            name = ",".join(f"{k}={v}" for k, v in changes.items()).replace("/", "_")
            told = run_member(with_changes(config, changes), workdir / name)
            results.append({"cell": cell, "seed": seed, **told})
            write_json(workdir / "sweep.json", results)
    return results


def table(results: Sequence[Mapping[str, Any]], select: str) -> str:
    """Mean and standard deviation over seeds, a line a cell."""
    lines = []
    for _, group in itertools.groupby(results, key=lambda r: json.dumps(r["cell"])):
        members = list(group)
        words = " ".join(f"{k}={v}" for k, v in members[0]["cell"].items()) or "as configured"
        numbers = []
        for name in (f"valid.batch.{select}", f"test.population.{select}"):
            values = np.array([m["metrics"][name] for m in members])
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            numbers.append(f"{name} {values.mean():.4f} ± {spread:.4f}")
        lost = int(sum(m["metrics"]["diverged"] for m in members))
        lines.append(f"{words}: {', '.join(numbers)}" + (f", {lost} diverged" if lost else ""))
    return "\n".join(lines)


def clear(workdir: epath.PathLike) -> None:
    """Remove a folder of runs, and nothing that is none."""
    for folder in list(report.below(epath.Path(workdir), "config.json")):
        folder.rmtree()


def main(argv: Sequence[str]) -> None:
    """Entry point of ``python -m experiments.sweep``."""
    logging.set_verbosity(logging.WARNING)
    with exits.statuses():
        command_line.no_arguments(argv)
        if flags.FLAGS["distributed"].value:
            raise UsageError("a sweep is one process; --distributed is for experiments.train.")
        given, workdir = flags.FLAGS["config"].value, flags.FLAGS["workdir"].value
        if given is None or not workdir:
            raise UsageError("write --config=FILE.py:VARIANT and --workdir=DIR.")
        if _SEEDS.value < 1:
            raise UsageError(f"--seeds={_SEEDS.value} must be at least 1.")
        cells = list(grid(_GRID.value))
        results = sweep(given, epath.Path(workdir), seeds=_SEEDS.value, cells=cells)
        print(table(results, given.select))


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
