"""Writes RESULTS.md from the ledger, and describes claims for a terminal."""

from __future__ import annotations

import json
import math
import pathlib
import re
import textwrap
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from experiments.ledger import inference, judge, records, registry, summary
from experiments.ledger.claims import Claim, Group
from experiments.usage import UsageError

WIDTH = 160  # of a line of the table

HEADER = """\
# The ledger of claims

One line for each claim of a paper or tutorial, made from the records in `results/claims/` by
`python -m experiments.report --results`. The documentation has a page with pictures, all scales,
controls, rates and commands; `results/ledger.json` and `ledger.csv` hold the same numbers.

* **Verdict**: at each size, by its place on the axis that the group's bold line names.
* **Effect**: in the metric's units, positive in the claimed direction, with its 95 % interval, at
  the largest size that was run. With \\*, an arm did best at the lowest or the highest rate tried.
* **Source**: the published number that comes nearest to it; the page says what it is of.
* **supported**: the interval is above 0 and the effect is at least delta, the smallest that
  matters (stated by each claim before its runs, with the reason). **reversed**: the interval is
  below 0. **negligible**: the 90 % interval is inside ± delta. **inconclusive**: none of these.
  **not testable here**: a positive control failed, so that this setup cannot answer.
* A replicate redraws initialization, order, training and validation set. Every arm is trained at
  the same rates; the interval contains the choice of the rate and, where a rule is of test answers
  that every run gave to the same examples, the draw of these.
* Verdicts are those of single claims; *q* on the page is corrected for all of them (Holm). Claims
  share the runs of arms that are alike, so their verdicts are not independent.
"""


def number(value: float | None) -> str:
    """Format with three significant digits, a sign and a proper minus."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.3g}".replace("-", "−")


def interval(entry: Mapping[str, Any]) -> str:
    """Format an effect with its interval, such as "+0.021 [0.004, 0.038]"."""
    if entry["estimate"] is None:
        return "–"
    low, high = (number(entry[k]).removeprefix("+") for k in ("low", "high"))
    return f"{number(entry['estimate'])} [{low}, {high}]"


def line(group: Mapping[str, Any], claim: Mapping[str, Any]) -> str:
    """Return a claim's line of the table, at most `WIDTH` characters."""
    run = [entry for entry in claim["at"] if entry["verdict"] != "not run"]
    effect = interval(run[-1]) if run else "–"
    name = f"[{claim['id']}][{group['number']}]"
    if run and run[-1]["at_edge"]:
        effect += r" \*"
    phrase = claim["phrase"]
    published = run[-1]["published"] if run else claim["published"]

    def joined(phrase: str) -> str:
        return f"| {name} | {claim['title']} | {phrase} | {effect} | {number(published)} |"

    if len(joined(phrase)) > WIDTH:
        phrase = f"{run[-1]['verdict']} at {run[-1]['at']:g}; others: see the page"
    return joined(phrase)


def axis(group: Mapping[str, Any]) -> str:
    """Return what a group's sizes are the places of."""
    return group["axis"] if len(group["scales"]) > 1 else ""


def write(gathered: Mapping[str, Any]) -> str:
    """Return the text of RESULTS.md."""
    found = [e["verdict"] for g in gathered["groups"] for c in g["claims"] for e in c["at"]]
    claims = sum(len(group["claims"]) for group in gathered["groups"])
    counts = ", ".join(f"{found.count(v)} {v}" for v in inference.VERDICTS if v in found)
    lines = [HEADER, f"{claims} claims, {len(found)} with each of their sizes: {counts}.", ""]
    lines += [
        "| claim | statement | verdict | effect | source |",
        "| --- | --- | --- | ---: | ---: |",
    ]
    for group in gathered["groups"]:
        lines.append(f"| **{group['number']}** | **{group['title']}** | **{axis(group)}** | | |")
        lines += [line(group, claim) for claim in group["claims"]]
    lines.append("")
    lines += [f"[{group['number']}]: {group['config']}" for group in gathered["groups"]]
    return "\n".join(lines) + "\n"


def by_size(gathered: Mapping[str, Any], group_number: int) -> str:
    """Return a group's table for the README: a row for each size, a column for each claim."""
    groups = {group["number"]: group for group in gathered["groups"]}
    if group_number not in groups:
        raise UsageError(
            f"there is no claim {group_number}; write a table's number from {min(groups)} to "
            f"{max(groups)}: <!-- claims 1 -->."
        )
    group = groups[group_number]
    claims = group["claims"]
    titles = " | ".join(f"{claim['id']}: {claim['title']}" for claim in claims)
    lines = [f"| {group['axis']} | {titles} | replicates |"]
    lines.append(f"| ---: |{' --- |' * len(claims)} ---: |")
    for i, scale in enumerate(group["scales"]):
        cells = [
            entry["verdict"]
            if entry["verdict"] == "not run"
            else f"{interval(entry)}, {entry['verdict']}"
            for entry in (claim["at"][i] for claim in claims)
        ]
        lines.append(f"| {scale['at']:g} | {' | '.join(cells)} | {scale.get('replicates', '–')} |")
    if any(claim["published"] is not None for claim in claims):
        cells = [number(claim["published"]) for claim in claims]
        lines.append(f"| as published | {' | '.join(cells)} | |")
    return "\n".join(lines)


