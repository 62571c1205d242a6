"""Runs trained side by side: the numbers and files of runs alone, resumed to the bit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from etils import epath

from experiments import evaluate, sweep, tasks
from experiments.config import defaults, validate
from experiments.data import batches, datasets, splits
from experiments.ledger import registry
from experiments.runtime import curves, exits, group, members, parallel, run, step, together
from experiments.runtime.checkpoints import Checkpoints
from experiments.tasks.sequence import SequenceClassifier
from experiments.usage import UsageError
from normjax import testing
from tests._support.processes import compare, rows
from tests.experiments.conftest import make_tiny

SETTINGS = {"steps": 20, "log_every": 5, "eval_every": 10, "checkpoint_every": 4, "devices": 1}


def small(**changes):
    """Make a config of an MLP with batch norm and dropout, which compiles in a second."""
    config = defaults.default()
    config.update(task="image", name="mlp", batch_size=16, eval_batch_size=90, **SETTINGS | changes)
    config.data.update(layout="images", side=4)
    model = {"hidden": 6, "depth": 1, "activation": "relu", "dropout": 0.1}
    model |= {"norm_dense": {"name": "batch_norm"}}
    config.model = ml_collections.ConfigDict(model)
    config.population.batch_size = 720
    return config


def member(seed, rate, make=small, **changes):
    config = make(seed=seed, **changes)
    config.optim.learning_rate = rate
    return config


PAIR = ((0, 0.01), (1, 0.001))


@contextlib.contextmanager
def numerics():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two runs trained side by side to the end, which several tests look at."""
    folder = tmp_path_factory.mktemp("whole")
    with numerics():
        finals = together.train_together([member(*m) for m in PAIR], [folder / "0", folder / "1"])
    return folder, finals


