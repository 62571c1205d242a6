"""The protocol of the ledger against textbooks and simulation: intervals, verdicts, Holm, A/A."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from scipy import stats

from experiments import same_arm
from experiments.ledger import inference, records, self_test
from experiments.ledger.inference import Arm, Effect


def arm(rng, replicates, settings=1, mean=0.0, spread=0.0, shared=0.5):
    """Scores whose settings differ by up to `spread`; a replicate shifts all settings alike."""
    drop = np.linspace(0, spread, settings)[:, None]
    common = shared * rng.normal(size=(1, replicates))
    return Arm(mean - drop + common + rng.normal(size=(settings, replicates)))


def test_one_setting_is_welchs_interval():
    """Without tuning the bootstrap is that of a difference of means."""
    rng = np.random.default_rng(0)
    a, b = arm(rng, 40, mean=1.0), arm(rng, 24)
    found = inference.effect({"a": a, "b": b}, {"a": 1.0, "b": -1.0}, draws=8000)
    want = stats.ttest_ind(a.scores[0], b.scores[0], equal_var=False)
    interval = want.confidence_interval(0.95)
    assert found.estimate == pytest.approx(a.scores.mean() - b.scores.mean(), rel=1e-9)
    assert found.interval() == pytest.approx((interval.low, interval.high), abs=0.03)
    assert found.freedom == pytest.approx(want.df, rel=0.1)
    assert inference.p_value(found, "more", 0.1) == pytest.approx(want.pvalue, abs=0.003)


def test_a_contrast_of_four_arms():
    rng = np.random.default_rng(1)
    arms = {name: arm(rng, 30, mean=mean) for name, mean in zip("abcd", (3, 1, 2, 1), strict=True)}
    weights = {"a": 1.0, "b": -1.0, "c": -1.0, "d": 1.0}
    found = inference.effect(arms, weights)
    assert found.estimate == pytest.approx(
        sum(w * arms[name].scores.mean() for name, w in weights.items())
    )
    errors = [arms[name].scores.std(ddof=1) ** 2 / 30 for name in weights]
    assert found.error == pytest.approx(np.sqrt(sum(errors)), rel=0.1)
    assert found.replicates == (30, 30, 30, 30)


def test_a_setting_is_scored_on_replicates_that_did_not_pick_it():
    """Of many equal settings the best looks better than it is; cross-fitting does not."""
    rng = np.random.default_rng(2)
    estimates, naive = [], []
    for seed in range(60):
        lucky = arm(rng, 16, settings=9, shared=0.0)
        estimates.append(inference.effect({"a": lucky}, {"a": 1.0}, draws=50, seed=seed).estimate)
        naive.append(lucky.scores.mean(1).max())
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / np.sqrt(60)
    assert np.mean(naive) > 0.25  # what picking and scoring on the same replicates would claim


def coverage(settings, spread, replicates, simulations, draws=300):
    """Share of false verdicts where both arms are the same."""
    rng = np.random.default_rng(3)
    false = 0
    for seed in range(simulations):
        arms = {name: arm(rng, replicates, settings, spread=spread) for name in "ab"}
        found = inference.effect(arms, {"a": 1.0, "b": -1.0}, draws=draws, seed=seed)
        false += inference.verdict(found, "more", 0.01) in ("supported", "reversed")
    return false / simulations


@pytest.mark.parametrize("settings", [1, 5])
def test_equal_arms_rarely_differ(settings):
    """At most 5 %, with two binomial standard errors of 200 simulations."""
    assert coverage(settings, 0.0, 8, 200) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.slow
@pytest.mark.parametrize("replicates", [8, 16])
@pytest.mark.parametrize(("settings", "spread"), [(1, 0.0), (3, 4.0), (5, 0.0), (5, 1.0)])
def test_a_a(settings, spread, replicates):
    """A thousand pairs of equal arms, tuned inside: at most 5 % false verdicts."""
    rate = coverage(settings, spread, replicates, 1000)
    assert rate <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


def test_test_examples_are_resampled():
    """Two arms that differ on few examples: the examples are the larger source of noise."""
    rng = np.random.default_rng(4)
    easy = rng.random(200) < 0.9
    correct = np.broadcast_to(easy, (1, 12, 200)).copy()
    better = correct.copy()
    better[:, :, ~easy] = rng.random((1, 12, int((~easy).sum()))) < 0.5
    arms = {"a": Arm(better.mean(-1), better), "b": Arm(correct.mean(-1), correct)}
    found = inference.effect(arms, {"a": 1.0, "b": -1.0})
    blind = {name: Arm(value.scores) for name, value in arms.items()}
    without = inference.effect(blind, {"a": 1.0, "b": -1.0})
    assert found.estimate == pytest.approx(without.estimate, abs=1e-12)
    # A share p = 0.05 of 200 examples changes: its binomial error, over and above the replicates'.
    share = found.estimate
    assert found.error > without.error
    assert found.error == pytest.approx(
        np.hypot(without.error, np.sqrt(share * (1 - share) / 200)), rel=0.35
    )


def test_a_function_of_a_share_is_resampled_as_the_share_is():
    """The logarithm of the error: of 1,000 examples 50 are wrong, an error of 0.137."""
    wrong = np.arange(1000) < 50
    correct = np.broadcast_to(~wrong, (1, 8, 1000)).copy()
    scores = -np.log(1 - correct.mean(-1))
    arms = {"a": Arm(scores, correct, lambda share: -np.log(1 - share))}
    found = inference.effect(arms, {"a": 1.0})
    assert found.estimate == pytest.approx(-np.log(0.05))
    # The delta method, and the n - 1 of the replicates, which do not differ here.
    assert found.error == pytest.approx(np.sqrt(0.95 / 50) * np.sqrt(8 / 7), rel=0.1)


# Estimate, standard error, kind, verdict; delta is 1 and the freedom large.
TABLE = [
    (3.0, 0.5, "more", "supported"),
    (1.2, 0.5, "more", "supported"),
    (0.9, 0.4, "more", "inconclusive"),  # above 0, but smaller than what matters
    (3.0, 2.0, "more", "inconclusive"),
    (0.0, 0.3, "more", "negligible"),
    (0.5, 0.1, "more", "negligible"),  # surely above 0 and surely too small to matter
    (-0.5, 0.1, "more", "negligible"),
    (-3.0, 0.5, "more", "reversed"),
    (-1.0, 0.4, "more", "reversed"),
    (0.1, 2.0, "more", "inconclusive"),
    (0.0, 0.3, "same", "supported"),
    (0.8, 0.3, "same", "inconclusive"),
    (2.0, 0.3, "same", "reversed"),
    (-2.0, 0.3, "same", "reversed"),
    (0.0, 0.3, "not_worse", "supported"),
    (-0.5, 0.3, "not_worse", "inconclusive"),
    (-2.0, 0.3, "not_worse", "reversed"),
    (5.0, 0.3, "not_worse", "supported"),
]


@pytest.mark.parametrize(("estimate", "error", "kind", "want"), TABLE)
def test_verdicts(estimate, error, kind, want):
    found = Effect(estimate, error, 1000.0, (64, 64))
    assert inference.verdict(found, kind, 1.0) == want
    assert want in inference.VERDICTS


def test_a_published_effect_is_not_refuted_by_itself():
    """The old rule asked for 1 point where the source has 0.1, and failed the source's number."""
    rng = np.random.default_rng(5)
    verdicts = []
    for seed in range(40):
        arms = {"a": arm(rng, 50, mean=0.1, shared=0), "b": arm(rng, 50, shared=0)}
        found = inference.effect(arms, {"a": 1.0, "b": -1.0}, draws=300, seed=seed)
        verdicts.append(inference.verdict(found, "more", 0.05))
    assert verdicts.count("reversed") <= 2