def with_sizes(text: str, gathered: Mapping[str, Any]) -> str:
    """Return a text with its tables by size made again, each between two comments."""

    def made(found: re.Match[str]) -> str:
        return f"{found[1]}\n{by_size(gathered, int(found[2]))}\n{found[3]}"

    return re.sub(r"(<!-- claims (\d+) -->)\n.*?\n(<!-- end -->)", made, text, flags=re.DOTALL)


def publish(results: pathlib.Path = records.RESULTS, out: pathlib.Path = pathlib.Path()) -> str:
    """Write RESULTS.md, ledger.json, ledger.csv and the README's tables; say so in a line.

    Raises:
        UsageError: git does not show that a record's claims were registered before its runs.
    """
    gathered = summary.ledger(results)
    for path in sorted(results.glob("*/*.json")):
        if wrong := registry.check_registration(records.load(path), path.resolve()):
            raise UsageError(f"{wrong}; no such record enters the ledger.")
    folder = out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ledger.json").write_text(json.dumps(gathered, indent=1) + "\n")
    (folder / "ledger.csv").write_text(summary.table(gathered))
    (out / "RESULTS.md").write_text(write(gathered))
    readme = out / "README.md"
    if readme.exists():
        readme.write_text(with_sizes(readme.read_text(), gathered))
    claims = sum(len(group["claims"]) for group in gathered["groups"])
    return f"{out / 'RESULTS.md'}, {folder / 'ledger.json'} and ledger.csv: {claims} claims"


# ------------------------------------------------------------------------------------ a terminal


def description(study: ModuleType, letter: str = "") -> str:
    """Describe a group of claims, or one of them, from its declaration and its notes."""
    group: Group = study.GROUP
    lines = _entry(f"Claim {group.number}:", f"{group.title} ({group.topic})")
    lines += _entry("Source:", group.source)
    for scale in group.scales:
        cost = f"; about {scale.minutes:g} min a replicate" if scale.minutes else ""
        lines += _entry("Size:", f"{scale.name} ({group.axis}: {scale.at:g}): {scale.text}{cost}")
    for claim in _chosen(group, letter):
        lines += ["", *_entry(f"{group.id(claim)}:", claim.statement)]
        delta = f"at least {claim.delta:g}: {claim.why}"
        for name, value in {
            "Rule:": f"{claim.rule.label} ({claim.rule.kind.replace('_', ' ')})",
            "Matters:": delta,
            "Expected:": claim.expect,
            "Controls:": "; ".join(control.label for control in claim.controls),
        }.items():
            lines += _entry(name, value) if value else []
    notes = registry.notes(study)
    return "\n".join(lines) + (f"\n\n{notes}\n" if notes else "\n")


def _chosen(group: Group, letter: str) -> list[Claim]:
    return [claim for claim in group.claims if not letter or claim.letter == letter]


def _entry(name: str, value: str) -> list[str]:
    first, rest = name.ljust(11), " " * 11
    return textwrap.wrap(
        value, 100, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )


def outcome(study: ModuleType, letter: str = "", results: pathlib.Path = records.RESULTS) -> str:
    """Describe the verdicts of a group, or of one of its claims, at each size that was run."""
    group: Group = study.GROUP
    lines = []
    for scale in group.scales:
        path = records.path_of(group.number, scale.name, results)
        record = records.read(study, scale, results)
        if record is None:
            command = f"python -m experiments.claim {group.number} --run --scale={scale.name}"
            lines.append(f"{scale.name}: not run; {command}")
            continue
        answers = records.read_answers(path)
        draft = "" if record["registered"] else ", a draft"
        lines.append(
            f"{scale.name}: {record['replicates']} replicates, {record['date']}, {path}{draft}"
        )
        if older := record.get("older_runs", 0):
            lines.append(f"  {older} of {record['runs']} runs do not say that they began later")
        for claim in _chosen(group, letter):
            lines += _outcome(group, judge.judge(group, claim, record, answers))
    return "\n".join(lines)


def _outcome(group: Group, judged: judge.Judged) -> list[str]:
    low, high = judged.effect.interval()
    numbers = f"{number(judged.effect.estimate)} [{number(low)}, {number(high)}]"
    lines = [f"  {group.id(judged.claim)} {judged.verdict}: {judged.claim.rule.label}: {numbers}"]
    for check in judged.checks:
        state = "passed" if check.passed else "FAILED"
        lines.append(f"      control {state}: {check.label} ({number(check.estimate)})")
    rates = ", ".join(f"{arm} {rate:g}" for arm, rate in judged.rates.items())
    edge = f"; at the edge of the grid: {', '.join(judged.at_edge)}" if judged.at_edge else ""
    lost = ", ".join(f"{arm} {n}" for arm, n in judged.diverged.items() if n)
    lines += [f"      best rates: {rates}{edge}"] if rates else []
    lines += [f"      diverged: {lost}"] if lost else []
    return lines
