"""Describe one claim, run it from its config alone, and write its record.

    python -m experiments.claim 1 [--workdir=runs/claims] [--records=results/claims] [--fresh]

A run tunes each arm's learning rate and then trains the paired seeds. Started again, a stopped
claim continues; a claim that has a record is shown.
"""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags, logging
from etils import epath

from experiments.config import command_line, validate
from experiments.ledger import records, rules, table
from experiments.runtime import exits, members
from experiments.runtime.workdir import hardware, versions, write_json
from experiments.usage import UsageError

_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/claims", "Folder of the claims' runs.", allow_override=True
)
_RECORDS = flags.DEFINE_string("records", str(records.RESULTS), "Folder of the records.")
_FRESH = flags.DEFINE_bool(
    "fresh", False, "Remove the claim's record and runs first.", allow_override=True
)


def run(
    number: int,
    workdir: pathlib.Path = pathlib.Path("runs/claims"),
    results: pathlib.Path = records.RESULTS,
    *,
    fresh: bool = False,
) -> dict[str, Any]:
    """Run a claim, write its record and picture, and return the record."""
    study = records.module(number)
    if not records.runs(study):
        raise UsageError(f"claim {number} is declared, but has no experiment yet.")
    path = records.record_path(number, results)
    if fresh:
        path.unlink(missing_ok=True)
        for arm in study.CLAIM.arms if hasattr(study, "get_config") else ():
            members.clear(workdir / records.own_hash(validate.check(study.get_config(arm))))
    if record := records.read(number, results):
        return record
    began = time.perf_counter()
    arms = _measure(study) if hasattr(study, "measure") else _train(study, workdir)
    record = {
        "claim": number,
        "config": records.config_path(number),
        "config_hash": records.config_hash(study),
        "rule_hash": records.rule_hash(study.CLAIM),
        "command": f"python -m experiments.claim {number}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(sum(arm["seconds"] for arm in arms.values()), 1),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "hardware": hardware(),
        "versions": versions(),
        "arms": arms,
    }
    results.mkdir(parents=True, exist_ok=True)
    table.draw(study.CLAIM, record, path.with_suffix(".png"))
    write_json(path, record)
    return record


def _measure(study: ModuleType) -> dict[str, Any]:
    """Compute the numbers of a claim without training runs: `measure(arm, seed)` of its module."""
    claim, arms = study.CLAIM, {}
    for arm in claim.arms:
        began = time.perf_counter()
        seeds = list(range(1, claim.seeds + 1))
        arms[arm] = _gather(seeds, [{"metrics": study.measure(arm, seed)} for seed in seeds])
        arms[arm]["seconds"] = round(time.perf_counter() - began, 2)
    return arms


def _train(study: ModuleType, workdir: pathlib.Path) -> dict[str, Any]:
    """Tune each arm on seed 0, then train it with seeds 1 to n at its best rate.

    A run lives in a folder named by its config's hash, so that claims share equal runs.
    """
    claim, arms = study.CLAIM, {}
    for arm in claim.arms:
        config = ml_collections.ConfigDict(study.get_config(arm))
        config.name = records.own_hash(validate.check(config))
        folder = workdir / config.name
        tried, best, spent = _tune(claim, config, folder)
        results, seeds = [], list(range(1, claim.seeds + 1))
        for seed in seeds:
            changed = members.with_changes(config, {"seed": seed, "optim.learning_rate": best})
            run_folder = folder / f"{best:g},{seed}"
            result = members.run_member(changed, run_folder)
            if hasattr(study, "extra") and not result["metrics"]["diverged"]:
                began = time.perf_counter()
                result["metrics"] |= study.extra(members.load_finished(changed, run_folder))
                spent += time.perf_counter() - began
            spent += result["seconds"]
            results.append(result)
        arms[arm] = {
            "rate": best,
            "tuned": {f"{rate:g}": tried[rate] for rate in sorted(tried)},
            **_gather(seeds, results),
            "seconds": round(spent, 1),
        }
    return arms


def _tune(
    claim: rules.Claim, config: Any, folder: pathlib.Path
) -> tuple[dict[float, float | None], float, float]:
    """Return seed 0's metric by learning rate, the best rate, and the seconds this took.

    Beyond a best rate at an end of the grid there may be a better one: the grid is extended there,
    by three rates at most.
    """
    tried: dict[float, float | None] = {}
    if len(claim.rates) < 2:
        return tried, (claim.rates or (config.optim.learning_rate,))[0], 0.0
    sign = -1.0 if _small_is_good(claim.tune) else 1.0
    untried, best, spent, extensions = list(claim.rates), claim.rates[0], 0.0, 3
    while untried:
        rate = untried.pop(0)
        result = members.run_member(
            members.with_changes(config, {"seed": 0, "optim.learning_rate": rate}),
            folder / f"{rate:g},0",
        )
        # A diverged run scores as chance does, which could win here.
        diverged = result["metrics"]["diverged"]
        tried[rate] = None if diverged else result["metrics"][claim.tune]
        spent += result["seconds"]
        if not untried:
            best = max(tried, key=lambda rate: _order(tried[rate], sign))
            further = _beyond(sorted(tried), best)
            if further and extensions:
                untried, extensions = [further], extensions - 1
    return tried, best, spent


def _beyond(rates: Sequence[float], best: float) -> float | None:
    """Return the next rate after an end of a 1, 3, 10, ... grid, if the best is at that end."""
    ends = {rates[-1]: 10 * rates[-2], rates[0]: rates[1] / 10}
    return float(f"{ends[best]:g}") if best in ends else None


def _order(value: float | None, sign: float) -> float:
    return -math.inf if value is None else sign * value


def _small_is_good(metric: str) -> bool:
    return metric.startswith(("area.", "steps")) or metric.endswith("loss")


def _gather(seeds: Sequence[int], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """List metrics over seeds, what is not finite as null; curves as mean and deviation."""
    names = {name: None for result in results for name in result["metrics"]}
    values_by_name = {
        name: [_finite(result["metrics"].get(name, math.nan)) for result in results]
        for name in names
    }
    curves = [r["curves"] for r in results if r.get("curves")]
    averaged: dict[str, Any] = {}
    if curves:
        for name, values in curves[0].items():
            rows = np.array([curve[name] for curve in curves])
            if name.endswith(".step"):
                averaged[name] = values
            else:
                averaged[name] = {"mean": _short(rows.mean(0)), "std": _short(rows.std(0))}
    return {"seeds": list(seeds), "metrics": values_by_name, "curves": averaged}


def _finite(value: Any) -> float | None:
    return float(f"{float(value):.7g}") if math.isfinite(value) else None


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{v:.4g}") for v in values]


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.claim``."""
    logging.set_verbosity(logging.WARNING)
    with exits.statuses():
        if len(argv) != 2 or not argv[1].isdigit():
            raise UsageError("write: python -m experiments.claim NUMBER, for instance 1.")
        results, number = pathlib.Path(_RECORDS.value), int(argv[1])
        print(table.description(records.module(number)), flush=True)
        path = records.record_path(number, results)
        recorded = path.exists() and not _FRESH.value
        record = run(number, epath.Path(_WORKDIR.value).expanduser(), results, fresh=_FRESH.value)
        print(table.summary(records.module(number).CLAIM, record))
        again = f"; --fresh --records=runs/again runs it again beside this of {record['date']}"
        print(f"record: {path}{again if recorded else ''}")


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