def test_holm_against_the_definition():
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    # Sorted: 0.005 * 5, 0.01 * 4, 0.03 * 3, 0.04 * 2 (raised to the one before), 0.9.
    assert inference.holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.9])
    assert inference.holm([0.5, 0.6]) == [1.0, 1.0]
    assert inference.holm([]) == []


def test_replicates_stop_by_the_width_alone():
    narrow, wide = Effect(9.0, 0.2, 30.0, (8, 8)), Effect(9.0, 0.6, 30.0, (8, 8))
    assert inference.narrow(narrow, 1.0) and not inference.narrow(wide, 1.0)
    assert inference.narrow(Effect(0.0, 0.2, 30.0, (8, 8)), 1.0)


def test_mistakes_say_what_to_write():
    with pytest.raises(ValueError, match="at least 4 replicates"):
        Arm(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="does not fit"):
        Arm(np.zeros((2, 4)), np.zeros((2, 5, 9), bool))
    with pytest.raises(ValueError, match="must be positive"):
        inference.verdict(Effect(0.0, 1.0, 9.0, (8, 8)), "more", 0.0)
    arms = {"a": Arm(np.zeros((1, 4)), np.zeros((1, 4, 5), bool)), "b": Arm(np.zeros((1, 4)))}
    with pytest.raises(ValueError, match="different numbers of test examples"):
        inference.effect(arms, {"a": 1.0, "b": -1.0})