class Stopping:
    """The order of a run, with a signal before one of its steps."""

    at, signal, real = 0, signal.SIGINT, staticmethod(batches.batches)

    def __init__(self, *args):
        self.inner, self.count = self.real(*args), 0

    def __next__(self):
        self.count += 1
        if self.count == self.at:
            signal.raise_signal(self.signal)
        return next(self.inner)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The same two runs, stopped by Ctrl-C at step 13, after the checkpoint of step 12."""
    monkeypatch.setattr(Stopping, "at", 13)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "batches", Stopping)
        with pytest.raises(exits.Interrupted, match="stopped at step 13, checkpoint written"):
            together.train_together([member(*m) for m in PAIR], [tmp_path / "0", tmp_path / "1"])
    return tmp_path


def state(folder, config):
    """The last checkpoint of a run."""
    checkpoints = Checkpoints(folder, write=False)
    try:
        plain = validate.check(config)
        task = tasks.build(plain, datasets.load_config_data(plain))
        return checkpoints.restore(run.start(task, step.optimizer(plain["optim"]), plain)).run
    finally:
        checkpoints.close()


def recurrent(**changes):
    """A BN-LSTM with noise on its initial state, four pixels a sequence."""
    config = make_tiny("bn_lstm", **SETTINGS | changes)
    config.data.side, config.eval_batch_size = 2, 90
    return config


@pytest.mark.slow
@pytest.mark.parametrize("make", [small, recurrent])
def test_members_have_the_numbers_of_runs_alone(make, tmp_path, monkeypatch):
    """In float64, after 20 steps: rows, scores, parameters, statistics and optimizer."""

    def in_double(*args):
        return jax.tree.map(
            lambda x: x.astype(jnp.float64) if getattr(x, "dtype", None) == jnp.float32 else x,
            step.start(*args),
        )

    def inputs(self, params, examples, weight):
        x, lengths = real(self, params, examples, weight)
        return x.astype(jnp.float64), lengths

    real = SequenceClassifier.inputs
    monkeypatch.setattr(SequenceClassifier, "inputs", inputs)  # a layer computes in x's dtype
    for module in (run, group):
        monkeypatch.setattr(module, "start", in_double)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    configs, alone = [member(*m, make) for m in PAIR], tmp_path / "alone"
    if make is recurrent:
        configs[0].gamma = 1.0  # the other's is 0.1
    with jax.enable_x64(True):
        finals = together.train_together(configs, [tmp_path / "0", tmp_path / "1"])
        for i, config in enumerate(configs):
            final = run.train(config, alone / str(i))
            for own, there in zip(rows(tmp_path / str(i)), rows(alone / str(i)), strict=True):
                assert own.pop("split") == there.pop("split")
                jax.tree.map(close, own, there)
            for key in ("valid", "test", "best_step", "parameters"):
                jax.tree.map(close, finals[i][key], final[key])
            own, there = state(tmp_path / str(i), config), state(alone / str(i), config)
            assert own["now"]["params"]["head"]["kernel"].dtype == np.float64
            for key in ("params", "norm", "opt", "step", "window"):
                jax.tree.map(close, own["now"][key], there["now"][key])
            assert (own["now"]["key"] == there["now"]["key"]).all()
            jax.tree.map(close, own["best"], there["best"])
    assert finals[0]["test"] != finals[1]["test"]


@pytest.mark.slow
def test_members_leave_what_a_run_alone_leaves(whole):
    """And nothing of the group: its checkpoint is in pieces, one in each workdir."""
    folder, finals = whole
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1"]
    for i, final in enumerate(finals):
        where = folder / str(i)
        names = {"config.json", "metrics.jsonl", "tensorboard", "checkpoints", "final.json", "lock"}
        assert {path.name for path in where.iterdir()} == names
        assert json.loads((where / "final.json").read_text()) == final
        assert json.loads((where / "config.json").read_text())["config"]["seed"] == i
        assert (final["seed"], final["steps"], final["together"]) == (i, 20, 2)
        steps = [(row["split"], row["step"]) for row in rows(where)]
        assert [s for kind, s in steps if kind == "train"] == [5, 10, 15, 20]
        assert [s for kind, s in steps if kind == "valid"] == [10, 20]
        scored = evaluate.evaluate(where, split="test", stats="running")
        assert scored["loss"] == pytest.approx(final["test"]["running"]["loss"], rel=1e-5)
        assert members.run_metrics(final, epath.Path(where))["metrics"]["diverged"] == 0
        assert members.load_finished(member(*PAIR[i]), epath.Path(where)).params
    assert len(curves.find([folder])) == 2


def test_finished_members_are_read(whole, monkeypatch):
    folder, finals = whole
    monkeypatch.setattr(together, "Group", None)
    again = together.train_together([member(*m) for m in PAIR], [folder / "0", folder / "1"])
    assert again == finals


def test_stopped_members_continue_to_the_bit(whole, stopped):
    """Their one checkpoint is beside their workdirs, which have none until the end."""
    (where,) = stopped.glob("together-*")
    assert (where / "checkpoints" / "13").is_dir()
    assert not [path for i in "01" for path in (stopped / i).glob("checkpoints")]
    together.train_together([member(*m) for m in PAIR], [stopped / "0", stopped / "1"])
    for i in "01":
        compare(stopped / i, whole[0] / i)
    assert not where.exists()


@pytest.fixture
def arms(tmp_path):
    """The same two runs with initial scales of 0.1 and 1, which is the usual one."""
    configs = [member(*m) for m in PAIR]
    for config, name, scale in zip(configs, "ab", (0.1, 1.0), strict=True):
        config.name, config.model.norm_dense.scale_init = name, scale
    return configs, [tmp_path / "a" / "0", tmp_path / "b" / "0"]


def test_arms_that_start_from_other_scales_are_one_program(whole, arms, tmp_path, monkeypatch):
    """Their group is beside their folders; stopped, it continues for the run of one arm."""
    configs, folders = arms
    runs = list(zip(configs, map(epath.Path, folders), strict=True))
    assert members.groups(runs, 2) == [[0, 1]] and members.groups(runs, 1) == [[0], [1]]
    monkeypatch.setattr(Stopping, "at", 13)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "batches", Stopping)
        with pytest.raises(exits.Interrupted, match="stopped at step 13"):
            together.train_together(configs, folders)
    (where,) = tmp_path.glob("together-*")
    assert (where / "checkpoints" / "13").is_dir()
    assert json.loads((folders[0] / "group.json").read_text()) == {"group": f"../{where.name}"}
    assert members.groups(runs, 1) == [[0, 1]]  # begun as one
    monkeypatch.chdir(tmp_path / "b")
    results = dict(members.run_members([(configs[1], epath.Path("0"))]))
    assert results[0]["metrics"]["diverged"] == 0
    compare(folders[1], whole[0] / "1")
    final = json.loads((folders[0] / "final.json").read_text())
    assert (final["name"], final["config"]["model"]["norm_dense"]["scale_init"]) == ("a", 0.1)
    assert rows(folders[0])[0]["loss"] != rows(whole[0] / "0")[0]["loss"]
    assert not where.exists() and members.groups(runs, 2) == []
    assert not [folder for folder in folders if (folder / "group.json").exists()]


def test_no_step_reads_an_initial_scale():
    """Of any norm, and of a whole training step: the same program from 0.1 as from 1."""

    def program(function, *args):
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(function)(*args)))

    def of_norm(norm, x):
        params, norm_state = jax.eval_shape(lambda: norm.init(x.shape, key=jax.random.key(0)))
        return program(functools.partial(norm.apply, stats="batch"), params, norm_state, x)

    samples = {s.norm.factory: s for s in testing.SAMPLES if hasattr(s.norm, "scale_init")}
    for sample in samples.values():
        x = jax.ShapeDtypeStruct(sample.shape, jnp.float32)
        one, other = (dataclasses.replace(sample.norm, scale_init=s) for s in (0.1, 1.0))
        assert of_norm(one, x) == of_norm(other, x), sample.name
    assert len(samples) > 10
    whole_steps = set()
    for gamma in (0.1, 1.0):
        config = recurrent()
        config.gamma = gamma
        config = validate.check(config)
        dataset = datasets.load_config_data(config)
        task, tx = tasks.build(config, dataset), step.optimizer(config["optim"])
        state = jax.eval_shape(lambda t=task, x=tx, c=config: step.start(t, x, c))["now"]
        update = functools.partial(step.update, task=task, optim=step.static(config["optim"])[0])
        args = (state, dataset.train, np.arange(16), None, np.float32(0.1))
        whole_steps.add(program(update, *args))
    assert len(whole_steps) == 1 and "dot_general" in whole_steps.pop()


def test_what_a_group_of_an_earlier_version_listed_is_enough(arms, tmp_path):
    """Its members had one initial scale, that of their config."""
    config = validate.check(arms[0][0])
    (line,) = together.listed([config], ["0"])
    assert line["values"].pop("model.norm_dense.scale_init") == 0.1
    (own,) = together.load_members(config, epath.Path(tmp_path), [line])
    assert own.config == config and own.workdir == tmp_path / "0"
    scales = [task.layers[0].norm.scale_init for task in (own.own_task, own.task)]
    assert scales == [0.1, 1.0]


def test_a_group_continues_whole_when_one_member_is_asked_for(whole, stopped):
    """The other one is trained along with it; the program, and so each bit, is the same."""
    (final,) = together.train_together([member(*PAIR[1])], [stopped / "1"])
    assert final["seed"] == 1
    for i in "01":
        compare(stopped / i, whole[0] / i)


def test_final_scores_are_those_of_members_alone():
    """Of three members, whose population statistics are estimated for two at a time."""
    config = validate.check(small())
    config["population"]["batch_size"] = 135
    dataset = datasets.load_config_data(config).on_device()
    task, sizes = tasks.build(config, dataset), {"train": 270, "valid": 180, "test": 90}
    data = {k: jax.tree.map(lambda x, n=n: x[:n], getattr(dataset, k)) for k, n in sizes.items()}
    keys = jax.random.split(jax.random.key(0), 3)
    best = dict(zip(("params", "norm"), jax.vmap(task.init)(keys), strict=True))
    found = step.final_scores_members(
        best, data, sizes, task=task, config=config, members=parallel.Members()
    )
    for i, own in enumerate(found):
        alone = jax.tree.map(lambda x, i=i: x[i], best)
        expected = step.final_scores(alone, dataset._replace(**data), task, config)
        assert expected["test"]["population"] != expected["test"]["running"]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), own, expected)
    assert found[0] != found[1]


def test_a_group_killed_at_its_end_finishes(whole, tmp_path, monkeypatch):
    """One member has its result, the other has none yet."""
    real, calls = group.Group.write_result, []

    def dying(self, i, scores):
        calls.append(i)
        if i == 1:
            raise RuntimeError("killed")
        return real(self, i, scores)

    folders = [tmp_path / "0", tmp_path / "1"]
    monkeypatch.setattr(group.Group, "write_result", dying)
    with pytest.raises(RuntimeError, match="killed"):
        together.train_together([member(*m) for m in PAIR], folders)
    assert calls == [0, 1] and not (folders[1] / "final.json").exists()
    monkeypatch.setattr(group.Group, "write_result", real)
    finals = together.train_together([member(*m) for m in PAIR], folders)
    assert [final["seed"] for final in finals] == [0, 1]
    for i in "01":
        compare(tmp_path / i, whole[0] / i)


def test_a_member_that_diverges_leaves_the_others_alone(whole, tmp_path):
    configs = [member(0, 0.01), member(1, 1e20)]
    runs = list(zip(configs, [epath.Path(tmp_path / "0"), epath.Path(tmp_path / "1")], strict=True))
    results = dict(members.run_members(runs, together=2))
    assert results[0]["metrics"]["diverged"] == 0 and results[1]["metrics"]["diverged"] == 1
    message = json.loads((tmp_path / "1" / "diverged.json").read_text())["message"]
    assert "not finite at step" in message and "Not finite first: " in message
    assert "Repeated" not in message
    assert rows(tmp_path / "0") == rows(whole[0] / "0")
    assert dict(members.run_members(runs, together=2))[0] == results[0]


def test_members_that_diverge_in_one_window_are_replayed_once(tmp_path, monkeypatch):
    """From the checkpoint of step 4, each up to the step before its own."""
    at, calls, begun, seen = (7, 6), itertools.count(), [], []

    def diverged_at(self, config, skipped):
        own = at[next(calls) % 2]
        return own if own < self.first + len(self.values["loss"]) else None

    def report(task, now, split, index, weight):
        seen.append((int(now["step"]), list(index)))
        return "Seen."

    begin = group.Group.begin
    monkeypatch.setattr(group.Group, "begin", lambda self: begun.append(self) or begin(self))
    monkeypatch.setattr(group.Window, "diverged_at", diverged_at)
    monkeypatch.setattr(group.nonfinite, "report", report)
    configs, folders = [member(*m) for m in PAIR], [tmp_path / "0", tmp_path / "1"]
    ends = together.train_together(configs, folders)
    for i, end in enumerate(ends):
        assert f"not finite at step {at[i]}; step 4 is kept in {folders[i]}. Seen." in str(end)
        assert [row["step"] for row in rows(folders[i])] == [5]
        assert int(state(folders[i], configs[i])["now"]["step"]) == 4
    assert len(begun) == 2  # at the start, and for both
    plain = validate.check(configs[0])
    size = splits.size(datasets.load_config_data(plain).train)
    orders = [batches.batches(size, 16, seed, plain["data"]["shuffle"]) for seed in (0, 1)]
    steps = [[list(np.asarray(next(order))) for _ in range(7)] for order in orders]
    assert seen == [(5, steps[1][5]), (6, steps[0][6])]


@pytest.mark.slow
def test_members_leave_their_group(whole, stopped, capsys):
    """One that is trained alone starts again; the group goes on without touching it."""
    alone = run.train(member(*PAIR[0]), stopped / "0")
    out = capsys.readouterr().out
    assert "was begun together with others" in out and "from scratch" in out
    before = rows(stopped / "0")
    (final,) = together.train_together([member(*PAIR[1])], [stopped / "1"])
    compare(stopped / "1", whole[0] / "1")
    assert final["together"] == 2 and "together" not in alone
    assert rows(stopped / "0") == before


@pytest.mark.slow
def test_longer_runs_continue_together_from_their_own_checkpoints(whole, tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    for i in "01":
        shutil.copytree(whole[0] / i, tmp_path / i)
    finals = together.train_together([member(*m, steps=24) for m in PAIR], folders)
    for i, final in enumerate(finals):
        assert final["steps"] == 24 and final["together"] == 2
        assert rows(folders[i])[:6] == rows(whole[0] / str(i))
        assert rows(folders[i])[-1]["step"] == 24
    with pytest.raises(UsageError, match=r"config\.steps=22; write --config\.steps=24"):
        together.train_together([member(*m, steps=22) for m in PAIR], folders)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_what_members_may_not_differ_in_is_named(tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    wide = member(*PAIR[1])
    wide.model.hidden = 7
    with pytest.raises(UsageError) as error:
        together.train_together([member(*PAIR[0]), wide], folders)
    assert "config.model.hidden is 6 for one member and 7 for another" in str(error.value)
    assert "write --grid=model.hidden=VALUE,VALUE" in str(error.value)
    pair = [member(*m) for m in PAIR]
    for configs, workdirs, words in (
        (pair, folders[:1], "2 configs for 1 workdirs"),
        (pair, [folders[0], folders[0]], "two members have one workdir"),
        (pair, [folders[0], tmp_path / "a" / "1"], "must be folders of one folder"),
        ([member(*m, resume=str(tmp_path)) for m in PAIR], folders, "write --together=1"),
        ([member(*m, parallel="pmap") for m in PAIR], folders, "--config.parallel=jit"),
    ):
        with pytest.raises(UsageError, match=words):
            together.train_together(configs, workdirs)
    assert not list(tmp_path.iterdir())


def test_several_devices_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "available", jax.devices)
    configs = [member(*m, devices=2) for m in PAIR]
    with pytest.raises(UsageError, match=r"there are 2; write --config\.devices=1"):
        together.train_together(configs, [tmp_path / "0", tmp_path / "1"])


def test_a_plan_puts_together_what_can_be(tmp_path):
    configs, folders = [], []
    for hidden, rate, seed in itertools.product((4, 5), (0.1, 0.2), range(3)):
        configs.append(member(seed, rate))
        configs[-1].model.hidden = hidden
        folders.append(tmp_path / f"{hidden},{rate},{seed}")
    assert together.plan(configs, folders, 4) == [
        [0, 1, 2, 3],
        [4, 5],
        [6, 7, 8, 9],
        [10, 11],
    ]
    folders[1] = tmp_path / "elsewhere" / "1"
    assert together.plan(configs[:3], folders[:3], 8) == [[0, 2], [1]]
    configs[1].model.norm_dense.scale_init = 0.5  # of its own, where the others have the usual one
    assert together.plan(configs[:3], folders[:3], 8) == [[0, 2], [1]]


def test_arms_of_the_recurrent_claims_that_are_one_program(tmp_path):
    gammas = [f"gamma_{gamma}" for gamma in (0.1, 0.3, 0.5, 0.7, 1.0)]
    for number, found in {
        2: [gammas],
        3: [["lstm"], ["bn_lstm"], ["bn_sum_0.1", "bn_sum_1.0"]],
        6: [["none"], ["x_1"], ["h_0.1", "h_1"], ["both_0.1"]],
        8: [["lstm"], ["bn_0.1", "bn_1.0"], ["ln_0.1", "ln_1.0"]],
    }.items():
        study = registry.module(number)
        arms = study.GROUP.arms
        configs = [study.get_config(arm, "pmnist49") for arm in arms]
        groups = together.plan(configs, [tmp_path / arm / "0" for arm in arms], 160)
        assert [[arms[i] for i in group] for group in groups] == found


def test_a_sweep_trains_its_members_together(whole, tmp_path):
    cells = list(sweep.grid(["optim.learning_rate=0.01"]))
    where = epath.Path(tmp_path)
    results = sweep.sweep(small(), where, seeds=2, cells=cells, together=2)
    assert json.loads((tmp_path / "sweep.json").read_text()) == results
    assert [r["seed"] for r in results] == [0, 1]
    assert rows(tmp_path / "optim.learning_rate=0.01,seed=0") == rows(whole[0] / "0")
    told = sweep.table(results, small())
    assert told.startswith("optim.learning_rate=0.01: accuracy valid batch ")
    with pytest.raises(UsageError, match="--together=0 and --workers=1 must be at least 1"):
        sweep.sweep(small(), where, seeds=2, cells=cells, together=0)


def test_a_group_is_cleared_with_its_members(stopped):
    members.clear(stopped)
    assert not list(stopped.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, 2])
def test_members_may_have_data_of_their_own(calls, tmp_path, monkeypatch):
    """As of another permutation; and several steps a call are the same steps."""
    real = datasets.load_config_data

    def permuted(config):
        order = np.random.RandomState(config["permutation_seed"]).permutation(4)
        return real(config).each(lambda split: split._replace(pixels=split.pixels[:, order]))

    monkeypatch.setattr(datasets, "load_config_data", permuted)
    times = {"log_every": 4, "eval_every": 8, "steps": 16, "steps_per_call": calls}
    configs = [member(0, 0.01, permutation_seed=i, **times) for i in (0, 1)]
    together.train_together(configs, [tmp_path / "0", tmp_path / "1"])
    for i, config in enumerate(configs):
        run.train(config, tmp_path / "alone" / str(i))
        for own, there in zip(rows(tmp_path / str(i)), rows(tmp_path / f"alone/{i}"), strict=True):
            assert own.pop("split") == there.pop("split")
            np.testing.assert_allclose(own["loss"], there["loss"], rtol=1e-4)
    assert rows(tmp_path / "0")[0]["loss"] != rows(tmp_path / "1")[0]["loss"]
