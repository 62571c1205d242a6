"""Tests the protocol on itself: an arm against itself, drawn a thousand times from one pool.

From the replicates of one arm two "arms" of equal size are drawn without replacement, so that
nothing differs between them but what a replicate redraws. Both are tuned and judged like any two
arms. Whatever verdict says that they differ is false.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.ledger import inference, judge
from experiments.ledger.claims import small_is_good
from experiments.ledger.records import Answers

FALSE = ("supported", "reversed")
POOLS = ((24, "mnist5k", "none", "area.train"),)  # group, scale, arm, metric


def false_verdicts(
    record: Mapping[str, Any],
    answers: Answers,
    arm: str,
    metric: str,
    delta: float,
    *,
    replicates: int = 0,
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
        replicates: of each of the two; 0: half of the pool.
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
    replicates = replicates or scores.shape[1] // 2
    if scores.shape[1] < 2 * replicates:
        raise ValueError(
            f"arm {arm!r} has {scores.shape[1]} replicates; two arms of {replicates} need "
            f"{2 * replicates}"
        )
    shares = dict.fromkeys(("supported", "reversed", "negligible", "inconclusive", "excludes 0"), 0)
    for i in range(times):
        order = rng.permutation(scores.shape[1])
        halves = order[:replicates], order[replicates : 2 * replicates]
        arms = {
            name: inference.Arm(
                scores[usable][:, half], None if bits is None else bits[usable][:, half]
            )
            for name, half in zip("ab", halves, strict=True)
        }
        found = inference.effect(arms, {"a": 1.0, "b": -1.0}, draws=draws, seed=i)
        low, high = found.interval()
        shares[inference.verdict(found, "more", delta)] += 1
        shares["excludes 0"] += low > 0 or high < 0
    return {name: count / times for name, count in shares.items()}
