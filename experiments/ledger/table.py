"""RESULTS.md and its pictures, from the records of the claims and nothing else.

python -m experiments.report --results
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.ledger import records, rules

HEADER = """\
# The ledger of claims

Made from the records in `results/claims/` by `python -m experiments.report --results`; never edited
by hand. One row for each claim; the config of each says what the source did, what was made smaller
here, and what it costs. Its command shows the record; with `--fresh --records=runs/again` it runs
the claim again, from nothing and beside the record.

How a verdict comes about. Every arm's learning rate is picked on seed 0 from the same grid, which
goes on, by three rates at most, where the best one is at its end; claims 18, 19 and 31 are about
the rate or the start and fix it. Then seeds 1 to n are trained at each arm's best, the same seed
giving the same data order to every arm. A rule is a difference of arms, paired by seed, with
Student's 95 % interval over the seeds:

* "> m" **holds** where the whole interval lies above m, **fails** where it lies below;
* "within m" **holds** where the interval lies inside -m to m, **fails** where it lies outside;
* otherwise it is **undecided**. A claim holds if all its rules do, and fails if one does.

Rules were written before the runs, but for claim 26, whose margins were set after a look at one
seed; a record whose rule was changed afterwards is refused. Claim 8 was run once before with a
faulty setup, which its config describes. The intervals are not corrected for the number of rules.
"fails" says that the statement was not borne out at this scale, with these data; the line "Smaller"
of each config says how small that is. Claims share the runs that their arms have alike, so verdicts
are not independent of each other.
A run that diverged counts as a model that knows nothing: accuracy 1 / classes, loss log(classes);
the row says how many did.
Accuracies are between 0 and 1, losses in nats; population: statistics estimated over the training
set, the test-time statistics that are exact.
"""

COLUMNS = (
    "claim",
    "statement",
    "source",
    "config",
    "seeds",
    "mean ± std over seeds",
    "rules: difference, 95 % interval",
    "verdict",
    "command",
    "hardware",
    "date",
)


def number(value: float) -> str:
    """Four significant digits, a proper minus."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3g}"
    return text.replace("-", "−")


def arms(claim: rules.Claim, record: Mapping[str, Any]) -> str:
    """Mean and standard deviation of every metric that a rule looks at, by arm."""
    wanted: dict[str, list[str]] = {}
    for rule in claim.rules:
        for term in rule.terms:
            of = wanted.setdefault(term.metric, [])
            if term.arm not in of:
                of.append(term.arm)
    parts = []
    for metric, names in wanted.items():
        each = [f"{name} {_spread(record['arms'][name]['metrics'][metric])}" for name in names]
        parts.append(f"{metric}: {', '.join(each)}")
    tuned = {n: arm for n, arm in record["arms"].items() if arm.get("tuned")}
    edge = [
        name
        for name, arm in tuned.items()
        if f"{arm['rate']:g}" in (min(arm["tuned"], key=float), max(arm["tuned"], key=float))
    ]
    if edge:
        parts.append(f"best rate at the grid's edge: {', '.join(edge)}")
    lost = {n: arm["metrics"].get("diverged", ()) for n, arm in record["arms"].items()}
    gone = [f"{n} {v.count(1.0)} of {len(v)}" for n, v in lost.items() if any(v)]
    if gone:
        parts.append(f"diverged: {', '.join(gone)}")
    return "; ".join(parts)


def _spread(values: Sequence[float | None]) -> str:
    found = np.array([math.nan if v is None else v for v in values], np.float64)
    spread = found.std(ddof=1) if len(found) > 1 else 0.0
    return f"{number(float(found.mean()))} ± {number(float(spread))}"


def rule_lines(results: Sequence[rules.Result]) -> str:
    """Every rule with its difference and what it decides."""
    parts = []
    for result in results:
        sign = "> " if result.rule.kind == "more" else "within "
        asked = sign + number(result.rule.margin)
        found = f"{number(result.mean)} ± {number(result.half)}"
        parts.append(f"{result.rule.label}: {found} ({asked}: {result.verdict})")
    return "; ".join(parts)


def row(at: int, results: pathlib.Path) -> list[str]:
    """A claim's cells."""
    claim, record = records.module(at).CLAIM, records.read(at, results)
    path = f"[{records.slug(at)}]({records.config_path(at)})"
    command = f"`python -m experiments.claim {at}`"
    if record is None:
        if not records.runs(records.module(at)):
            command = "-"
        return [
            str(at),
            claim.statement,
            claim.source,
            path,
            "-",
            "-",
            "-",
            "not run",
            command,
            "-",
            "-",
        ]
    verdict, found = records.judge(claim, record)
    seeds = {len(arm["seeds"]) for arm in record["arms"].values()}
    picture = f"[plot](results/claims/{records.slug(at)}.png)"
    return [
        str(at),
        claim.statement,
        claim.source,
        path,
        str(max(seeds)),
        f"{arms(claim, record)} ({picture})",
        rule_lines(found),
        verdict,
        command,
        hardware(record),
        record["date"],
    ]


