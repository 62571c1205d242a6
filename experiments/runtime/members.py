"""Runs as members of a sweep or a claim: train one with some keys changed, and read its numbers."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath

from experiments import tasks, usage
from experiments.config import defaults, switch, validate
from experiments.data import datasets, splits
from experiments.runtime import metrics, pool, run, step
from experiments.runtime.checkpoints import Checkpoints
from experiments.runtime.exits import Diverged
from experiments.runtime.measures import TOP_FIVE, log_error
from experiments.runtime.together import MEMBERS, begun, plan, train_together
from experiments.runtime.workdir import check_workdir, folders_with, read_json, write_json
from experiments.tasks.base import TOP_FIVE_FROM
from experiments.usage import UsageError

DIVERGED = "diverged.json"  # in the workdir of a run that has


class Finished(NamedTuple):
    """The best parameters of a finished or stopped run, with its task, data and config."""

    task: tasks.Task
    params: Any
    norm: Any
    dataset: splits.Dataset
    config: dict[str, Any]
    step: int = 0

    def statistics(self, kind: str, how: str = "") -> Any:
        """Return the state of the norms: estimated now for "population", else that of training."""
        if kind != "population":
            return self.norm
        keys = self.config["population"]
        options: dict[str, Any] = {"how": how or keys["how"], "batch_size": keys["batch_size"]}
        return step.population(
            self.params, self.norm, self.dataset.train, task=self.task, **options
        )


def with_changes(config: Any, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Copy a config and replace some keys, each written as a path."""
    config = ml_collections.ConfigDict(copy.deepcopy(config))  # with groups of its own
    known = defaults.flatten(config.to_dict())
    new = {key: value for key, value in changes.items() if key not in known}
    for key in new:
        if not switch.can_add(config, key):
            raise UsageError(f"config.{key} is no key.{usage.nearest(key, known)}")
    before = switch.names(config)
    config.update_from_flattened_dict({k: v for k, v in changes.items() if k in known})
    switch.add(config, new)
    for note in switch.switch_norms(config, before, changes):
        print(f"note: {note}", flush=True)
    return config


def run_member(config: Any, workdir: epath.Path) -> dict[str, Any]:
    """Train one run, unless it is finished, and return its metrics; a diverged run has some too.

    A diverged run scores like a model that knows nothing: accuracy 1 / classes, loss log(classes).
    Metrics that such a model cannot have, those of the course of the loss, are NaN.
    """
    if (workdir / DIVERGED).exists():
        return _diverged(config, workdir)
    try:
        return run_metrics(run.train(config, workdir), workdir)
    except Diverged as error:
        return _diverged(config, workdir, error)


