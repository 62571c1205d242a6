"""Decides claims from records: effects, positive controls, verdicts, and verdicts over scales."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.ledger import inference
from experiments.ledger.claims import (
    Claim,
    Control,
    Group,
    Rule,
    Scale,
    Settled,
    as_accuracy,
    small_is_good,
)
from experiments.ledger.inference import Effect
from experiments.ledger.records import Answers
from experiments.runtime.measures import log_error
from experiments.usage import UsageError


class Check(NamedTuple):
    """The outcome of a positive control."""

    label: str
    passed: bool
    estimate: float  # of its contrast, or the largest fall of an arm's loss
    low: float
    high: float


class Judged(NamedTuple):
    """A claim at a scale: its effect, its verdict and what it rests on."""

    claim: Claim
    effect: Effect
    verdict: str
    p: float
    checks: tuple[Check, ...]
    rates: dict[str, float]  # the rate with the best mean over all replicates, by arm
    at_edge: tuple[str, ...]  # arms whose rate is the smallest or the largest that was tried
    diverged: dict[str, int]  # number of diverged runs at that rate, by arm


def judge(group: Group, claim: Claim, record: Mapping[str, Any], answers: Answers) -> Judged:
    """Decide a claim from a record of its group.

    Controls come first: where one is not supported, the claim is "not testable here", whatever its
    own effect is.
    """
    effect = effect_of(claim.rule, record, answers, group.id(claim))
    checks = tuple(_check(control, claim, record, answers) for control in claim.controls)
    decided = inference.verdict(effect, claim.rule.kind, claim.delta)
    if not all(check.passed for check in checks) or not math.isfinite(effect.estimate):
        decided = "not testable here"
    metric_of = {term.arm: term.metric for term in claim.rule.terms}
    picks = {arm: pick(record["arms"][arm], metric) for arm, metric in metric_of.items()}
    tried = {arm: record["arms"][arm]["rates"] for arm in picks}
    several = {arm: rates for arm, rates in tried.items() if len(rates) > 1}
    flags = {arm: record["arms"][arm]["metrics"].get("diverged") for arm in picks}
    return Judged(
        claim,
        effect,
        decided,
        inference.p_value(effect, claim.rule.kind, claim.delta),
        checks,
        {arm: rates[picks[arm]] for arm, rates in tried.items() if rates},
        tuple(arm for arm in several if picks[arm] in (0, len(tried[arm]) - 1)),
        {arm: int(sum(rows[picks[arm]])) for arm, rows in flags.items() if rows},
    )


def effect_of(rule: Rule, record: Mapping[str, Any], answers: Answers, name: str = "") -> Effect:
    """Estimate a rule's contrast; its bootstrap draws follow from the claim's name."""
    arms: dict[str, inference.Arm] = {}
    weights: dict[str, float] = {}
    runs = {term.arm: record["arms"][term.arm] for term in rule.terms}
    # One run scored twice, or arms scored on the same folds, share what a replicate has drawn.
    paired = len(runs) < len(rule.terms) or any("folds" in run for run in runs.values())
    for term in rule.terms:
        key, sign = f"{term.arm}/{term.metric}", -1.0 if small_is_good(term.metric) else 1.0
        scores = sign * scores_of(record["arms"][term.arm], term.arm, term.metric)
        # A rate at which a run has no number cannot be picked.
        usable = np.isfinite(scores).all(1)
        if not usable.any():
            return Effect(math.nan, math.nan, 1.0, (scores.shape[1],))
        bits = answers.get(f"{term.arm}/{as_accuracy(term.metric)}")
        correct = None if bits is None else bits[usable]
        of_share = _good_errors if term.metric.endswith("log_error") else None
        arms[key] = inference.Arm(scores[usable], correct, of_share)
        weights[key] = weights.get(key, 0.0) + sign * term.weight
    return inference.effect(arms, weights, paired=paired, seed=zlib.crc32(name.encode()))


def _good_errors(share: np.ndarray) -> np.ndarray:
    """Return the scores of `log_error`, larger is better, for shares of right answers."""
    return -log_error(share)


def scores_of(arm: Mapping[str, Any], name: str, metric: str) -> np.ndarray:
    """Return a metric of an arm, `[rates, replicates]`; NaN where there is no number."""
    if metric not in arm["metrics"]:
        known = ", ".join(sorted(arm["metrics"]))
        raise UsageError(f"arm {name!r} has no metric {metric!r}; it has {known}.")
    return np.array([[math.nan if v is None else v for v in row] for row in arm["metrics"][metric]])


def pick(arm: Mapping[str, Any], metric: str) -> int:
    """Return the index of the rate with the best mean over all replicates."""
    sign = -1.0 if small_is_good(metric) else 1.0
    means = sign * scores_of(arm, "", metric).mean(1)
    return int(np.where(np.isfinite(means), means, -np.inf).argmax())


def _check(
    control: Control | Settled, claim: Claim, record: Mapping[str, Any], answers: Answers
) -> Check:
    if isinstance(control, Control):
        effect = effect_of(control.rule, record, answers, control.label)
        passed = inference.verdict(effect, control.rule.kind, control.delta) == "supported"
        return Check(control.label, passed, effect.estimate, *effect.interval())
    falls: list[float] = []
    for term in claim.rule.terms:
        arm = record["arms"][term.arm]
        rows = arm["metrics"].get("fall.valid")
        if rows is None:
            raise UsageError(
                f"{claim.title!r}: no run recorded how its validation loss falls; a claim whose "
                "numbers are computed, or that is about speed, writes controls=()."
            )
        values = [v for v in rows[pick(arm, term.metric)] if v is not None]
        falls.append(float(np.median(values)) if values else math.inf)
    largest = max(falls)
    return Check(control.label, largest < control.limit, largest, min(falls), largest)


def enough(group: Group, record: Mapping[str, Any], answers: Answers) -> bool:
    """Whether the replicates suffice: the interval of every claim is narrow.

    Only widths are looked at, never estimates, so that stopping costs no error.
    """
    return all(
        inference.narrow(effect_of(claim.rule, record, answers, group.id(claim)), claim.delta)
        for claim in group.claims
    )


def phrase(found: Sequence[tuple[Scale, str]]) -> str:
    """Say a claim's verdicts over its scales in a phrase.

    Args:
        found: scales, small to large, each with its verdict, "not run" among them.

    Returns:
        For one scale its verdict; else a verdict for each range, as in
        "negligible at 49; supported from 196 on".
    """
    if len(found) == 1:
        return found[0][1]
    runs: list[tuple[str, list[Scale]]] = []
    for scale, decided in found:
        if runs and runs[-1][0] == decided:
            runs[-1][1].append(scale)
        else:
            runs.append((decided, [scale]))
    if len(runs) == 1:
        return runs[0][0] if runs[0][0] == "not run" else f"{runs[0][0]} at all sizes"
    parts = []
    for i, (decided, scales) in enumerate(runs):
        names = (
            f"{scales[0].at:g}" if len(scales) == 1 else f"{scales[0].at:g} to {scales[-1].at:g}"
        )
        last = i == len(runs) - 1 and decided != "not run" and len(scales) > 1
        parts.append(f"{decided} from {scales[0].at:g} on" if last else f"{decided} at {names}")
    return "; ".join(parts)