AA = pathlib.Path(__file__).parents[2] / "results" / "aa.json"


def test_the_protocol_passes_on_runs_that_differ_by_chance():
    """The figures on the ledger's page; the slow test draws them again."""
    if not AA.exists():
        pytest.skip("results/aa.json is absent: python -m experiments.same_arm")
    for case in json.loads(AA.read_text())["cases"]:
        shares = case["shares"]
        assert case["times"] >= 1000
        assert shares["supported"] + shares["reversed"] <= 0.05


@pytest.mark.slow
def test_an_arm_does_not_differ_from_itself():
    """From runs that were really trained, three hundred pairs of 16."""
    path = AA.parent / "aa" / "pool.json"
    if not path.exists():
        pytest.skip("results/aa/pool.json is absent: python -m experiments.same_arm")
    found = same_arm.cases(records.load(path), records.read_answers(path), 300, (16,))
    for case in found:
        shares = case["shares"]
        assert shares["supported"] + shares["reversed"] <= 0.05
        assert shares["excludes 0"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


@pytest.mark.slow
@pytest.mark.parametrize("replicates", [8, 16])
def test_intervals_hold_where_two_settings_are_close(replicates):
    """Means and deviations of a plain network's loss at its two best rates; no arm is better."""
    rng, outside, times = np.random.default_rng(3), 0, 1000
    mean, spread = np.array([[-0.5286], [-0.5055]]), np.array([[0.0154], [0.0555]])
    for seed in range(times):
        arms = {k: Arm(mean + spread * rng.normal(size=(2, replicates))) for k in "ab"}
        found = inference.effect(arms, {"a": 1.0, "b": -1.0}, draws=300, seed=seed)
        low, high = found.interval()
        outside += low > 0 or high < 0
    assert outside / times <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / times)


def test_a_pool_of_runs_that_all_agree_or_are_too_few():
    rng = np.random.default_rng(0)
    scores = rng.normal(0.5, 0.1, (3, 32))
    record = {"arms": {"a": {"metrics": {"m": scores.tolist()}}}}
    shares = self_test.false_verdicts(record, {}, "a", "m", 0.1, times=40, draws=200)
    assert sum(shares[v] for v in ("supported", "reversed", "negligible", "inconclusive")) == 1
    assert shares["supported"] + shares["reversed"] <= 0.05
    with pytest.raises(ValueError, match="two arms of 17 need 34"):
        self_test.false_verdicts(record, {}, "a", "m", 0.1, replicates=17)
