"""Trains the replicates of a group at a scale: every arm, at every rate, drawn anew each time.

A replicate redraws initialization, order, the training and validation sets, and the permutation
of the pixels; a module's own `replicate(config, n)` may redraw more, such as a speaker. A run lives
in a folder named by its config's hash, so that groups share equal runs, and a stopped claim
continues where it was.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from tqdm import tqdm

from experiments import tasks
from experiments.config import validate
from experiments.data import batches, splits
from experiments.ledger import records, registry
from experiments.ledger.claims import Group, Scale, as_accuracy
from experiments.runtime import members
from experiments.runtime.workdir import code, hardware, read_json, versions

# Metrics that a record keeps of trained runs besides those that its rules read.
KEPT = (
    *("test.population.accuracy", "test.running.accuracy", "valid.batch.accuracy"),
    *("train.loss", "area.train", "fall.valid", "diverged"),
)


def float32_products() -> contextlib.AbstractContextManager[None]:
    """Compute matrix products in float32, as every record does, where a GPU's default is TF32."""
    return jax.default_matmul_precision("highest")


def config_of(study: ModuleType, scale: Scale, arm: str, rate: float | None, n: int) -> Any:
    """Return the config of replicate `n` (from 1) of an arm at a learning rate."""
    config = ml_collections.ConfigDict(study.get_config(arm, scale.name))
    config.name = registry.own_hash(validate.check(config))
    changes: dict[str, Any] = {"seed": n, "data.draw": n}
    if config.dataset == "pmnist":
        changes["permutation_seed"] = n
    if rate is not None:
        changes["optim.learning_rate"] = rate
    config = members.with_changes(config, changes)
    return study.replicate(config, n) if hasattr(study, "replicate") else config


def configs_of(study: ModuleType, scale: Scale, arm: str, count: int) -> list[Any]:
    """Return the configs of the runs of an arm, those of one rate after the other."""
    rates = study.GROUP.rates_at(scale) or (None,)
    return [config_of(study, scale, arm, rate, n) for rate in rates for n in range(1, count + 1)]


def folder_of(workdir: pathlib.Path, config: Any) -> pathlib.Path:
    """Return the folder of a replicate's run."""
    return workdir / config.name / f"{config.optim.learning_rate:g},{config.seed}"


class Run(NamedTuple):
    """A replicate of an arm at a learning rate, and the folder that it is trained in."""

    arm: str
    config: Any
    folder: epath.Path


def runs_of(study: ModuleType, scale: Scale, count: int, workdir: pathlib.Path) -> list[Run]:
    """Return `count` replicates of every arm at every rate, arm by arm."""
    return [
        Run(arm, config, epath.Path(folder_of(workdir, config)))
        for arm in study.GROUP.arms
        for config in configs_of(study, scale, arm, count)
    ]


def groups_of(runs: Sequence[Run], together: int) -> list[list[Run]]:
    """Divide the runs that are not finished into those that one program trains."""
    pairs = [(run.config, run.folder) for run in runs]
    return [[runs[i] for i in group] for group in members.groups(pairs, together)]


def arms_in(runs: Sequence[Run]) -> str:
    """Name the arms of some runs."""
    return ", ".join(dict.fromkeys(run.arm for run in runs))


def one(study: ModuleType, config: Any, folder: pathlib.Path, tag: str) -> dict[str, Any]:
    """Train one run, unless it is finished, and return its metrics, curves and right answers.

    `tag` names the file in the run's folder that keeps what is measured after training.
    """
    result = members.run_member(config, folder)
    values, curves = result["metrics"], result["curves"]
    values["fall.valid"] = fall(curves["valid.step"], curves["valid.loss"]) if curves else math.nan
    for metric in (m for m in study.GROUP.metrics() if m.startswith("gap.at_")):
        values[metric] = gap_at(curves, float(metric.removeprefix("gap.at_")))
    wanted = answered(study.GROUP) if one_test_set(config) else []
    if values["diverged"] or not (wanted or hasattr(study, "extra")):
        return {**result, "answers": {}}
    path = folder / f"claim_{tag}.npz"
    if not path.exists():
        _measure_finished(study, config, folder, wanted, path)
    with np.load(path) as stored:
        after = {name: stored[name] for name in stored.files}
    result["seconds"] += float(after.pop("seconds"))
    answers = {m: after.pop(f"answers/{m}") for m in wanted}
    values |= {name: float(value) for name, value in after.items()}
    return {**result, "answers": answers}


def _measure_finished(
    study: ModuleType, config: Any, folder: pathlib.Path, wanted: Sequence[str], path: pathlib.Path
) -> None:
    began = time.perf_counter()
    finished = members.load_finished(config, folder)
    kept: dict[str, Any] = {
        f"answers/{m}": right_answers(finished, m.split(".")[1]) for m in wanted
    }
    if hasattr(study, "extra"):
        kept |= study.extra(finished)
    kept["seconds"] = time.perf_counter() - began
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.savez_compressed(file, **kept)
    os.replace(partial, path)


