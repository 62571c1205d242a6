"""Effects of claims: tuning inside the interval, two-way bootstrap, verdicts, Holm's correction.

An arm is a table of scores, one row a setting (a learning rate) and one column a replicate; a
replicate redraws everything that a run draws. Nothing is tuned beforehand: each bootstrap draw
picks an arm's setting on one half of its replicates, by the metric that is judged, and scores it
on the other half, and the other way round, so the noise of tuning is inside the interval.

    effect = sum of weight * score of each arm at its own setting

Where the scores are shares of right answers on a test set, `correct` holds the answers one by
one, and the draws resample test examples as well, the same for every arm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import stats

DRAWS = 2000
SPLITS = 8  # halvings of the replicates in each draw
VERDICTS = ("supported", "reversed", "negligible", "inconclusive", "not testable here", "not run")
Kind = Literal["more", "same", "not_worse"]


@dataclasses.dataclass(frozen=True)
class Arm:
    """The results of one arm.

    Attributes:
        scores: `[settings, replicates]`, the judged metric, larger is better.
        correct: `[settings, replicates, examples]`, whether each test example was right, where
            the scores are a function of its means; `None` for any other metric.
        of_share: that function of a share of right answers; `None` if the scores are the shares.
        drawn: `[draws, settings, replicates]`, the scores on resampled test examples, where they
            are known already; `correct` is not needed then.
    """

    scores: np.ndarray
    correct: np.ndarray | None = None
    of_share: Callable[[np.ndarray], np.ndarray] | None = None
    drawn: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or self.scores.shape[1] < 4:
            raise ValueError(
                f"scores of shape {self.scores.shape} must be [settings, replicates] with at "
                "least 4 replicates: tuning and scoring need two of each"
            )
        if self.correct is not None and self.correct.shape[:2] != self.scores.shape:
            raise ValueError(
                f"correct of shape {self.correct.shape} does not fit scores of shape "
                f"{self.scores.shape}"
            )


@dataclasses.dataclass(frozen=True)
class Effect:
    """A contrast of arms with its uncertainty, in the units of the metric.

    Attributes:
        estimate: the contrast, each arm at the settings that its tuning halves picked.
        error: its standard error.
        freedom: degrees of freedom of Student's quantiles: Welch's and Satterthwaite's, or those
            of the smallest arm where a setting was chosen.
        replicates: number of replicates of each arm.
    """

    estimate: float
    error: float
    freedom: float
    replicates: tuple[int, ...]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided confidence interval."""
        half = self.half_width(level)
        return self.estimate - half, self.estimate + half

    def half_width(self, level: float = 0.95) -> float:
        """Return half the length of the confidence interval."""
        return float(stats.t.ppf(0.5 + level / 2, self.freedom)) * self.error

    def p_above(self, margin: float = 0.0) -> float:
        """Return the one-sided p-value of an effect above `margin`."""
        if self.error == 0:
            return float(self.estimate <= margin)
        return float(stats.t.sf((self.estimate - margin) / self.error, self.freedom))

    def p_below(self, margin: float = 0.0) -> float:
        """Return the one-sided p-value of an effect below `margin`."""
        return Effect(-self.estimate, self.error, self.freedom, self.replicates).p_above(-margin)


