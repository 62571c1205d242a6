"""What a replicate is scored by: folds, two scores of one run, gaps at equal training loss."""

from __future__ import annotations

import pathlib
import types

import numpy as np
import pytest
from scipy import stats

from experiments.config.defaults import default
from experiments.ledger import inference, judge, replicates
from experiments.ledger.claims import Claim, Group, Scale, less, more, small_is_good
from experiments.ledger.inference import Arm

ACCURACY = "test.population.accuracy"
DECLARED = Claim("", "t", "s", more("a", "b", ACCURACY), 0.1, "why", "e", controls=())
SCALE = Scale("small", 1, "text")
GROUP = Group(99, "t", "topic", "source", "axis", (SCALE,), ("a", "b"), (DECLARED,), (0.1, 1.0))
SPEAKERS = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])  # some are easier than others


def test_paired_arms_have_the_interval_of_their_differences():
    rng = np.random.default_rng(0)
    common = 5 * rng.normal(size=30)
    a, b = common + 1 + rng.normal(size=30), common + rng.normal(size=30)
    arms = {"a": Arm(a[None]), "b": Arm(b[None])}
    found = inference.effect(arms, {"a": 1.0, "b": -1.0}, paired=True, draws=8000)
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found.interval() == pytest.approx((interval.low, interval.high), abs=0.03)
    assert found.freedom == 29
    apart = inference.effect(arms, {"a": 1.0, "b": -1.0}, draws=500)
    assert apart.error > 3 * found.error
    with pytest.raises(ValueError, match="cannot be paired"):
        inference.effect(
            {"a": Arm(a[None]), "b": Arm(b[None, :20])}, {"a": 1, "b": -1}, paired=True
        )


def gathered(monkeypatch, *, folds):
    """Twelve replicates of two arms, `a` ahead by 0.3, on a speaker or on one test set for all."""
    asked = []

    def get_config(arm, scale):
        config = default()
        config.dataset = "fsdd"
        config.data.length = 40
        config.batch_size = 50 if arm == "a" else 60
        return config

    def run_member(config, folder):
        n, fold = config.seed, config.data.fold
        score = 0.3 * (config.batch_size == 50) + 0.01 * (n % 2) + SPEAKERS[fold - 1] * bool(fold)
        values = {ACCURACY: score - 0.05 * (config.optim.learning_rate < 1), "diverged": 0.0}
        return {"metrics": values, "curves": {}, "seconds": 1.0}

    def measure(study, config, folder, wanted, path):
        asked.append(config.data.fold)
        path.parent.mkdir(parents=True)
        np.savez(path, seconds=0.0, **{f"answers/{m}": np.ones(300, bool) for m in wanted})

    monkeypatch.setattr(replicates.members, "run_member", run_member)
    monkeypatch.setattr(replicates, "_measure_finished", measure)
    monkeypatch.setattr(replicates.registry, "config_hash", lambda study, scale: "hash")
    study = types.SimpleNamespace(GROUP=GROUP, get_config=get_config)
    if folds:

        def replicate(config, n):
            config.data.fold = 1 + (n - 1) % 6
            return config

        study.replicate = replicate
    return study, asked


def test_replicates_on_folds_keep_no_answers_and_are_resampled_together(monkeypatch, tmp_path):
    study, asked = gathered(monkeypatch, folds=True)
    arms, answers = replicates.gather(study, SCALE, 12, tmp_path)
    assert answers == {} and asked == []
    assert arms["a"]["folds"] == arms["b"]["folds"] == [1, 2, 3, 4, 5, 6] * 2
    found = judge.judge(GROUP, DECLARED, {"arms": arms}, answers)
    assert found.verdict == "supported"
    assert found.effect.estimate == pytest.approx(0.3)
    assert found.effect.half_width() < 0.01  # the speakers are the same for both arms


def test_replicates_on_one_test_set_keep_their_answers(monkeypatch, tmp_path):
    study, asked = gathered(monkeypatch, folds=False)
    arms, answers = replicates.gather(study, SCALE, 4, pathlib.Path(tmp_path))
    assert set(asked) == {0} and "folds" not in arms["a"]
    assert answers[f"a/{ACCURACY}"].shape == (2, 4, 300)


def test_two_scores_of_one_run_are_resampled_together():
    rng = np.random.default_rng(1)
    common = rng.normal(size=16)
    metrics = {"x": [(common + 1).tolist()], "y": [common.tolist()]}
    rule = more("a", "a", "x", other="y")
    found = judge.effect_of(rule, {"arms": {"a": {"metrics": metrics}}}, {})
    assert found.estimate == pytest.approx(1.0) and found.error < 0.01


def test_the_gap_at_a_training_loss_is_between_the_rows():
    curves = {
        "train.step": [10, 20, 30, 40],
        "train.loss": [1.0, 0.6, 0.2, 0.3],
        "valid.step": [20, 40],
        "valid.loss": [0.8, 1.2],
    }
    # 0.3 is reached at step 27.5, where the validation loss is 0.8 + 0.4 * 7.5 / 20
    assert replicates.gap_at(curves, 0.3) == pytest.approx(0.95 - 0.3)
    for level in (0.1, 1.0):  # never, and in the first row already
        assert np.isnan(replicates.gap_at(curves, level))
    assert np.isnan(replicates.gap_at({}, 0.3))  # a diverged run
    assert small_is_good("gap.at_0.3") and small_is_good("bits.population.100")
    assert small_is_good("test.population.log_error")


def test_a_label_names_both_metrics_where_they_differ():
    assert less("a", "a", "bits.x", other="bits.y").label == "a bits.y − a bits.x"
    assert more("a", "b", "m", other="n").label == "a m − b n"
    assert less("a", "b", "loss").label == "b − a, loss"
