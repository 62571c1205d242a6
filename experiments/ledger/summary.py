"""Gathers all claims, scales, effects and verdicts into results/ledger.json and ledger.csv.

    python -m experiments.report --results

Everything that people see (RESULTS.md, the pages of the documentation) is made from ledger.json.
"""

from __future__ import annotations

import csv
import io
import math
import pathlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from experiments.ledger import inference, judge, records, registry
from experiments.ledger.claims import Claim, Group, Scale
from experiments.usage import UsageError

COLUMNS = (
    *("id", "scale", "at", "title", "verdict", "estimate", "low", "high", "delta", "published"),
    *("p", "q", "replicates", "date", "commit", "seconds", "statement", "source", "record"),
)


def ledger(results: pathlib.Path = records.RESULTS) -> dict[str, Any]:
    """Return all groups, each with its scales and claims, and each claim with its verdicts.

    `q` is Holm's p-value over the primary rules of every claim and scale that could be tested.
    """
    groups = []
    for number in sorted(registry.files()):
        study = registry.module(number)
        found = {scale.name: _record(study, scale, results) for scale in study.GROUP.scales}
        groups.append(_group(study, found))
    tested = [
        entry
        for group in groups
        for claim in group["claims"]
        for entry in claim["at"]
        if entry["p"] is not None and entry["verdict"] != "not testable here"
    ]
    for entry, q in zip(tested, inference.holm([e["p"] for e in tested]), strict=True):
        entry["q"] = _round(q)
    return {"verdicts": list(inference.VERDICTS), "groups": groups}


def _record(study: ModuleType, scale: Scale, results: pathlib.Path) -> Any:
    """Return a record with its answers, or None; a draft is refused."""
    record = records.read(study, scale, results)
    if record is None:
        return None
    path = records.path_of(study.GROUP.number, scale.name, results)
    if not record["registered"]:
        raise UsageError(
            f"{path} is a draft: its claim was not committed before it ran. Move it out of "
            f"{results}, commit the claim and run it again."
        )
    return path, record, records.read_answers(path)


def _group(study: ModuleType, found: Mapping[str, Any]) -> dict[str, Any]:
    group: Group = study.GROUP
    return {
        "number": group.number,
        "slug": registry.slug(group.number),
        "title": group.title,
        "topic": group.topic,
        "source": group.source,
        "axis": group.axis,
        "config": registry.config_path(group.number),
        "notes": registry.notes(study),
        "arms": list(group.arms),
        "trains": registry.trains(study),
        "scales": [_scale(group, scale, found[scale.name]) for scale in group.scales],
        "claims": [_claim(group, claim, found) for claim in group.claims],
    }


def _scale(group: Group, scale: Scale, found: Any) -> dict[str, Any]:
    command = f"python -m experiments.claim {group.number} --run --scale={scale.name}"
    entry: dict[str, Any] = {
        "name": scale.name,
        "at": scale.at,
        "text": scale.text,
        "rates": list(group.rates_at(scale)),
        "budget": scale.replicates,
        "minutes": scale.minutes,
        "device": scale.device,
        "of_source": scale.of_source,
        "command": command,
        "record": None,
    }
    if found is not None:
        path, record, _ = found
        entry |= {
            "record": path.as_posix(),
            "replicates": record["replicates"],
            "date": record["date"],
            "commit": record["registered"]["commit"],
            "seconds": record["seconds"],
            "hardware": record["hardware"],
            **{key: record[key] for key in ("measured_on", "runs", "older_runs") if key in record},
        }
    return entry


def _claim(group: Group, claim: Claim, found: Mapping[str, Any]) -> dict[str, Any]:
    at = [_verdict(group, claim, scale, found[scale.name]) for scale in group.scales]
    verdicts = [(scale, e["verdict"]) for scale, e in zip(group.scales, at, strict=True)]
    published = claim.published
    return {
        "id": group.id(claim),
        "title": claim.title,
        "statement": claim.statement,
        "source": claim.source or group.source,
        "expect": claim.expect,
        "rule": claim.rule.label,
        "kind": claim.rule.kind,
        "metric": claim.rule.terms[0].metric,
        "delta": claim.delta,
        "why": claim.why,
        # Of several sizes that of the last, to compare with.
        "published": published[-1][1] if isinstance(published, tuple) else published,
        "change": claim.change,
        "methods": list(claim.methods),
        "controls": [control.label for control in claim.controls],
        "phrase": judge.phrase(verdicts),
        "at": at,
    }


def _verdict(group: Group, claim: Claim, scale: Scale, found: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"scale": scale.name, "at": scale.at, "verdict": "not run"}
    entry |= dict.fromkeys(("estimate", "low", "high", "p", "q"))
    entry["published"] = claim.published_at(scale)
    if found is None:
        return entry
    judged = judge.judge(group, claim, found[1], found[2])
    low, high = judged.effect.interval()
    return entry | {
        "verdict": judged.verdict,
        "estimate": _round(judged.effect.estimate),
        "low": _round(low),
        "high": _round(high),
        "p": _round(judged.p),
        "replicates": min(judged.effect.replicates),
        "rates": judged.rates,
        "at_edge": list(judged.at_edge),
        "diverged": judged.diverged,
        "controls": [
            {
                "label": check.label,
                "passed": check.passed,
                **{k: _round(getattr(check, k)) for k in ("estimate", "low", "high")},
            }
            for check in judged.checks
        ],
    }


def _round(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def table(gathered: Mapping[str, Any]) -> str:
    """Return the ledger as CSV, a line for each claim and scale."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for group in gathered["groups"]:
        scales = {scale["name"]: scale for scale in group["scales"]}
        for claim in group["claims"]:
            for entry in claim["at"]:
                writer.writerow({**claim, **scales[entry["scale"]], **entry})
    return out.getvalue()
