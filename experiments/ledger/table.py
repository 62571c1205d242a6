"""Writes RESULTS.md and its pictures, from the records of the claims and nothing else.

python -m experiments.report --results
"""

from __future__ import annotations

import inspect
import math
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from experiments.ledger import records, rules
from normjax.analysis.plots import COLOURS

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
"fails" says that the statement was not borne out at this scale, with these data; `scale` in each
config says how small that is. Claims share the runs that their arms have alike, so verdicts
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
    """Format with four significant digits and a proper minus."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3g}"
    return text.replace("-", "−")


def arms(claim: rules.Claim, record: Mapping[str, Any]) -> str:
    """Format mean and standard deviation of every metric that a rule reads, by arm."""
    arms_of: dict[str, list[str]] = {}
    for rule in claim.rules:
        for term in rule.terms:
            names = arms_of.setdefault(term.metric, [])
            if term.arm not in names:
                names.append(term.arm)
    parts = []
    for metric, names in arms_of.items():
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
    flags = {n: arm["metrics"].get("diverged", ()) for n, arm in record["arms"].items()}
    diverged = [f"{n} {v.count(1.0)} of {len(v)}" for n, v in flags.items() if any(v)]
    if diverged:
        parts.append(f"diverged: {', '.join(diverged)}")
    return "; ".join(parts)


def _spread(values: Sequence[float | None]) -> str:
    numbers = np.array([math.nan if v is None else v for v in values], np.float64)
    spread = numbers.std(ddof=1) if len(numbers) > 1 else 0.0
    return f"{number(float(numbers.mean()))} ± {number(float(spread))}"


def rule_lines(results: Sequence[rules.Result]) -> str:
    """Format every rule with its difference and its verdict."""
    parts = []
    for result in results:
        sign = "> " if result.rule.kind == "more" else "within "
        margin = sign + number(result.rule.margin)
        interval = f"{number(result.mean)} ± {number(result.half)}"
        parts.append(f"{result.rule.label}: {interval} ({margin}: {result.verdict})")
    return "; ".join(parts)


def row(at: int, results: pathlib.Path) -> list[str]:
    """Return the cells of a claim, in the order of `COLUMNS`."""
    claim, record = records.module(at).CLAIM, records.read(at, results)
    path = f"[{records.slug(at)}]({records.config_path(at)})"
    command = f"`python -m experiments.claim {at}`"
    start = [str(at), claim.statement, claim.source, path]
    if record is None:
        if not records.runs(records.module(at)):
            command = "-"
        return [*start, "-", "-", "-", "not run", command, "-", "-"]
    verdict, rule_results = records.judge(claim, record)
    seeds = {len(arm["seeds"]) for arm in record["arms"].values()}
    picture = f"[plot](results/claims/{records.slug(at)}.png)"
    return [
        *start,
        str(max(seeds)),
        f"{arms(claim, record)} ({picture})",
        rule_lines(rule_results),
        verdict,
        command,
        hardware(record),
        record["date"],
    ]


def hardware(record: Mapping[str, Any]) -> str:
    """Name the device that a claim ran on, and how long it took."""
    machine = record["hardware"]
    device = f"{machine['cpus']} CPU cores" if machine["platform"] == "cpu" else machine["device"]
    return f"{device}, {record['seconds'] / 60:.1f} min"


def write(results: pathlib.Path = records.RESULTS) -> str:
    """Return the text of RESULTS.md."""
    rows = [row(at, results) for at in sorted(records.files())]
    verdicts = [cells[COLUMNS.index("verdict")] for cells in rows]
    counts = ", ".join(f"{v} {verdicts.count(v)}" for v in rules.VERDICTS)
    lines = [HEADER, f"Of {len(rows)} claims: {counts}.", ""]
    lines.append("| " + " | ".join(COLUMNS) + " |")
    lines.append("| ---: |" + " --- |" * (len(COLUMNS) - 1))
    lines += ["| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |" for cells in rows]
    return "\n".join(lines) + "\n"


def description(study: ModuleType) -> str:
    """Describe a claim for a terminal, from its `CLAIM` and the notes in its docstring."""
    claim = study.CLAIM
    fields = {
        "Source": claim.source,
        "Expected": claim.expect,
        "Smaller": claim.scale,
        "Twin": claim.twin,
        "Cost": f"about {claim.minutes:g} minutes on two CPU cores" if claim.minutes else "",
    }
    lines = _entry(f"Claim {claim.number}:", claim.statement)
    for name, value in fields.items():
        lines += _entry(f"{name}:", value) if value else []
    notes = (inspect.getdoc(study) or "").partition("\n\n")[2]
    return "\n".join(lines) + (f"\n\n{notes}\n" if notes else "\n")


def _entry(name: str, value: str) -> list[str]:
    first, rest = name.ljust(11), " " * 11
    return textwrap.wrap(
        value, 100, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )


def summary(claim: rules.Claim, record: Mapping[str, Any]) -> str:
    """Describe the outcome of a claim for a terminal."""
    verdict, results = records.judge(claim, record)
    lines = [f"verdict: {verdict}", *(f"  {rule_lines([result])}" for result in results)]
    for arm, numbers in record["arms"].items():
        rate = f"rate {numbers['rate']:g}, tuned {numbers['tuned']}" if "rate" in numbers else ""
        lines.append(f"  {arm}: {rate} {numbers['seconds']} s")
    return "\n".join([*lines, f"  {arms(claim, record)}"])


# ------------------------------------------------------------------------------------- pictures


def draw(claim: rules.Claim, record: Mapping[str, Any], path: pathlib.Path) -> None:
    """Plot the curves of each arm that has some, and the arms' numbers seed by seed."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    arms = record["arms"]
    metrics = list(dict.fromkeys(t.metric for r in claim.rules for t in r.terms))[:2]
    curves = {name: arm["curves"] for name, arm in arms.items() if arm.get("curves")}
    count = len(metrics) + (2 if curves else 0)
    figure, axes = plt.subplots(
        1, count, figsize=(4.2 * count, 3.8), layout="constrained", squeeze=False
    )
    remaining = iter(axes[0])
    if curves:
        for split, label in (("train", "training loss"), ("valid", "validation loss")):
            _draw_curves(next(remaining), list(arms), curves, split, label)
        axes[0][0].legend(frameon=False, fontsize=8)
    for metric in metrics:
        _draw_seeds(next(remaining), arms, metric)
    verdict, _ = records.judge(claim, record)
    title = f"{claim.number}. {claim.statement}: {verdict}".replace("$", r"\$")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, wrap=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _colour(names: Sequence[str], name: str) -> str:
    return COLOURS[names.index(name) % len(COLOURS)]


