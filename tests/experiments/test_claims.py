"""The ledger of claims: declarations, registration, records, RESULTS.md."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import time

import numpy as np
import pytest

from experiments import claim
from experiments.config import validate
from experiments.ledger import records, registry, replicates, summary, table
from experiments.runtime import workdir
from experiments.usage import UsageError

ROOT = pathlib.Path(__file__).parents[2]
NUMBERS = sorted(registry.files())


# ---------------------------------------------------------------------------------- declarations


@pytest.mark.parametrize("number", NUMBERS)
def test_a_group_says_what_a_reader_needs(number):
    study = registry.module(number)
    group, words = study.GROUP, " ".join(table.description(study).split())
    assert words.startswith(f"Claim {number}: {group.title}")
    assert words.endswith(" ".join(registry.notes(study).split()))
    title = study.__doc__.partition("\n")[0]
    assert title.endswith(".") and title.split()[0].endswith("s")  # what it does
    for one in group.claims:
        for said in (one.statement, one.why, one.expect, one.rule.label):
            assert " ".join(said.split()) in words
        assert one.statement not in study.__doc__  # said once
        assert one.change, f"{group.id(one)} does not say what would change our mind"
    if len(group.scales) > 2:  # what the source trains is one of them, or is said beside them
        assert any(scale.of_source or "the source" in scale.text for scale in group.scales)


@pytest.mark.parametrize("number", NUMBERS)
def test_every_arm_at_every_scale_is_a_valid_config(number):
    study = registry.module(number)
    for scale in study.GROUP.scales:
        assert registry.config_hash(study, scale)
        for arm in study.GROUP.arms if registry.trains(study) else ():
            validate.check(study.get_config(arm, scale.name))
            rate = study.GROUP.rates[0] if study.GROUP.rates else None
            config = replicates.config_of(study, scale, arm, rate, 3)
            assert (config.seed, config.data.draw) == (3, 3)


# --------------------------------------------------------------------------------------- records

OWN = '''"""Counts a."""
import jax
from experiments.ledger.claims import Claim, Group, Scale, more

GROUP = Group(
    1, "a and b", "letters", "nobody", "size",
    (Scale("small", 1, "few", replicates=16), Scale("large", 2, "many", replicates=8)),
    ("a", "b"),
    (Claim("", "a is more", "a is more than b", more("a", "b", "m"), 0.1, "half of 0.2", "0.2",
           0.2, ()),),
)
BASE = {"a": 1.0, "b": 0.0}
calls, precisions = [], set()


def measure(arm, seed, scale):
    """Count."""
    calls.append((arm, seed, scale))
    precisions.add(jax.config.jax_default_matmul_precision)
    return {"m": BASE[arm] + 0.5 * (seed % 2), "odd": float("inf")}
'''


def own(folder, source=OWN):
    """The module of a source, which `inspect` can read again."""
    path = folder / f"own_{abs(hash(source))}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    return study


def git(folder, *words):
    return subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@x", *words],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def run(study, tmp_path, scale="small", **options):
    return claim.run(study, study.GROUP.scale(scale), tmp_path, tmp_path / "results", **options)


def test_the_hash_of_a_measured_group_is_of_its_code_and_its_helpers(tmp_path):
    helper = own(tmp_path, "FACTOR = 1\n")
    helper.__name__ = f"{registry.folder.__name__}.helper"

    def hash_of(source, beside=helper):
        study = own(tmp_path, source)
        study.helper = beside
        return registry.config_hash(study, study.GROUP.scales[0])

    usual = hash_of(OWN)
    reworded = OWN.replace("Count.", "Count again.\n\n    At length.")
    reworded = reworded.replace("BASE =", "# a comment\nBASE =")
    assert reworded != OWN and hash_of(reworded) == usual
    assert hash_of(OWN.replace("1.0", "2.0")) != usual  # what the function reads
    assert hash_of(OWN.replace("0.5 *", "0.2 *")) != usual
    other = own(tmp_path, "FACTOR = 2\n")
    other.__name__ = helper.__name__
    assert hash_of(OWN, other) != usual


def test_replicates_are_added_until_the_interval_is_narrow_or_the_budget_is_spent(tmp_path):
    study = own(tmp_path)
    record = run(study, tmp_path, draft=True)
    assert record["replicates"] == 16  # never narrow: half of the replicates are half a unit apart
    assert study.calls[0] == ("a", 1, "small")
    assert study.precisions == {"highest"}  # on a GPU too, where JAX's default is TF32
    path = records.path_of(1, "small", tmp_path / "results")
    assert json.loads(path.read_text()) == record
    assert record["arms"]["a"]["metrics"]["odd"] == [[None] * 16]
    command = "python -m experiments.claim 1 --run --scale=small --replicates=16"
    assert record["command"] == command
    before = len(study.calls)
    run(study, tmp_path, draft=True)
    assert len(study.calls) == before  # what has enough is not run again
    assert run(study, tmp_path, draft=True, limit=24)["replicates"] == 24
    narrow = own(tmp_path, OWN.replace("0.5 *", "0.01 *"))
    assert run(narrow, tmp_path, "large", draft=True)["replicates"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("half of 0.2", "half of 0.3"), "claim 1 was changed after its runs"),
        (("a is more than b", "b is more than a"), "claim 1 was changed after its runs"),
        (("0.1, ", "0.01, "), "claim 1 was changed after its runs"),
        (("nobody", "somebody"), "claim 1 was changed after its runs"),
        (('Claim("",', 'Claim("a",'), "claim 1a was added after the runs of .*a group of its own"),
        (("few", "fewer"), "the config of claim 1 was changed"),
        (("1.0", "2.0"), "the config of claim 1 was changed"),
    ],
)
def test_a_record_of_something_else_is_refused(tmp_path, change, message):
    run(own(tmp_path), tmp_path, draft=True, limit=8)
    changed = own(tmp_path, OWN.replace(*change))
    for act in (run, lambda study, at, draft=True: table.outcome(study, "", at / "results")):
        with pytest.raises(UsageError, match=message):
            act(changed, tmp_path, draft=True)
    same_again = own(tmp_path, OWN.replace("replicates=16", "replicates=32"))
    assert run(same_again, tmp_path, draft=True, limit=8)  # a larger budget changes nothing


def test_a_claim_is_registered_by_a_commit_that_is_older_than_its_record(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    study = own(tmp_path)
    with pytest.raises(UsageError, match=r"is not committed as it is now.*--draft"):
        run(study, tmp_path)
    git(tmp_path, "add", pathlib.Path(study.__file__).name)
    git(tmp_path, "commit", "-qm", "register")
    record = run(study, tmp_path, limit=8)
    path = records.path_of(1, "small", tmp_path / "results")
    assert record["registered"]["commit"] == git(tmp_path, "rev-parse", "HEAD")
    assert registry.check_registration(record, path) == ""
    git(tmp_path, "add", "results")
    git(tmp_path, "commit", "-qm", "run")
    assert registry.check_registration(record, path) == ""
    late = {**record, "registered": {**record["registered"]}}
    late["registered"]["commit"] = git(tmp_path, "rev-parse", "HEAD")
    assert "at once" in registry.check_registration(late, path)
    monkeypatch.setattr(registry, "files", lambda: {1: (pathlib.Path("configs/x/own.py"), "own")})
    monkeypatch.setattr(registry, "module", lambda number: study)
    assert "1 claims" in table.publish(tmp_path / "results", tmp_path / "out")
    path.write_text(json.dumps(late))
    with pytest.raises(UsageError, match="at once; no such record enters the ledger"):
        table.publish(tmp_path / "results", tmp_path / "out")
    other = {**record, "registered": {**record["registered"]}}
    other["registered"]["files"] = dict.fromkeys(record["registered"]["files"], "0" * 40)
    assert "is not in commit" in registry.check_registration(other, path)
    assert "a draft" in registry.check_registration({**record, "registered": None}, path)
    # Withdrawn, registered anew, and run again: the first record's commit is of no account.
    git(tmp_path, "rm", "-rqf", "results")
    file = pathlib.Path(study.__file__)
    file.write_text(file.read_text() + "# changed\n")
    git(tmp_path, "commit", "-qam", "withdraw, and register anew")
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write(path, second := {**record, "registered": registry.register(study)}, {})
    assert registry.check_registration(second, path) == ""
    git(tmp_path, "add", "results")
    git(tmp_path, "commit", "-qm", "run again")
    assert registry.check_registration(second, path) == ""


def test_answers_are_kept_a_bit_each(tmp_path):
    bits = np.random.default_rng(0).random((2, 5, 13)) < 0.5
    path = tmp_path / "1" / "small.json"
    records.write(path, {"a": {"b": [1, 2]}}, {"a/test.population.accuracy": bits})
    assert json.loads(path.read_text()) == {"a": {"b": [1, 2]}}
    (read,) = records.read_answers(path).values()
    assert read.dtype == bool and (read == bits).all()
    assert records.read_answers(tmp_path / "other.json") == {}


def test_a_damaged_record_says_so(tmp_path):
    study = own(tmp_path)
    path = records.path_of(1, "small", tmp_path / "results")
    path.parent.mkdir(parents=True)
    for text in ("", "{}", '{"claims": 1', "[]"):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"small\.json is damaged .*; restore it from git"):
            records.read(study, study.GROUP.scales[0], tmp_path / "results")


# ---------------------------------------------------------------------------------------- training


def test_a_replicate_redraws_the_training_and_validation_sets(tiny):
    from experiments.data import datasets

    config = validate.check(tiny("lstm"))
    draws = [datasets.load("digits", options={**config["data"], "draw": n}) for n in (0, 1, 1, 2)]
    shapes = [tuple(len(s.labels) for s in d[:3]) for d in draws]
    assert len(set(shapes)) == 1  # the same sizes, so one compiled program

    def rows(split):
        return {p.tobytes() for p in np.asarray(split.pixels)}

    for d in draws:
        assert (d.test.pixels == draws[0].test.pixels).all()
    whole = rows(draws[0].train) | rows(draws[0].valid)
    assert rows(draws[1].train) | rows(draws[1].valid) == whole
    assert (draws[1].train.pixels == draws[2].train.pixels).all()
    assert rows(draws[1].valid) not in (rows(draws[0].valid), rows(draws[3].valid))


@pytest.mark.slow
def test_a_trained_group_keeps_every_rate_and_every_answer(tmp_path, tiny, capsys, monkeypatch):
    """Tiny nets, real training: two arms, three rates of which one diverges, four replicates."""
    source = OWN.replace('("a", "b"),', '("3", "4"),').replace(
        'more("a", "b", "m")', 'more("4", "3", "test.population.accuracy")'
    )
    source = source[: source.index("BASE")].replace("0.2, ()),),", "0.2, ()),), (1e-3, 1e-2, 1e20)")
    study = own(tmp_path, source)

    def get_config(arm, scale):
        config = tiny("lstm", steps=4, log_every=2, eval_every=1, checkpoint_every=4)
        config.model.hidden = int(arm)
        config.optim.update(name="sgd", clip_norm=0.0, l2=1e-3)
        return config

    study.get_config = get_config
    study.extra = lambda run: {"width": float(run.task.layer.features_out)}
    record = run(study, tmp_path, draft=True, limit=4)
    answers = records.read_answers(records.path_of(1, "small", tmp_path / "results"))
    metric = "test.population.accuracy"
    for arm in study.GROUP.arms:
        found = record["arms"][arm]
        assert found["rates"] == [1e-3, 1e-2, 1e20]
        assert np.array(found["metrics"]["diverged"]).tolist() == [[0] * 4, [0] * 4, [1] * 4]
        bits, scores = answers[f"{arm}/{metric}"], np.array(found["metrics"][metric])
        assert bits.shape == (3, 4, 180)
        np.testing.assert_allclose(bits[:2].mean(-1), scores[:2], atol=1e-6)
        assert abs(bits[2].mean() - 0.1) < 0.05
        np.testing.assert_allclose(scores[2], 0.1)
        assert len(found["curves"]["valid.loss"][0]) == 4
        assert len(set(found["metrics"]["train.loss"][0])) == 4  # every replicate is another draw
    # As if all runs but one had come home from another machine.
    _, *others = sorted(tmp_path.glob("*/*/config.json"))
    assert len(others) == 23
    for i, path in enumerate(others):
        described = json.loads(path.read_text())
        assert described["began"].startswith(record["date"][:3])
        described["hardware"] |= {"device": "a lent one", "platform": "gpu"}
        described["began"] = "2026-01-01T00:00:00Z"
        if i == 0:
            del described["began"]
        path.write_text(json.dumps(described))
    again = claim.run(  # a stopped claim continues: nothing is trained again
        study, study.GROUP.scale("small"), tmp_path, tmp_path / "again", limit=4, draft=True
    )
    assert again["arms"] == {
        name: {**arm, "seconds": pytest.approx(arm["seconds"], abs=0.2)}
        for name, arm in record["arms"].items()
    }
    assert record["hardware"]["device"] == "cpu"
    assert again["hardware"]["device"] == "a lent one (23 of 24 runs) and cpu (1 of 24 runs)"
    assert again["hardware"]["platform"] == "gpu"
    assert again["measured_on"] == "cpu" and "measured_on" not in record
    assert "runs" not in again  # a draft has no registration
    # Registered when all runs but one had begun, or do not say when they did.
    date = "2026-02-02T00:00:00Z"
    registered = {"commit": "c" * 40, "date": date, "files": {"own": "b"}}
    monkeypatch.setattr(registry, "register", lambda study: registered)
    once_more = claim.run(study, study.GROUP.scale("small"), tmp_path, tmp_path / "late", limit=4)
    assert (once_more["runs"], once_more["older_runs"]) == (24, 23)
    assert "23 of 24 runs do not say that they began later" in table.outcome(
        study, "", tmp_path / "late"
    )
    assert "continues on" not in capsys.readouterr().out  # they have ended


# ----------------------------------------------------------------------------------- what is seen


AGAIN = "run: python -m experiments.report --results"


def test_what_people_read_is_made_from_the_ledger():
    gathered = json.loads((ROOT / "results" / "ledger.json").read_text())
    assert (ROOT / "RESULTS.md").read_text() == table.write(gathered), AGAIN
    assert (ROOT / "results" / "ledger.csv").read_text() == summary.table(gathered), AGAIN
    readme = (ROOT / "README.md").read_text()
    assert table.with_sizes(readme, gathered) == readme and table.by_size(gathered, 1) in readme, (
        AGAIN
    )
    with pytest.raises(UsageError, match=f"no claim 99; .* from 1 to {NUMBERS[-1]}"):
        table.with_sizes("<!-- claims 99 -->\n\n<!-- end -->", gathered)
    assert [group["number"] for group in gathered["groups"]] == NUMBERS, AGAIN
    known = {
        records.path_of(n, scale.name, ROOT / "results" / "claims")
        for n in NUMBERS
        for scale in registry.module(n).GROUP.scales
    }
    assert set((ROOT / "results" / "claims").glob("*/*.json")) <= known


def alike(a, b, where=""):
    """Equal, but for the last digits of numbers."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            alike(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            alike(x, y, f"{where}/{i}")
    elif isinstance(a, float) and isinstance(b, float):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-12), where
    else:
        assert a == b, where


