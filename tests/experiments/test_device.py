"""`experiments.device`: minutes of an accelerator, spent on what the ledger lacks."""

from __future__ import annotations

import functools
import json
import types

import jax
import pytest
from etils import epath

from experiments import claim, device
from experiments.ledger import replicates
from experiments.ledger.claims import Claim, Group, Scale, more
from experiments.usage import UsageError

CLAIM = Claim("", "b is more", "b is more", more("b", "a", "valid.batch.accuracy"), 0.1, "a", "b")


@pytest.fixture
def study(tiny):
    """Two arms, LSTMs of 3 and 4 units with an initial scale each, at two rates."""
    group = Group(
        number=1,
        title="a and b",
        topic="letters",
        source="nobody",
        axis="size",
        scales=(Scale("small", 1, "few"),),
        arms=("a", "b"),
        claims=(CLAIM,),
        rates=(0.01, 0.1),
    )

    def get_config(arm, scale):
        config = tiny("lstm", steps=6, log_every=2, eval_every=3, checkpoint_every=6)
        config.model.hidden = made.sizes[arm]
        scale = {"use_scale": True, "scale_init": {"a": 0.5, "b": 1.0}[arm]}
        config.model.norm_c = {"name": "identity", **scale}
        return config

    made = types.ModuleType("study_of_two_lstms")
    vars(made).update(GROUP=group, get_config=get_config, sizes={"a": 3, "b": 4})
    return made


def runs_of(study, folder):
    return replicates.runs_of(study, study.GROUP.scales[0], 4, folder)


def test_as_many_runs_as_pay(study, tmp_path, monkeypatch):
    seconds = {1: 1.0, 4: 1.2, 8: 2.3}
    monkeypatch.setattr(device, "seconds_a_step", lambda configs: seconds[len(configs)])
    runs = runs_of(study, tmp_path)
    most, taken, rows = device.measure(runs, until=float("inf"))
    assert (most, taken) == (4, 1.2)  # 3.3 runs a second; 8 make 3.5
    assert [row["together"] for row in rows] == [1, 4, 8]
    assert rows[0]["microseconds_a_scan_step"] == pytest.approx(1e6 / 64)  # digits have 64 pixels
    assert {row["arm"] for row in rows} == {"b"}
    assert device.measure(runs, until=0.0)[:2] == (1, 1.0)


@pytest.mark.parametrize("fits", [0, 1])
def test_what_does_not_fit_is_not_tried_again(study, tmp_path, monkeypatch, fits):
    def seconds(configs):
        if len(configs) > fits:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return 1.0

    monkeypatch.setattr(device, "seconds_a_step", seconds)
    run = functools.partial(device.measure, runs_of(study, tmp_path), float("inf"))
    if fits:
        most, _, rows = run()
        assert most == 1 and rows[-1] == {"arm": "b", "together": 4, "out_of_memory": True}
    else:
        with pytest.raises(UsageError, match="does not fit"):
            run()


def test_what_is_asked_for_side_by_side_is_not_measured(study, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(device, "measure", None)
    monkeypatch.setattr(device.replicates, "train", lambda *_, **said: calls.append(said))
    report = device.spend([(study, study.GROUP.scales[0])], epath.Path(tmp_path), 5.0, 4, 6)
    assert calls == [{"together": 6, "free": {}}]  # saved as often as the config says
    (job,) = report["jobs"]
    assert job["together"] == 6 and "measured" not in job


def test_arms_of_one_program_are_planned_as_one_group(study, tmp_path, monkeypatch, capsys):
    """They differ in their initial scale; what is measured gives the minutes of each group."""
    study.sizes["a"] = 4
    seconds = {1: 10.0, 4: 20.0, 16: 40.0}
    monkeypatch.setattr(device, "seconds_a_step", lambda configs: seconds[len(configs)])
    monkeypatch.setattr(device.replicates, "train", lambda *_, **said: None)
    job = (study, study.GROUP.scales[0])
    measured, asked = (
        device.spend([job], epath.Path(tmp_path), 5.0, 4, together)["jobs"][0]["groups"]
        for together in (0, 10)
    )
    assert measured == [{"arms": "a, b", "members": 16, "minutes": 4.0}]  # 6 steps
    assert asked == [{"arms": "a, b", "members": 10}, {"arms": "b", "members": 6}]
    assert "16 runs of a, b, 4.0 minutes" in capsys.readouterr().out
    rows = [{"together": 4, "seconds_a_step": 20.0}, {"together": 16, "seconds_a_step": 40.0}]
    eight = replicates.groups_of(runs_of(study, tmp_path), 8)
    assert [group["minutes"] for group in device.planned(eight, rows)] == [2.7, 2.7]


def test_jobs_are_the_missing_scales_for_accelerators_first(tmp_path):
    jobs = [(s.GROUP.number, scale.name, scale.device) for s, scale in device.missing(tmp_path)]
    assert jobs[0] == (1, "pmnist784", "gpu")
    kinds = [kind for *_, kind in jobs]
    assert kinds == sorted(kinds, reverse=True)
    (study, scale), _ = device.named("1:pmnist196, 2:pmnist49")
    assert (study.GROUP.number, scale.name) == (1, "pmnist196")
    for jobs, message in (("1", "GROUP:SCALE"), ("x:y", "GROUP:SCALE"), ("28:mlp100", "nothing")):
        with pytest.raises(UsageError, match=message):
            device.named(jobs)


@pytest.mark.slow
def test_what_the_time_ends_is_continued_and_makes_a_record(study, tmp_path, monkeypatch):
    """All arms are one program, with one checkpoint while they train."""
    scale, out = study.GROUP.scales[0], epath.Path(tmp_path) / "out"
    study.sizes["a"] = 4
    assert device.seconds_a_step([run.config for run in runs_of(study, tmp_path)[::8]]) > 0
    monkeypatch.setattr(device, "seconds_a_step", lambda configs: 1 / len(configs))
    fresh = epath.Path(tmp_path) / "fresh"
    report = device.spend([(study, scale)], fresh, 5.0, 4)
    assert report["ended"] == "all jobs are trained"
    assert report["jobs"][0]["finished"] == report["jobs"][0]["runs"] == 16
    again = device.spend([(study, scale)], fresh, 5.0, 4)
    assert json.loads((fresh / "device.json").read_text())["calls"] == [report, again]
    finals = {path: path.stat().mtime for path in (fresh / "runs").glob("*/*/final.json")}
    assert len(finals) == 16
    get_config = study.get_config

    def longer(arm, scale):
        config = get_config(arm, scale)
        config.steps = 10**6
        return config

    with monkeypatch.context() as patch:  # what is compiled is compiled: fifteen seconds will do
        patch.setattr(study, "get_config", longer)
        report = device.spend([(study, scale)], out, 0.25, 4)
    assert report["ended"].startswith("the time is over")
    ((job),) = report["jobs"]
    assert job["together"] == 16 and job["finished"] == 0
    ((group, step),) = job["begun"].items()
    assert group.startswith("together-") and 0 < step < 10**6
    record = claim.run(study, scale, fresh / "runs", tmp_path / "results", limit=4, draft=True)
    assert record["replicates"] == 4 and {path: path.stat().mtime for path in finals} == finals