def answered(group: Group) -> list[str]:
    """Return the accuracies on the test set that metrics of a group's rules are, or follow from."""
    found = (as_accuracy(metric) for metric in group.metrics())
    answers = (m for m in found if m.startswith("test.") and m.endswith(".accuracy"))
    return list(dict.fromkeys(answers))


def one_test_set(config: Any) -> bool:
    """Whether all replicates answer the same test examples; each fold has its own."""
    return not config.data.fold


def fall(steps: Sequence[int], loss: Sequence[float]) -> float:
    """Return the share of its value by which a loss falls in a tenth of the run, at its end.

    The slope is that of a line through the last third of the evaluations, three at least.
    """
    last = max(3, len(steps) // 3)
    x, y = np.asarray(steps[-last:], float), np.asarray(loss[-last:], float)
    if len(x) < 3 or not y[-1] > 0:
        return math.nan
    slope = np.polyfit(x, y, 1)[0]
    return float(-slope * steps[-1] / 10 / y.mean())


def gap_at(curves: Mapping[str, Sequence[float]], level: float) -> float:
    """Return validation minus training loss where the training loss first falls to a level.

    Between rows losses are interpolated, so that runs are compared at equal training loss. NaN if
    the loss never falls so far, or has done so in the first row.
    """
    steps, losses = curves.get("train.step", ()), curves.get("train.loss", ())
    after = next((i for i, loss in enumerate(losses) if loss <= level), 0)
    if not after:
        return math.nan
    before = after - 1
    at = np.interp(level, [losses[after], losses[before]], [steps[after], steps[before]])
    return float(np.interp(at, curves["valid.step"], curves["valid.loss"])) - level


def right_answers(finished: members.Finished, kind: str) -> np.ndarray:
    """Return which test examples the best parameters get right, `[examples]`.

    A batch's sum of right answers is linear in the weights of its examples, and an example's own
    answer is the derivative by its weight.
    """
    task, config, test = finished.task, finished.config, finished.dataset.test
    norm = finished.statistics(kind)
    index, weight = batches.evaluation_batches(splits.size(test), config["eval_batch_size"])
    stats = "batch" if kind == "batch" else "running"
    rows = [
        _answers(finished.params, norm, test, i, w, task=task, stats=stats)
        for i, w in zip(index, weight, strict=True)
    ]
    return np.concatenate(jax.device_get(rows))[: splits.size(test)] > 0.5


@functools.partial(jax.jit, static_argnames=("task", "stats"))
def _answers(
    params: Any, norm: Any, split: Any, index: Any, weight: Any, *, task: tasks.Task, stats: str
) -> jax.Array:
    def correct(weight: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(0), index[0])
        batch = tasks.Batch(splits.take(split, index), weight, key)
        return task(params, norm, batch, stats=stats)[0].correct

    return jax.grad(correct)(jnp.asarray(weight))


class _Notes(io.TextIOBase):
    """Passes on the notes that runs print, and none of the lines of their progress."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        if "note: " in text:
            self.stream.write(text.rstrip("\n") + "\n")
            self.stream.flush()
        return len(text)


def train(
    study: ModuleType,
    scale: Scale,
    count: int,
    workdir: pathlib.Path,
    *,
    together: int = 1,
    workers: int = 1,
    free: Mapping[str, Any] | None = None,
) -> None:
    """Train `count` replicates of every arm at every rate, but those that are finished.

    `together` and `workers` are those of `experiments.runtime.members.run_members`; `free` has
    keys that change no number, such as checkpoint_every.
    """
    runs = [
        (members.with_changes(run.config, free or {}), run.folder)
        for run in runs_of(study, scale, count, workdir)
    ]
    with (
        float32_products(),
        contextlib.redirect_stdout(_Notes(sys.stdout)),
        tqdm(
            total=len(runs),
            unit="run",
            desc=f"{study.GROUP.number} {scale.name}",
            disable=None,  # no bar where there is no terminal
        ) as bar,
    ):
        for _ in members.run_members(runs, together=together, workers=workers):
            bar.update()


def gather(
    study: ModuleType, scale: Scale, count: int, workdir: pathlib.Path
) -> tuple[dict[str, Any], records.Answers]:
    """Return the numbers of `count` replicates of every arm, as a record holds them.

    Of each arm: `metrics` by name, `[rates][replicates]`; `curves`, means over the replicates at
    each rate; `seconds`; `folds`, of each replicate, if it has any. What is not finite is null.
    Runs that are not finished are trained.
    """
    group: Group = study.GROUP
    arms: dict[str, Any] = {}
    answers: records.Answers = {}
    found_of: dict[str, Any] = {}
    tag = registry.config_hash(study, scale)
    for arm in group.arms:
        if not registry.trains(study):
            began = time.perf_counter()
            grid = group.rates_at(scale)
            tried: list[tuple[float, ...]] = [(rate,) for rate in grid] or [()]
            found = [
                [{"metrics": study.measure(arm, n, scale.name, *r)} for n in range(1, count + 1)]
                for r in tried
            ]
            arms[arm] = {"rates": list(grid), **_lists(found, None)}
            arms[arm]["seconds"] = round(time.perf_counter() - began, 2)
            continue
        rates = group.rates_at(scale) or (None,)
        found = []
        for rate in rates:
            configs = [config_of(study, scale, arm, rate, n) for n in range(1, count + 1)]
            found.append([one(study, c, folder_of(workdir, c), tag) for c in configs])
        rate_list = [r if r is not None else float(configs[0].optim.learning_rate) for r in rates]
        kept = dict.fromkeys((*group.metrics(), *KEPT))
        arms[arm] = {"rates": rate_list, **_lists(found, tuple(kept))}
        arms[arm]["seconds"] = round(sum(r["seconds"] for row in found for r in row), 1)
        if not one_test_set(configs[0]):
            arms[arm]["folds"] = [c.data.fold for c in configs]
            continue
        for metric in answered(group):
            found_of[f"{arm}/{metric}"] = found
    size = max((len(a) for rows in found_of.values() for a in _answers_in(rows)), default=0)
    for key, rows in found_of.items():
        answers[key] = _stack(rows, key.partition("/")[2], size)
    return arms, answers


def run(
    study: ModuleType,
    scale: Scale,
    count: int,
    workdir: pathlib.Path,
    *,
    together: int = 1,
    workers: int = 1,
) -> tuple[dict[str, Any], records.Answers]:
    """Train and gather `count` replicates: what every record says of its runs, and the answers."""
    with float32_products():
        if registry.trains(study):
            train(study, scale, count, workdir, together=together, workers=workers)
        arms, answers = gather(study, scale, count, workdir)
        machine = made_on(study, scale, count, workdir)
    record = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "replicates": count,
        "seconds": round(sum(arm["seconds"] for arm in arms.values()), 1),
        **machine,
        "arms": arms,
    }
    return record, answers


def made_on(study: ModuleType, scale: Scale, count: int, workdir: pathlib.Path) -> dict[str, Any]:
    """Return on what and when the runs of a record were trained, which need not be here and now.

    "hardware" and "versions" are those of most runs; where runs are of several kinds of machine,
    "hardware" has the number of runs of each "device". "codes" has the source of every run, and of
    what measures them now. "measured_on" is this machine's device, where most runs were trained
    elsewhere. "began" is when each run began, "" where it does not say.
    """
    here = {"hardware": hardware(), "versions": versions()}
    if not registry.trains(study):
        return {**here, "codes": [code()]}
    begun = [
        read_json(run.folder / "config.json", "hardware", "versions")
        for run in runs_of(study, scale, count, workdir)
    ]
    kinds = collections.Counter(run["hardware"]["device"] for run in begun)
    device = kinds.most_common(1)[0][0]
    first = next(run for run in begun if run["hardware"]["device"] == device)
    found: dict[str, Any] = {"hardware": dict(first["hardware"]), "versions": first["versions"]}
    if len(kinds) > 1:
        found["hardware"]["device"] = " and ".join(
            f"{kind} ({n} of {len(begun)} runs)" for kind, n in kinds.most_common()
        )
    if device != here["hardware"]["device"]:
        found["measured_on"] = here["hardware"]["device"]
    found["codes"] = list(dict.fromkeys([*(run["versions"]["code"] for run in begun), code()]))
    found["began"] = [run.get("began", "") for run in begun]
    return found


def _lists(found: Sequence[Sequence[Any]], kept: Sequence[str] | None) -> dict[str, Any]:
    names = {name: None for row in found for result in row for name in result["metrics"]}
    metrics = {
        name: [[records.short(r["metrics"].get(name, math.nan)) for r in row] for row in found]
        for name in names
        if kept is None or name in kept
    }
    curves: dict[str, Any] = {}
    for row in found:
        sound = [r["curves"] for r in row if r.get("curves")]
        for name in sound[0] if sound else ():
            mean = np.mean([c[name] for c in sound], axis=0)
            curves.setdefault(name, []).append([float(f"{v:.4g}") for v in mean])
    return {"metrics": metrics, "curves": curves}


def _answers_in(found: Sequence[Sequence[dict[str, Any]]]) -> Iterator[np.ndarray]:
    for row in found:
        for result in row:
            yield from result["answers"].values()


def _stack(found: Sequence[Sequence[dict[str, Any]]], metric: str, size: int) -> np.ndarray:
    """Stack answers to `[rates, replicates, size]`; a diverged run answers at random."""
    at_random = np.random.default_rng(0).random(size)
    rows = [
        [r["answers"].get(metric, at_random < r["metrics"][metric]) for r in row] for row in found
    ]
    return np.array(rows)