@pytest.mark.slow
def test_the_ledger_is_what_the_records_give(monkeypatch):
    monkeypatch.chdir(ROOT)
    alike(json.loads(pathlib.Path("results/ledger.json").read_text()), summary.ledger())


def test_results_have_short_lines_and_nothing_fails():
    text = (ROOT / "RESULTS.md").read_text()
    assert all(len(line) <= 160 for line in text.splitlines())
    assert "fails" not in text


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "claims").glob("*/*.json")))
def test_every_record_was_registered_before_its_runs(path):
    record = json.loads(path.read_text())
    commit = record["registered"]["commit"]
    known = subprocess.run(["git", "-C", ROOT, "cat-file", "-e", commit], capture_output=True)
    if known.returncode:
        pytest.skip("not a checkout with its whole history")
    assert registry.check_registration(record, path) == ""


def test_words_that_are_changed_later_leave_the_registration_where_it_was(tmp_path):
    git(tmp_path, "init", "-q")
    study = own(tmp_path)
    file = pathlib.Path(study.__file__)

    def commit(text):
        file.write_text(text)
        git(tmp_path, "add", file.name)
        git(tmp_path, "commit", "-qm", "change")
        return git(tmp_path, "rev-parse", "HEAD")

    commit(OWN.replace("1.0", "2.0"))
    first = commit(OWN)
    commit(OWN.replace("Counts a.", "Counts a and finds it.").replace("Count.", "Count again."))
    last = commit(OWN.replace("Counts a.", "Counts a.\n\nAt length.") + "# and why\n")
    found = registry.register(study)
    assert found["commit"] == first != last
    assert found["files"] == {file.name: git(tmp_path, "rev-parse", f"{first}:{file.name}")}
    assert found["date"] <= time.strftime(workdir.BEGAN, time.gmtime())
    changed = commit(OWN.replace("0.5 *", "0.2 *"))
    assert registry.register(study)["commit"] == changed