def _draw_curves(
    axis: Any, names: Sequence[str], curves: Mapping[str, Any], split: str, label: str
) -> None:
    """Draw the mean loss of each arm and its deviation; where colours repeat, styles differ."""
    for name, arm in curves.items():
        colour, i = _colour(names, name), names.index(name)
        style = ("-", "--", ":")[i // len(COLOURS) % 3]
        steps = arm[f"{split}.step"]
        mean, std = (np.array(arm[f"{split}.loss"][k]) for k in ("mean", "std"))
        axis.plot(steps, mean, label=name, color=colour, linestyle=style, lw=1.6)
        axis.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.15)
    axis.set(xlabel="training steps", ylabel=label)
    axis.grid(alpha=0.25)


def _draw_seeds(axis: Any, arms: Mapping[str, Any], metric: str) -> None:
    """Draw one metric of each arm as a point per seed and a bar at their mean."""
    names = [name for name in arms if metric in arms[name]["metrics"]]
    for i, name in enumerate(names):
        values = np.array([v for v in arms[name]["metrics"][metric] if v is not None])
        colour = _colour(list(arms), name)
        axis.plot(np.full(len(values), i), values, "o", color=colour, alpha=0.6, ms=4)
        if len(values):
            axis.plot([i - 0.25, i + 0.25], [values.mean()] * 2, color=colour, lw=2)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axis.set_ylabel(metric)
    axis.grid(alpha=0.25, axis="y")


def publish(results: pathlib.Path = records.RESULTS, out: pathlib.Path | None = None) -> str:
    """Write RESULTS.md, redraw every picture, and return a line that says so."""
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
