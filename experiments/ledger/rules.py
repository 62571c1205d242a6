"""Defines a claim with its arms and rules, and decides the rules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments import usage
from experiments.usage import UsageError

VERDICTS = ("holds", "fails", "undecided", "not run")


class Term(NamedTuple):
    """One arm's metric, with its weight in a contrast."""

    weight: float
    arm: str
    metric: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """A contrast of arms, paired by seed, whose 95 % interval is compared with a margin.

    "more": holds above the margin, fails below it. "same": holds inside (-margin, margin), fails
    outside. An interval that contains a margin decides nothing.
    """

    terms: tuple[Term, ...]
    kind: str
    margin: float
    label: str

    def __post_init__(self) -> None:
        usage.one_of("kind of a rule", self.kind, ("more", "same"))


def _pair(left: str, right: str, metric: str, other: str) -> tuple[Term, ...]:
    return (Term(1.0, left, metric), Term(-1.0, right, other or metric))


def more(left: str, right: str, metric: str, *, by: float = 0.0, other: str = "") -> Rule:
    """`left` is above `right` in a metric (the right arm's `other`, if given) by more than `by`."""
    return Rule(_pair(left, right, metric, other), "more", by, f"{left} - {right}, {metric}")


def less(left: str, right: str, metric: str, *, by: float = 0.0, other: str = "") -> Rule:
    """`left` is below `right` in a metric by more than `by`."""
    return Rule(
        _pair(right, left, other or metric, metric), "more", by, f"{right} - {left}, {metric}"
    )


def same(left: str, right: str, metric: str, *, within: float, other: str = "") -> Rule:
    """Two arms differ in a metric by less than `within`."""
    return Rule(_pair(left, right, metric, other), "same", within, f"{left} - {right}, {metric}")


def contrast(label: str, *terms: tuple[float, str, str], by: float = 0.0) -> Rule:
    """The weighted sum of some arms' metrics is more than `by`."""
    return Rule(tuple(Term(*term) for term in terms), "more", by, label)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of the literature, and the experiment that decides it here.

    Seed 0 picks each arm's learning rate among `rates` by `tune` (a metric's name; losses, areas
    and steps are better small). Seeds 1 to `seeds` are the paired runs that the rules compare.
    """

    number: int
    statement: str
    source: str
    expect: str  # what should be found, if the source is right
    arms: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    rates: tuple[float, ...] = ()
    seeds: int = 5
    minutes: float = 0.0  # about, for all runs, on two CPU cores
    tune: str = "valid.batch.accuracy"
    scale: str = ""  # how the runs here are smaller than the source's
    twin: str = ""  # the config with the protocol of the source

    def __post_init__(self) -> None:
        for rule in self.rules:
            for term in rule.terms:
                usage.one_of(f"arm of a rule of claim {self.number}", term.arm, self.arms)


class Result(NamedTuple):
    """The interval of a rule's contrast, and the verdict that follows."""

    rule: Rule
    mean: float
    half: float  # of the 95 % interval
    verdict: str


def decide(rule: Rule, metrics: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Result:
    """Compare Student's 95 % interval of the contrast over seeds with the margin."""
    from scipy import stats

    columns = []
    for weight, arm, metric in rule.terms:
        if metric not in metrics[arm]:
            known = sorted(metrics[arm])
            raise UsageError(f"arm {arm!r} has no metric {metric!r}; it has {', '.join(known)}.")
        values = [math.nan if v is None else v for v in metrics[arm][metric]]
        columns.append(weight * np.asarray(values, np.float64))
    paired = np.sum(columns, axis=0)
    mean = float(paired.mean())
    if len(paired) < 2 or not np.isfinite(paired).all():
        return Result(rule, mean, math.nan, "undecided")
    half = float(stats.t.ppf(0.975, len(paired) - 1) * paired.std(ddof=1) / math.sqrt(len(paired)))
    low, high = mean - half, mean + half
    if rule.kind == "more":
        holds, fails = low > rule.margin, high < rule.margin
    else:
        holds = -rule.margin < low and high < rule.margin
        fails = high < -rule.margin or low > rule.margin
    return Result(rule, mean, half, "holds" if holds else "fails" if fails else "undecided")


def verdict(results: Sequence[Result]) -> str:
    """Combine the rules of a claim: it holds if all hold, and fails if one fails."""
    kinds = {result.verdict for result in results}
    return "fails" if "fails" in kinds else "holds" if kinds == {"holds"} else "undecided"