def test_a_draft_enters_no_ledger(tmp_path, monkeypatch):
    study = own(tmp_path)
    run(study, tmp_path, draft=True, limit=8)
    monkeypatch.setattr(registry, "files", lambda: {1: (pathlib.Path(study.__file__), "own")})
    monkeypatch.setattr(registry, "module", lambda number: study)
    with pytest.raises(UsageError, match="is a draft"):
        summary.ledger(tmp_path / "results")


def test_q_corrects_for_every_claim_and_scale_that_was_tested(tmp_path, monkeypatch):
    study = own(tmp_path)
    monkeypatch.setattr(registry, "files", lambda: {1: (pathlib.Path("configs/x/own.py"), "own")})
    monkeypatch.setattr(registry, "module", lambda number: study)
    monkeypatch.setattr(
        registry, "register", lambda study: {"commit": "c" * 40, "files": {"own": "b"}}
    )
    for scale in ("small", "large"):
        run(study, tmp_path, scale, limit=8)
    gathered = summary.ledger(tmp_path / "results")
    (group,) = gathered["groups"]
    p = [entry["p"] for entry in group["claims"][0]["at"]]
    assert [entry["q"] for entry in group["claims"][0]["at"]] == pytest.approx(
        [2 * p[0], 2 * p[0]], rel=1e-3
    )
    (line,) = [row for row in table.write(gathered).splitlines() if row.startswith("| [1]")]
    assert "supported at all sizes" in line and "+0.2" in line
    assert summary.table(gathered).count("\n") == 3


def test_the_command_shows_and_refuses(tmp_path):
    study = own(tmp_path)
    text = table.outcome(study, "", tmp_path / "results")
    assert text.splitlines()[0].startswith("small: not run; python -m experiments.claim 1 --run")
    run(study, tmp_path, draft=True, limit=8)
    text = table.outcome(study, "", tmp_path / "results")
    assert "small: 8 replicates" in text and "a draft" in text and "1 supported: a − b, m" in text