def hardware(record: Mapping[str, Any]) -> str:
    """What it ran on, and how long."""
    found = record["hardware"]
    device = f"{found['cpus']} CPU cores" if found["platform"] == "cpu" else found["device"]
    return f"{device}, {record['seconds'] / 60:.1f} min"


def write(results: pathlib.Path = records.RESULTS) -> str:
    """The text of RESULTS.md."""
    rows = [row(at, results) for at in sorted(records.files())]
    verdicts = [cells[COLUMNS.index("verdict")] for cells in rows]
    counts = ", ".join(f"{v} {verdicts.count(v)}" for v in rules.VERDICTS)
    lines = [HEADER, f"Of {len(rows)} claims: {counts}.", ""]
    lines.append("| " + " | ".join(COLUMNS) + " |")
    lines.append("| ---: |" + " --- |" * (len(COLUMNS) - 1))
    lines += ["| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |" for cells in rows]
    return "\n".join(lines) + "\n"


def summary(claim: rules.Claim, record: Mapping[str, Any]) -> str:
    """A claim's outcome for a terminal."""
    verdict, found = records.judge(claim, record)
    lines = [f"claim {claim.number}: {claim.statement}", f"verdict: {verdict}"]
    lines += [f"  {rule_lines([result])}" for result in found]
    for arm, numbers in record["arms"].items():
        rate = f"rate {numbers['rate']:g}, tuned {numbers['tuned']}" if "rate" in numbers else ""
        lines.append(f"  {arm}: {rate} {numbers['seconds']} s")
    return "\n".join([*lines, f"  {arms(claim, record)}"])


# ------------------------------------------------------------------------------------- pictures


def draw(claim: rules.Claim, record: Mapping[str, Any], path: pathlib.Path) -> None:
    """Curves of each arm where there are any, and the arms' numbers seed by seed."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    found = record["arms"]
    metric = claim.rules[0].terms[0].metric
    shown = list(dict.fromkeys(t.metric for r in claim.rules for t in r.terms))[:2]
    curved = {name: arm["curves"] for name, arm in found.items() if arm.get("curves")}
    wide = len(shown) + (2 if curved else 0)
    figure, axes = plt.subplots(
        1, wide, figsize=(4.2 * wide, 3.8), layout="constrained", squeeze=False
    )
    at = iter(axes[0])
    colors = {name: plt.get_cmap("tab10")(i % 10) for i, name in enumerate(found)}
    if curved:
        for what, label in (("train.loss", "training loss"), ("valid.loss", "validation loss")):
            axis = next(at)
            for name, curves in curved.items():
                steps = curves[f"{what.split('.')[0]}.step"]
                mean, std = (np.array(curves[what][k]) for k in ("mean", "std"))
                axis.plot(steps, mean, label=name, color=colors[name], lw=1.6)
                axis.fill_between(steps, mean - std, mean + std, color=colors[name], alpha=0.15)
            axis.set(xlabel="training steps", ylabel=label)
            axis.grid(alpha=0.25)
        axes[0][0].legend(frameon=False, fontsize=8)
    for metric in shown:
        axis = next(at)
        names = [n for n in found if metric in found[n]["metrics"]]
        for i, name in enumerate(names):
            values = np.array([v for v in found[name]["metrics"][metric] if v is not None])
            axis.plot(np.full(len(values), i), values, "o", color=colors[name], alpha=0.6, ms=4)
            if len(values):
                axis.plot([i - 0.25, i + 0.25], [values.mean()] * 2, color=colors[name], lw=2)
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
        axis.set_ylabel(metric)
        axis.grid(alpha=0.25, axis="y")
    verdict, _ = records.judge(claim, record)
    title = f"{claim.number}. {claim.statement}: {verdict}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, wrap=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def publish(results: pathlib.Path = records.RESULTS, out: pathlib.Path | None = None) -> str:
    """Write RESULTS.md and draw every picture again; return a line about it."""
    text = write(results)
    out = out or pathlib.Path("RESULTS.md")
    out.write_text(text)
    drawn = 0
    for at in sorted(records.files()):
        if record := records.read(at, results):
            draw(
                records.module(at).CLAIM,
                record,
                records.record_path(at, results).with_suffix(".png"),
            )
            drawn += 1
    return f"{out}: {len(records.files())} claims, {drawn} with a record; pictures in {results}"
