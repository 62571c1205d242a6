"""The ledger of claims: rules against a reference, records refused, RESULTS.md made of records."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import types

import numpy as np
import pytest

from configs.mlp_cnn import full
from experiments import claim
from experiments.config import validate
from experiments.ledger import records, rules, table
from experiments.ledger.rules import Claim, contrast, less, more, same
from experiments.usage import UsageError

ROOT = pathlib.Path(__file__).parents[2]
RNG = np.random.default_rng(0)


def judged(rule, **arms):
    return rules.decide(rule, {arm: {"m": values} for arm, values in arms.items()})


def test_the_interval_is_that_of_a_paired_t_test():
    from scipy import stats

    a, b = RNG.normal(1.0, 0.2, 7), RNG.normal(0.8, 0.2, 7)
    result = judged(more("a", "b", "m"), a=a, b=b)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose([result.mean - result.half, result.mean + result.half], [low, high])


@pytest.mark.parametrize(
    ("shift", "rule", "verdict"),
    [
        (0.5, more("a", "b", "m", by=0.3), "holds"),
        (0.1, more("a", "b", "m", by=0.3), "fails"),
        (0.3, more("a", "b", "m", by=0.3), "undecided"),
        (-0.5, less("a", "b", "m", by=0.3), "holds"),
        (0.5, less("a", "b", "m"), "fails"),
        (-0.1, more("a", "b", "m", by=-0.3), "holds"),
        (0.1, same("a", "b", "m", within=0.3), "holds"),
        (0.5, same("a", "b", "m", within=0.3), "fails"),
        (-0.5, same("a", "b", "m", within=0.3), "fails"),
        (0.3, same("a", "b", "m", within=0.3), "undecided"),
    ],
)
def test_a_rule_holds_fails_or_decides_nothing(shift, rule, verdict):
    noise = np.array([-0.05, 0.02, 0.04, -0.03, 0.02])  # mean 0
    assert judged(rule, a=shift + noise, b=np.zeros(5)).verdict == verdict


def test_a_contrast_is_a_weighted_sum_paired_by_seed():
    rule = contrast("c", (1, "a", "m"), (-1, "b", "m"), (-1, "c", "m"), (1, "d", "m"))
    a, b, c, d = RNG.normal(size=(4, 5))
    result = judged(rule, a=a, b=b, c=c, d=d)
    np.testing.assert_allclose(result.mean, (a - b - c + d).mean())


def test_what_is_not_finite_or_alone_decides_nothing():
    rule = more("a", "b", "m")
    assert judged(rule, a=[1.0, None, 1.0], b=[0.0, 0.0, 0.0]).verdict == "undecided"
    assert judged(rule, a=[1.0], b=[0.0]).verdict == "undecided"
    with pytest.raises(UsageError, match="no metric 'm'; it has other"):
        rules.decide(rule, {"a": {"other": [1.0]}, "b": {"m": [1.0]}})


def test_a_claim_holds_if_all_rules_do_and_fails_if_one_does():
    def of(*kinds):
        return rules.verdict([rules.Result(more("a", "b", "m"), 0, 0, k) for k in kinds])

    assert of("holds", "holds") == "holds"
    assert of("holds", "undecided") == "undecided"
    assert of("undecided", "fails", "holds") == "fails"
    assert of() == "undecided"


def test_every_claim_is_declared_once_with_what_a_reader_needs():
    numbers = records.files()
    assert sorted(numbers) == list(range(1, 37))
    for number, (path, _) in numbers.items():
        declared = records.module(number).CLAIM
        assert declared.statement and declared.source and declared.expect, path
        if records.runs(records.module(number)):
            assert declared.rules and declared.seeds >= 5 and declared.minutes <= 40, path
            assert declared.minutes > 0, path


@pytest.mark.parametrize("number", sorted(records.files()))
def test_a_claim_is_described_from_its_declaration_and_its_notes(number):
    study = records.module(number)
    words = " ".join(table.description(study).split())
    declared = study.CLAIM
    assert words.startswith(f"Claim {number}: {declared.statement} Source: {declared.source}")
    fields = {"Expected": declared.expect, "Smaller": declared.scale, "Twin": declared.twin}
    for name, value in fields.items():
        assert (f"{name}: {value}" in words) == bool(value)
    assert f"Cost: about {declared.minutes:g} minutes on two CPU cores" in words
    title = study.__doc__.partition("\n")[0]
    assert title.endswith(".") and title.split()[0].endswith("s")  # what it does
    notes = study.__doc__.partition("\n\n")[2]
    assert words.endswith(" ".join(notes.split()))
    assert declared.statement not in study.__doc__  # said once, in CLAIM


@pytest.mark.parametrize("number", sorted(records.files()))
def test_every_arm_is_a_valid_config(number):
    study = records.module(number)
    for arm in study.CLAIM.arms if hasattr(study, "get_config") else ():
        validate.check(study.get_config(arm))
        if "configs/mlp_cnn/full.py" in study.CLAIM.twin:
            whole = validate.check(full.get_config(f"{number}.{arm}"))
            assert (whole["data"]["side"], whole["data"]["train_size"]) == (28, 0)


def test_a_twin_of_no_arm_says_which_there_are():
    for variant, message in (("1.bn", "claims: 13, "), ("13.x", "trains no arm 'x'; none, bn, ln")):
        with pytest.raises(UsageError, match=message):
            full.get_config(variant)


def test_the_ledger_says_how_many_runs_diverged():
    diverged = {"m": [1.0, 0.0], "diverged": [1.0, 0.0]}
    sound = {"m": [1.0, 0.0], "diverged": [0.0, 0.0]}
    declared = Claim(1, "s", "s", "e", ("a", "b"), (more("a", "b", "m"),))
    record = {"arms": {"a": {"metrics": diverged}, "b": {"metrics": sound}}}
    assert table.arms(declared, record).endswith("; diverged: a 1 of 2")
    record["arms"]["a"]["metrics"] = sound
    assert "diverged" not in table.arms(declared, record)
    record["arms"]["a"]["metrics"] = {"m": [1.0, 0.0]}  # computed, not trained
    assert "diverged" not in table.arms(declared, record)


def test_the_ledger_agrees_with_the_records():
    results = ROOT / "results" / "claims"
    assert (ROOT / "RESULTS.md").read_text() == table.write(results), (
        "run: python -m experiments.report --results"
    )
    named = {records.record_path(n, results).name for n in records.files()}
    assert {p.name for p in results.glob("*.json")} <= named
    for number in records.files():
        if records.read(number, results):
            assert records.record_path(number, results).with_suffix(".png").exists()


OWN = '''"""A claim 1 of our own, that is computed."""
from experiments.ledger.rules import Claim, more

CLAIM = Claim(1, "a is more", "nobody", "so it is", ("a", "b"), (more("a", "b", "m"),))
BASE = {"a": 1.0, "b": 0.0}
calls = []


def measure(arm, seed):
    """Count."""
    calls.append((arm, seed))
    return {"m": BASE[arm] + 0.01 * seed, "odd": float("inf")}
'''


def own(folder, source=OWN):
    """The module of a source, which `inspect` can read again."""
    path = folder / f"own_{abs(hash(source))}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    return study


@pytest.fixture
def counted(monkeypatch, tmp_path):
    study = own(tmp_path)
    monkeypatch.setattr(records, "module", lambda number: study)
    return study, tmp_path / "results"


def test_the_hash_of_a_measured_claim_is_of_its_code_and_its_helpers(tmp_path):
    name = f"{records.folder.__name__}.helper"
    helper = own(tmp_path, "FACTOR = 1\n")
    helper.__name__ = name

    def hash_of(source, beside=helper):
        study = own(tmp_path, source)
        study.helper = beside
        return records.config_hash(study)

    usual = hash_of(OWN)
    reworded = OWN.replace("Count.", "Count again.\n\n    At length.")
    reworded = reworded.replace("BASE =", "# a comment\nBASE =")
    assert reworded != OWN and hash_of(reworded) == usual
    assert hash_of(OWN.replace("1.0", "2.0")) != usual  # what the function reads
    assert hash_of(OWN.replace("0.01 *", "0.02 *")) != usual
    other = own(tmp_path, "FACTOR = 2\n")
    other.__name__ = name
    assert hash_of(OWN, other) != usual


def test_a_measured_claim_leaves_a_record_and_a_picture(counted, tmp_path):
    study, results = counted
    record = claim.run(1, tmp_path, results)
    assert study.calls == [(arm, seed) for arm in "ab" for seed in range(1, 6)]
    path = records.record_path(1, results)
    assert json.loads(path.read_text()) == record == records.read(1, results)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert record["arms"]["a"]["metrics"]["odd"] == [None] * 5
    assert record["command"] == "python -m experiments.claim 1"
    assert {"config_hash", "rule_hash", "date", "hardware", "versions"} <= set(record)
    claim.run(1, tmp_path, results)
    assert len(study.calls) == 10  # a record is shown, not study again
    claim.run(1, tmp_path, results, fresh=True)
    assert len(study.calls) == 20
    cells = table.row(1, results)
    assert cells[table.COLUMNS.index("verdict")] == "holds" and len(cells) == len(table.COLUMNS)


def test_a_rule_changed_after_its_runs_is_refused(counted, tmp_path):
    study, results = counted
    claim.run(1, tmp_path, results)
    study.CLAIM = Claim(1, "a", "b", "c", ("a", "b"), (more("a", "b", "m", by=0.5),))
    for act in (lambda: records.read(1, results), lambda: claim.run(1, tmp_path, results)):
        with pytest.raises(UsageError, match=r"the rule of claim 1 .* was changed after its runs"):
            act()
    study.CLAIM = Claim(1, "a", "b", "c", ("a", "b"), (more("a", "b", "m"),), seeds=6)
    with pytest.raises(UsageError, match=r"the config of claim 1 .* was changed after its runs"):
        records.read(1, results)


def test_a_claim_that_is_only_declared_says_so(counted, tmp_path):
    study, results = counted
    study.CLAIM = Claim(1, "a", "b", "c")
    with pytest.raises(UsageError, match="declared, but has no experiment yet"):
        claim.run(1, tmp_path, results)
    assert table.row(1, results)[table.COLUMNS.index("verdict")] == "not run"


@pytest.mark.slow
def test_a_trained_claim_tunes_each_arm_and_pairs_its_seeds(monkeypatch, tmp_path, tiny):
    """Tiny nets, real training: rates tried on seed 0, seeds 1 and 2 at the best."""

    def get_config(arm):
        config = tiny("lstm", steps=4, log_every=2, eval_every=2, checkpoint_every=4)
        config.model.hidden = int(arm)
        config.optim.update(name="sgd", clip_norm=0.0, l2=1e-3)
        return config

    def extra(run):
        return {"width": float(run.task.layer.features_out), "digits": float(run.dataset.classes)}

    declared = Claim(
        1,
        "s",
        "p",
        "e",
        ("3", "4"),
        (more("4", "3", "test.population.accuracy"),),
        rates=(1e-3, 1e-2, 1e20),
        seeds=2,
        tune="area.valid",
    )
    study = types.SimpleNamespace(CLAIM=declared, get_config=get_config, extra=extra)
    monkeypatch.setattr(records, "module", lambda number: study)
    monkeypatch.setattr(records.inspect, "getsource", lambda function: "source")
    record = claim.run(1, tmp_path / "runs", tmp_path / "results")
    for arm in declared.arms:
        tuned_arm = record["arms"][arm]
        assert tuned_arm["rate"] == 1e-2 and tuned_arm["seeds"] == [1, 2]
        assert tuned_arm["metrics"]["diverged"] == [0.0, 0.0]
        assert tuned_arm["metrics"]["width"] == [float(arm)] * 2
        assert tuned_arm["tuned"]["1e+20"] is None  # diverged, though log(10) is not the worst loss
        assert tuned_arm["curves"]["valid.step"] == [2, 4]
        assert len(tuned_arm["curves"]["train.loss"]["mean"]) == 2


def test_a_grid_goes_on_where_its_best_rate_is_an_end(monkeypatch, tmp_path):
    def tuned(score, *rates):
        tried = []

        def member(config, at):
            tried.append(config["optim.learning_rate"])
            lost = float(tried[-1] > 5)
            return {"metrics": {"m": score(tried[-1]), "diverged": lost}, "seconds": 1.0}

        monkeypatch.setattr(claim.members, "with_changes", lambda config, changes: changes)
        monkeypatch.setattr(claim.members, "run_member", member)
        declared = Claim(1, "s", "p", "e", ("a",), rates=rates, tune="m")
        known, best, seconds = claim._tune(declared, None, tmp_path)
        assert seconds == len(tried) == len(known)
        return best, tried

    grid = (0.01, 0.03, 0.1)
    assert tuned(lambda rate: -abs(rate - 0.03), *grid) == (0.03, [*grid])
    assert tuned(lambda rate: -abs(rate - 0.9), *grid) == (1.0, [*grid, 0.3, 1.0, 3.0])
    assert tuned(lambda rate: -rate, *grid) == (0.0003, [*grid, 0.003, 0.001, 0.0003])
    assert tuned(lambda rate: rate, 1.0, 3.0) == (3.0, [1.0, 3.0, 10.0])  # 10 diverges
