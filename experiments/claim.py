"""Run one claim from its config alone: tune each arm's rate, train the paired seeds, keep a record.

    python -m experiments.claim 1 [--workdir=runs/claims] [--records=results/claims] [--fresh]

A claim that was stopped goes on where it was; one that has a record is shown.
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

from experiments import sweep
from experiments.config import command_line, validate
from experiments.ledger import records, rules, table
from experiments.runtime import exits
from experiments.runtime.workdir import hardware, versions, write_json
from experiments.usage import UsageError

_RECORDS = flags.DEFINE_string("records", str(records.RESULTS), "Where records are kept.")
_FRESH = flags.DEFINE_bool("fresh", False, "Remove record and runs.", allow_override=True)


def run(
    number: int,
    workdir: pathlib.Path = pathlib.Path("runs/claims"),
    results: pathlib.Path = records.RESULTS,
    *,
    fresh: bool = False,
) -> dict[str, Any]:
    """Run a claim, write its record and picture, and return the record."""
    made = records.module(number)
    if not records.runs(made):
        raise UsageError(f"claim {number} is declared, but has no experiment yet.")
    path = records.record_path(number, results)
    if fresh:
        path.unlink(missing_ok=True)
        for arm in made.CLAIM.arms if hasattr(made, "get_config") else ():
            sweep.clear(workdir / records.own_hash(validate.check(made.get_config(arm))))
    if record := records.read(number, results):
        return record
    began = time.perf_counter()
    measured = _measure(made) if hasattr(made, "measure") else _train(made, workdir)
    record = {
        "claim": number,
        "config": records.config_path(number),
        "config_hash": records.config_hash(made),
        "rule_hash": records.rule_hash(made.CLAIM),
        "command": f"python -m experiments.claim {number}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(sum(arm["seconds"] for arm in measured.values()), 1),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "hardware": hardware(),
        "versions": versions(),
        "arms": measured,
    }
    results.mkdir(parents=True, exist_ok=True)
    table.draw(made.CLAIM, record, path.with_suffix(".png"))
    write_json(path, record)
    return record


def _measure(made: ModuleType) -> dict[str, Any]:
    """Numbers of a claim that is computed: `measure(arm, seed)` for every arm and seed."""
    claim, arms = made.CLAIM, {}
    for arm in claim.arms:
        began = time.perf_counter()
        seeds = list(range(1, claim.seeds + 1))
        arms[arm] = _gather(seeds, [{"metrics": made.measure(arm, seed)} for seed in seeds])
        arms[arm]["seconds"] = round(time.perf_counter() - began, 2)
    return arms


def _train(made: ModuleType, folder: pathlib.Path) -> dict[str, Any]:
    """Tune each arm on seed 0, then train it with seeds 1 to n at its best rate.

    A run lives in a folder named by its config's hash, so that claims share what they have alike.
    """
    claim, arms = made.CLAIM, {}
    for arm in claim.arms:
        config = ml_collections.ConfigDict(made.get_config(arm))
        config.name = records.own_hash(validate.check(config))
        place = folder / config.name
        tried, best, spent = _tune(claim, config, place)
        members, seeds = [], list(range(1, claim.seeds + 1))
        for seed in seeds:
            changed = sweep.with_changes(config, {"seed": seed, "optim.learning_rate": best})
            at = place / f"{best:g},{seed}"
            told = sweep.run_member(changed, at)
            if hasattr(made, "extra") and not told["metrics"]["diverged"]:
                began = time.perf_counter()
                told["metrics"] |= made.extra(sweep.load_finished(changed, at))
                spent += time.perf_counter() - began
            spent += told["seconds"]
            members.append(told)
        arms[arm] = {
            "rate": best,
            "tuned": {f"{rate:g}": tried[rate] for rate in sorted(tried)},
            **_gather(seeds, members),
            "seconds": round(spent, 1),
        }
    return arms


def _tune(
    claim: rules.Claim, config: Any, place: pathlib.Path
) -> tuple[dict[float, float | None], float, float]:
    """Seed 0's metric by learning rate, the best rate, and the seconds it took.

    A best rate at an end of the grid says that a better one may lie beyond: the grid goes on there,
    by three more rates at most.
    """
    tried: dict[float, float | None] = {}
    if len(claim.rates) < 2:
        return tried, (claim.rates or (config.optim.learning_rate,))[0], 0.0
    sign = -1.0 if _small_is_good(claim.tune) else 1.0
    waiting, best, spent, beyond = list(claim.rates), claim.rates[0], 0.0, 3
    while waiting:
        rate = waiting.pop(0)
        told = sweep.run_member(
            sweep.with_changes(config, {"seed": 0, "optim.learning_rate": rate}),
            place / f"{rate:g},0",
        )
        lost = told["metrics"]["diverged"]  # beats a net that learned nothing, but not here
        tried[rate] = None if lost else told["metrics"][claim.tune]
        spent += told["seconds"]
        if not waiting:
            best = max(tried, key=lambda rate: _order(tried[rate], sign))
            further = _beyond(sorted(tried), best)
            if further and beyond:
                waiting, beyond = [further], beyond - 1
    return tried, best, spent


def _beyond(rates: Sequence[float], best: float) -> float | None:
    """The next rate after an end of a 1, 3, 10, ... grid, if the best is at that end."""
    ends = {rates[-1]: 10 * rates[-2], rates[0]: rates[1] / 10}
    return float(f"{ends[best]:g}") if best in ends else None


def _order(value: float | None, sign: float) -> float:
    return -math.inf if value is None else sign * value


def _small_is_good(metric: str) -> bool:
    return metric.startswith(("area.", "steps")) or metric.endswith("loss")


def _gather(seeds: Sequence[int], members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metrics as a list over seeds, what is not finite as null; curves as mean and deviation."""
    names = {name: None for member in members for name in member["metrics"]}
    told = {
        name: [_finite(member["metrics"].get(name, math.nan)) for member in members]
        for name in names
    }
    curves = [m["curves"] for m in members if m.get("curves")]
    shown: dict[str, Any] = {}
    if curves:
        for name, values in curves[0].items():
            rows = np.array([curve[name] for curve in curves])
            if name.endswith(".step"):
                shown[name] = values
            else:
                shown[name] = {"mean": _short(rows.mean(0)), "std": _short(rows.std(0))}
    return {"seeds": list(seeds), "metrics": told, "curves": shown}


def _finite(value: Any) -> float | None:
    return float(f"{float(value):.7g}") if math.isfinite(value) else None


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{v:.4g}") for v in values]


def main(argv: Sequence[str]) -> None:
    """Entry point of ``python -m experiments.claim``."""
    logging.set_verbosity(logging.WARNING)
    with exits.statuses():
        if len(argv) != 2 or not argv[1].isdigit():
            raise UsageError("write: python -m experiments.claim NUMBER, for instance 1.")
        workdir = epath.Path(flags.FLAGS["workdir"].value or "runs/claims")
        results, number = pathlib.Path(_RECORDS.value), int(argv[1])
        path = records.record_path(number, results)
        there = path.exists() and not _FRESH.value
        record = run(number, workdir, results, fresh=_FRESH.value)
        print(table.summary(records.module(number).CLAIM, record))
        again = f"; --fresh --records=runs/again runs it again beside this of {record['date']}"
        print(f"record: {path}{again if there else ''}")


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
