"""Tests the protocol on itself: an arm against itself, drawn a thousand times from one pool.

From the replicates of one arm two "arms" of equal size are drawn without replacement, so that
nothing differs between them but what a replicate redraws. Both are tuned and judged like any two
arms. Whatever verdict says that they differ is false.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.ledger import inference, judge, registry
from experiments.ledger.claims import Scale, contrast, small_is_good
from experiments.ledger.records import Answers

FALSE = ("supported", "reversed")
GROUP, ARM, SCALE = 24, "none", "mnist5k"  # whose config and rates the pool has
REPLICATES = 64
# Judged by the course of training, and by right answers on the test set.
METRICS = {"area.train": 0.05, "test.population.accuracy": 0.01}  # and delta


def pool() -> tuple[types.ModuleType, Scale]:
    """Return what `experiments.ledger.replicates` trains: one arm, at every rate of its group."""
    study = registry.module(GROUP)
    rules = [contrast(metric, (1.0, ARM, metric)) for metric in METRICS]
    claims = tuple(
        dataclasses.replace(study.GROUP.claims[0], letter=letter, rule=rule, controls=())
        for letter, rule in zip("ab", rules, strict=True)
    )
    group = dataclasses.replace(study.GROUP, arms=(ARM,), claims=claims)
    alone = types.ModuleType(f"{study.__name__}_alone")
    vars(alone).update(GROUP=group, get_config=study.get_config)
    return alone, group.scale(SCALE)


def false_verdicts(
    record: Mapping[str, Any],
    answers: Answers,
    arm: str,
    metric: str,
    delta: float,
    *,
    replicates: int = 16,
    times: int = 1000,
    draws: int = 400,
    seed: int = 0,
) -> dict[str, float]:
    """Return the share of each verdict, and of intervals that leave 0 out.

    Args:
        record: a record of the pool: its arm has twice as many replicates as are drawn, or more.
        answers: its answers.
        arm: the arm that plays both.
        metric: what is judged.
        delta: the smallest effect that matters.
        replicates: of each of the two.
        times: number of pairs.
        draws: bootstrap draws for each.
        seed: of the pairs.

    Returns:
        `{"supported": …, "reversed": …, "negligible": …, "inconclusive": …, "excludes 0": …}`,
        the first two being false.
    """
    rng = np.random.default_rng(seed)
    sign = -1.0 if small_is_good(metric) else 1.0
    scores = sign * judge.scores_of(record["arms"][arm], arm, metric)
    bits = answers.get(f"{arm}/{metric}")
    usable = np.isfinite(scores).all(1)
    if scores.shape[1] < 2 * replicates:
        raise ValueError(
            f"arm {arm!r} has {scores.shape[1]} replicates; two arms of {replicates} need "
            f"{2 * replicates}"
        )
    # The draws of test examples are made once, for all pairs: [draws, settings, replicates].
    drawn = None
    if bits is not None:
        picks = inference.draw_examples(bits.shape[2], draws, rng)
        drawn = sign * inference.scores_of_draws(bits, picks)
    shares = dict.fromkeys(("supported", "reversed", "negligible", "inconclusive", "excludes 0"), 0)
    for i in range(times):
        order = rng.permutation(scores.shape[1])
        halves = order[:replicates], order[replicates : 2 * replicates]
        arms = {
            name: inference.Arm(
                scores[usable][:, half],
                drawn=None if drawn is None else drawn[:, usable][:, :, half],
            )
            for name, half in zip("ab", halves, strict=True)
        }
        found = inference.effect(arms, {"a": 1.0, "b": -1.0}, draws=draws, seed=i)
        low, high = found.interval()
        shares[inference.verdict(found, "more", delta)] += 1
        shares["excludes 0"] += low > 0 or high < 0
    return {name: count / times for name, count in shares.items()}