def effect(
    arms: Mapping[str, Arm],
    weights: Mapping[str, float],
    *,
    paired: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> Effect:
    """Estimate a contrast of arms by a two-way bootstrap with tuning inside.

    Args:
        arms: results by name.
        weights: weight of each arm in the contrast, for example `{"bn": 1.0, "none": -1.0}`.
        paired: whether replicate n of one arm belongs to replicate n of the others, because both
            are scores of one run, or have a test set of their own: arms are then resampled
            together.
        draws: number of bootstrap draws.
        seed: of the draws.

    Returns:
        The effect with a standard error that contains the noise of replicates, of the choice of
        settings and, where answers are known one by one, of test examples.
    """
    rng = np.random.default_rng(seed)
    examples = _examples([arms[name] for name in weights])
    picks = None if examples is None else draw_examples(examples, draws, rng)
    estimate, variances, freedoms = 0.0, [], []
    total, counts = np.zeros(draws), None
    sizes = tuple(arms[name].scores.shape[1] for name in weights)
    if paired and len(set(sizes)) > 1:
        raise ValueError(f"arms of {sizes} replicates cannot be paired")
    for name, weight in weights.items():
        arm = arms[name]
        n = arm.scores.shape[1]
        if counts is None or not paired:
            counts = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(float)  # [draws, n]
        drawn = _arm_draws(arm, picks, counts, rng)
        # A resample of n has a variance (n - 1) / n times too small; the choice of a setting
        # spends one more degree of freedom.
        free = n - 1 - (len(arm.scores) > 1)
        spread = np.sqrt(n / free)
        estimate += weight * _cross_fit(arm, rng)
        total += weight * spread * (drawn - drawn.mean())
        variances.append((weight * spread) ** 2 * drawn.var())
        freedoms.append(free)
    error = float(total.std())
    squares = sum(v * v / f for v, f in zip(variances, freedoms, strict=True))
    # Arms that switch between two settings are no normal samples: Welch's sum of degrees would
    # be too many, by which 7 to 8 % of intervals missed, instead of 5.
    tuned = any(len(arms[name].scores) > 1 for name in weights)
    several = squares > 0 and not paired and not tuned
    freedom = float(sum(variances) ** 2 / squares) if several else float(min(freedoms))
    return Effect(float(estimate), error, freedom, sizes)


def _examples(arms: Sequence[Arm]) -> int | None:
    """Number of test examples that all arms share; `None` where their answers are not kept."""
    sizes = {None if arm.correct is None else arm.correct.shape[2] for arm in arms}
    if len(sizes) > 1:
        raise ValueError(f"arms were scored on different numbers of test examples: {sizes}")
    return next(iter(sizes))


def draw_examples(examples: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each bootstrap draw has each test example, `[draws, examples]`."""
    return rng.multinomial(examples, np.full(examples, 1 / examples), size=draws)


def scores_of_draws(correct: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """Return the scores on resampled test examples, `[draws, settings, replicates]`.

    Args:
        correct: `[settings, replicates, examples]`.
        picks: of `draw_examples`.
    """
    examples = correct.shape[2]
    answers = correct.reshape(-1, examples).astype(np.float32)  # [settings * n, examples]
    parts = [
        picks[start : start + 250].astype(np.float32) @ answers.T  # a slice at a time: memory
        for start in range(0, len(picks), 250)
    ]
    return np.concatenate(parts).reshape(-1, *correct.shape[:2]) / examples


def _cross_fit(arm: Arm, rng: np.random.Generator, splits: int = 200) -> float:
    """Score the arm on halves of its replicates at settings picked on the other halves."""
    n = arm.scores.shape[1]
    order = np.argsort(rng.random((splits, n)), axis=1)  # [splits, replicates]
    first = np.zeros((splits, n))
    np.put_along_axis(first, order[:, : n // 2], 1.0, axis=1)
    return float(_score(arm.scores, first, 1 - first).mean())


def _score(scores: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pick the best setting on each half and score it on the other; mean over all replicates.

    Args:
        scores: `[settings, replicates]`, or `[draws, settings, replicates]`.
        first: `[draws, replicates]`, weight of each replicate in the first half.
        second: the same of the second half.

    Returns:
        `[draws]`.
    """

    def totals(weights: np.ndarray) -> np.ndarray:
        return np.einsum("sn,dn->ds" if scores.ndim == 2 else "dsn,dn->ds", scores, weights)

    of_first, of_second = totals(first), totals(second)  # [draws, settings]
    rows = np.arange(len(first))
    scored = of_second[rows, of_first.argmax(1)] + of_first[rows, of_second.argmax(1)]
    # By replicates, not by halves: one setting alone is then the plain bootstrap of a mean.
    return scored / (first.sum(1) + second.sum(1))


def _arm_draws(
    arm: Arm, picks: np.ndarray | None, counts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Bootstrap one arm: `[draws]` scores, each from resampled replicates and examples.

    `counts` says how often each draw has each replicate, `[draws, n]`.
    """
    scores = arm.drawn
    if scores is None and picks is not None and arm.correct is not None:
        scores = scores_of_draws(arm.correct, picks)
        scores = scores if arm.of_share is None else arm.of_share(scores)
    if scores is None:
        scores = arm.scores
    halves = (_halves(counts, rng) for _ in range(SPLITS))
    return sum((_score(scores, *half) for half in halves), np.zeros(len(counts))) / SPLITS


def _halves(counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Split resampled replicates, `[draws, n]` copies of each, in two at random.

    Copies of a replicate go to one half together, so that no setting is scored on the replicates
    that picked it. A half of 8 then has 2.6 of them on average, and can have one: a rate at which
    most runs fail is picked now and then, which makes intervals wide. With copies in both halves
    that is rarer, but 6 to 7 % of intervals, instead of 5, missed where two rates are close.
    """
    draws, n = counts.shape
    half = np.argsort(rng.random((draws, n)), axis=1).argsort(axis=1) < n // 2
    first, second = counts * half, counts * ~half
    empty = (first.sum(1) == 0) | (second.sum(1) == 0)
    first[empty], second[empty] = half[empty].astype(float), (~half[empty]).astype(float)
    return first, second


def verdict(found: Effect, kind: Kind, delta: float) -> str:
    """Decide a rule from an effect and the smallest effect that matters.

    Args:
        found: the effect, positive in the claimed direction.
        kind: `"more"` claims an effect, `"same"` claims that there is none of size `delta`,
            `"not_worse"` that there is no loss of size `delta`.
        delta: smallest effect that matters, positive.

    Returns:
        `"supported"`, `"reversed"`, `"negligible"` or `"inconclusive"`. An effect that is
        negligible is never called supported or reversed, however sure its sign.
    """
    if not delta > 0:
        raise ValueError(f"delta={delta} must be positive: the smallest effect that matters")
    low, high = found.interval(0.95)
    inner = found.interval(0.90)
    inside = -delta < inner[0] and inner[1] < delta
    if kind == "same":
        beyond = low > delta or high < -delta
        return "supported" if inside else "reversed" if beyond else "inconclusive"
    if kind == "not_worse":
        return "supported" if low > -delta else "reversed" if high < -delta else "inconclusive"
    if inside:
        return "negligible"
    if low > 0 and found.estimate >= delta:
        return "supported"
    return "reversed" if high < 0 else "inconclusive"


def p_value(found: Effect, kind: Kind, delta: float) -> float:
    """Return the p-value that Holm's correction takes: of the statement that the rule tests."""
    if kind == "same":
        return max(found.p_above(-delta), found.p_below(delta))
    if kind == "not_worse":
        return found.p_above(-delta)
    return min(1.0, 2 * min(found.p_above(), found.p_below()))


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given."""
    order = np.argsort(p, kind="stable")
    adjusted, largest = np.empty(len(p)), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * float(p[index])))
        adjusted[index] = largest
    return adjusted.tolist()


def narrow(found: Effect, delta: float) -> bool:
    """Whether the interval is at most half of the smallest effect that matters to either side.

    The rule looks at the width alone, never at the estimate, so that stopping costs no error.
    """
    return found.half_width() <= delta / 2
