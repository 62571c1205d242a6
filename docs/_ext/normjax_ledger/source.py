"""Reads the ledger and its records, and says numbers, units and papers in short words."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Entry = Mapping[str, Any]

# Metrics of the records in the words of an axis.
WORDS = {
    "accuracy.all": "test accuracy, statistics shared over time",
    "accuracy.each": "test accuracy, statistics of each step",
    "area.train": "training loss, mean over the run",
    "area.valid": "validation loss, mean over the run",
    "area.error": "validation error, mean over the run",
    "gap.end": "validation loss − training loss at the end",
    "rough.valid": "change of the validation loss between evaluations",
    "steps_time": "time of a step",
    "steps_to_target": "steps to the target accuracy",
    "test.batch.accuracy": "test accuracy, statistics of the batch",
    "test.population.log_error": "logarithm of the test error, population statistics",
    "test.population.accuracy": "test accuracy, population statistics",
    "test.population.loss": "test loss, population statistics",
    "test.running.accuracy": "test accuracy, running statistics",
    "test.running.log_error": "logarithm of the test error, running statistics",
    "train.accuracy": "training accuracy",
    "train.loss": "training loss",
    "valid.accuracy": "validation accuracy",
    "valid.loss": "validation loss",
}


def load(results: pathlib.Path) -> dict[str, Any]:
    """Read `ledger.json` from a folder of results; without one, there are no groups."""
    path = results / "ledger.json"
    if not path.exists():
        return {"verdicts": [], "groups": []}
    ledger: dict[str, Any] = json.loads(path.read_text())
    return ledger


def record(results: pathlib.Path, scale: Entry) -> dict[str, Any] | None:
    """Read the record of a scale, if it has one; its path starts at the folder above results."""
    path = results.parent / scale["record"] if scale["record"] else None
    if path is None or not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def self_test(results: pathlib.Path) -> dict[str, Any] | None:
    """Read the figures of the A/A test, `aa.json`, if it was run."""
    path = results / "aa.json"
    return json.loads(path.read_text()) if path.exists() else None


def page(group: Entry) -> str:
    """Return the name of a group's page."""
    return f"ledger/{group['slug']}"


def anchor(claim_id: str) -> str:
    """Return the id of a claim's section."""
    return f"claim-{claim_id}"


def number(value: float | None, sign: bool = True) -> str:
    """Format with three significant digits and a proper minus."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.3g}".replace("-", "−")


def chance(value: float | None) -> str:
    """Format a p-value."""
    return "< 0.0001" if value is not None and value < 1e-4 else number(value, sign=False)


def interval(entry: Entry) -> str:
    """Format an effect with its interval, such as "+0.021 [0.004, 0.038]"."""
    if entry.get("estimate") is None:
        return "–"
    low, high = (number(entry[end], sign=False) for end in ("low", "high"))
    return f"{number(entry['estimate'])} [{low}, {high}]"


def words(metric: str) -> str:
    """Say a metric in words."""
    if metric.startswith("gap.at_"):
        level = metric.removeprefix("gap.at_")
        return f"validation loss − training loss, where the latter is {level}"
    if metric.startswith("bits."):
        _, statistics, length = metric.split(".")
        return f"bits a character at length {length}, {statistics} statistics"
    return WORDS.get(metric, metric.replace("_", " "))


class Unit(NamedTuple):
    """What effects of a claim are divided by on a common axis."""

    size: float
    name: str


def unit(claim: Entry) -> Unit:
    """Return the published effect, or delta where there is none or where none is claimed."""
    published = claim["published"]
    if claim["kind"] == "more" and published is not None and published > 0:
        return Unit(published, "published")
    return Unit(claim["delta"], "delta")


def papers(text: str) -> list[str]:
    """Return the papers of a source in short: first author and year, "Cooijmans 2017".

    A source without a year is shortened to what stands before its first comma.
    """
    found: dict[str, None] = {}
    text = re.sub(r"arXiv:\S+", "", text)
    for part in re.split(r";|,? against (?=[A-Z])|,? (?:and|with) (?=[A-Z][^,;]* et al)", text):
        year = re.search(r"\b(?:19|20)\d\d\b", part)
        name = part.strip().split(",")[0].removesuffix(" et al.").strip()
        if year:
            name = f"{re.sub(r' (et al.*|(?:19|20)[0-9]{2}.*)$', '', name)} {year[0]}"
        if name:
            found[name] = None
    return list(found)


def verdicts(claim: Entry) -> list[str]:
    """Return a claim's verdicts over its scales, each once."""
    return list(dict.fromkeys(entry["verdict"] for entry in claim["at"]))


def best_rates(group: Entry, scale: Entry, found: Entry) -> dict[str, int]:
    """Return the index of each arm's rate at a scale: that which the first of its claims picked.

    An arm of no claim is shown at the rate with the lowest validation loss at its end.
    """
    picked: dict[str, float] = {}
    for claim in group["claims"]:
        for entry in claim["at"]:
            if entry["scale"] == scale["name"]:
                picked = {**entry.get("rates", {}), **picked}
    chosen = {}
    for arm, numbers in found["arms"].items():
        rates = numbers["rates"]
        ends = [curve[-1] for curve in numbers["curves"].get("valid.loss", ()) if curve]
        if arm in picked and picked[arm] in rates:
            chosen[arm] = rates.index(picked[arm])
        elif len(ends) == len(rates) and ends:
            chosen[arm] = ends.index(min(ends))
    return chosen