def run_members(
    runs: Sequence[tuple[Any, epath.Path]], *, together: int = 1, workers: int = 1
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Train many runs and yield `(index, metrics)` as each finishes.

    The metrics are those of `run_member`, and so is a run's workdir at the end. Called again, it
    continues what was stopped; runs that have finished are read.

    Args:
        runs: `(config, workdir)` of each.
        together: so many runs at most are trained side by side in one program, of those that
            differ in seed, learning rate and initial scale alone
            (`experiments.runtime.together.plan`).
        workers: so many processes train at once, on a CPU. A run or group that fails there is
            reported by name after all others have finished.

    Raises:
        UsageError, Broken, Interrupted: as `run.train`; see `experiments.runtime.pool.train`
            for more than one worker.
    """
    if together < 1 or workers < 1:
        raise UsageError(f"--together={together} and --workers={workers} must be at least 1.")
    jobs = groups(runs, together)
    left = {i for job in jobs for i in job}
    yield from ((i, run_member(*run)) for i, run in enumerate(runs) if i not in left)
    if workers > 1 and len(jobs) > 1:
        yield from _in_processes(runs, jobs, workers)
        return
    for job in jobs:
        results = _train_job([runs[i] for i in job])
        yield from zip(job, results, strict=True)


def groups(runs: Sequence[tuple[Any, epath.Path]], together: int) -> list[list[int]]:
    """Divide the runs that are not finished into those that one program trains; return indices.

    These are so many at most, but for groups that were begun, which go on as they are.
    """
    left = [i for i, run in enumerate(runs) if begun(run[1]) or not _ended(*run)]
    planned = plan([runs[i][0] for i in left], [runs[i][1] for i in left], together)
    return [[left[i] for i in group] for group in planned]


def _ended(config: Any, folder: epath.Path) -> bool:
    """Whether a run has finished or diverged."""
    if (folder / DIVERGED).exists():
        return True
    with contextlib.suppress(UsageError):  # another's, or damaged: told when it is its turn
        check_workdir(folder, validate.check(config))
        return bool(read_json(folder / "final.json", "steps")["steps"] == config["steps"])
    return False


def _train_job(runs: Sequence[tuple[Any, epath.Path]]) -> list[dict[str, Any]]:
    """Train one run, or several side by side, and return their metrics."""
    left = [(c, f) for c, f in runs if not (f / DIVERGED).exists()]
    if len(left) > 1 or (left and begun(left[0][1])):
        ends = train_together([c for c, _ in left], [f for _, f in left])
        for (config, folder), end in zip(left, ends, strict=True):
            if isinstance(end, Diverged):
                _diverged(config, folder, end)
    return [run_member(config, folder) for config, folder in runs]


def _in_processes(
    runs: Sequence[tuple[Any, epath.Path]], jobs: Sequence[Sequence[int]], count: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    if (platform := jax.default_backend()) != "cpu":
        raise UsageError(
            f"--workers={count} is for a CPU; processes would share the memory of one {platform}. "
            "Write --together=8, for instance, to train runs side by side on it."
        )
    words = [
        pool.Job([validate.check(runs[i][0]) for i in job], [os.fspath(runs[i][1]) for i in job])
        for job in jobs
    ]
    for number in pool.train(words, count):
        yield from ((i, run_member(*runs[i])) for i in jobs[number])  # reads the finished run


def _diverged(config: Any, workdir: epath.Path, error: Diverged | None = None) -> dict[str, Any]:
    """Return the metrics of a diverged run; with its error, note in its workdir that it has."""
    if error is not None:
        write_json(workdir / DIVERGED, {"message": str(error)})
    plain = validate.check(config)
    return _chance_metrics(plain, datasets.load_config_data(plain).classes)


def _chance_metrics(config: Mapping[str, Any], classes: int) -> dict[str, Any]:
    loss = math.log(classes) if classes else math.inf
    scores = {"loss": loss, "accuracy": 1 / classes if classes else 0.0}
    if config["task"] != "language" and classes > TOP_FIVE_FROM:
        scores[TOP_FIVE] = 5 / classes
    kinds = ("population", "batch", "running")
    values = {
        f"{s}.{k}.{n}": v for s in ("valid", "test") for k in kinds for n, v in scores.items()
    }
    values |= {"train.loss": loss, "train.accuracy": scores["accuracy"], "diverged": 1.0}
    values |= {"area.train": loss, "area.valid": loss, "area.error": 1 - scores["accuracy"]}
    values |= {"rough.valid": math.nan, "gap.end": math.nan}  # 0 would be the best value there is
    values |= _log_errors(values)
    never = float(config["steps"] + config["eval_every"])
    return {"metrics": {**values, "steps_to_target": never}, "curves": {}, "seconds": 0.0}


def run_metrics(final: Mapping[str, Any], workdir: epath.Path) -> dict[str, Any]:
    """Numbers and curves of a finished run.

    `area.train` and `area.valid` are the means of the loss over the run's rows, `area.error` the
    mean of the validation error: how fast the run learned. `rough.valid` is the mean absolute
    change of the validation loss from one evaluation to the next in the second half, `gap.end` the
    validation loss minus the training loss at the end. `steps_to_target` is one evaluation past
    the end for a run that never reached the target. A difference of 0.1 in `log_error`, the
    logarithm of 1 - accuracy, is about a tenth of the errors, however many there are.
    """
    path = workdir / "metrics.jsonl"
    rows = metrics.read_rows(path)
    metrics.check_complete(path, rows, final.get("metrics"))
    by = {s: [r for r in rows if r["split"] == s] for s in ("train", "valid")}
    values = {
        f"{split}.{kind}.{name}": value
        for split in ("valid", "test")
        for kind, scores in final[split].items()
        for name, value in scores.items()
    }
    values |= {f"train.{k}": by["train"][-1][k] for k in ("loss", "accuracy")}
    values |= {f"area.{s}": float(np.mean([r["loss"] for r in by[s]])) for s in by}
    values["area.error"] = float(np.mean([1 - r["accuracy"] for r in by["valid"]]))
    late = [r["loss"] for r in by["valid"][len(by["valid"]) // 2 :]]
    values["rough.valid"] = float(np.abs(np.diff(late)).mean()) if len(late) > 1 else 0.0
    values["gap.end"] = by["valid"][-1]["loss"] - by["train"][-1]["loss"]
    values |= _log_errors(values)
    config = final["config"]
    reached = final["steps_to_target"]
    values["steps_to_target"] = float(reached or config["steps"] + config["eval_every"])
    values["diverged"] = 0.0
    curves = {
        f"{split}.{name}": [float(f"{r[name]:.4g}") for r in by[split]]
        for split in by
        for name in ("loss", "accuracy")
    } | {f"{split}.step": [r["step"] for r in by[split]] for split in by}
    return {"metrics": values, "curves": curves, "seconds": final["seconds"]}


def _log_errors(values: Mapping[str, float]) -> dict[str, float]:
    """Return `log_error` for every accuracy on a split."""
    return {
        name.removesuffix("accuracy") + "log_error": float(log_error(value))
        for name, value in values.items()
        if name.startswith(("valid.", "test.")) and name.endswith(".accuracy")
    }


def load_finished(config: Any, workdir: epath.Path) -> Finished:
    """Restore the best parameters of a finished or stopped run, and its data."""
    plain = validate.check(config)
    dataset = datasets.load_config_data(plain).on_device()
    task = tasks.build(plain, dataset)
    checkpoints = Checkpoints(workdir, write=False)
    try:
        if checkpoints.latest() is None:
            raise UsageError(f"{workdir} has no checkpoint yet.")
        like = step.start(task, step.optimizer(plain["optim"]), plain)
        best = checkpoints.restore(like)[0]["best"]
    finally:
        checkpoints.close()
    return Finished(task, best["params"], best["norm"], dataset, plain, int(best["step"]))


def clear(workdir: epath.PathLike) -> None:
    """Remove run folders only: those in and below a folder that hold a config.json, or a group."""
    for name in ("config.json", MEMBERS):
        for folder in list(folders_with(name, epath.Path(workdir))):
            folder.rmtree()
