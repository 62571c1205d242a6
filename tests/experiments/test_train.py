from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normjax as nj
from experiments import evaluate, tasks, train
from experiments.data import batches, splits
from experiments.runtime import exits, run, step
from experiments.tasks.sequence import SequenceClassifier
from experiments.usage import UsageError
from tests._support.processes import rows


def scores(final):
    return {k: final[k] for k in ("valid", "test", "best_step", "steps_to_target")}


def test_a_run_leaves_everything_that_a_reader_needs(trained):
    workdir, final = trained
    assert json.loads((workdir / "final.json").read_text()) == final
    assert json.loads((workdir / "config.json").read_text())["config"]["model"]["hidden"] == 4
    assert set(final["versions"]) >= {"python", "jax", "flax", "optax", "normjax"}
    assert set(final["hardware"]) == {"device", "platform", "devices", "cpus"}
    assert set(final["test"]) == set(final["valid"]) == {"population", "batch", "running"}
    steps = [(r["split"], r["step"]) for r in rows(workdir)]
    assert [s for kind, s in steps if kind == "train"] == [5, 10, 15, 20, 24]
    assert [s for kind, s in steps if kind == "valid"] == [10, 20, 24]
    assert list((workdir / "tensorboard").iterdir())


def test_a_finished_run_is_not_run_again(trained, tiny, monkeypatch):
    workdir, final = trained
    monkeypatch.setattr(run, "_Run", None)
    assert train.train(tiny(), workdir) == final


def test_a_stopped_run_resumes_to_the_bit(trained, tiny, tmp_path, monkeypatch):
    """Ctrl-C at step 17: between two logs, two validations and two checkpoints."""
    workdir, final = trained
    real = batches.batches

    class Stopping:
        def __init__(self, *args):
            self.inner, self.count = real(*args), 0

        def __next__(self):
            self.count += 1
            if self.count == 17:
                signal.raise_signal(signal.SIGINT)
            return next(self.inner)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(batches, "batches", Stopping)
    with pytest.raises(exits.Interrupted, match=r"stopped at step 17.*the same command continues"):
        train.train(tiny(), tmp_path / "run")
    monkeypatch.setattr(batches, "batches", real)
    again = train.train(tiny(), tmp_path / "run")
    assert scores(again) == scores(final)
    assert rows(tmp_path / "run") == rows(workdir)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bit(trained, tiny, tmp_path):
    """SIGKILL at any moment; rows past the last checkpoint are cut and come again."""
    workdir = tmp_path / "run"
    long = {"steps": 2000, "checkpoint_every": 20}
    words = [f"--config.{k}={v}" for k, v in {**long, "log_every": 5, "eval_every": 10}.items()]
    words += ["--config.model.hidden=4", "--config.batch_size=16", "--config.devices=1"]
    config = "--config=configs/recurrent_bn/digits.py:bn_lstm"
    child = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", config, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        waited = time.monotonic()
        while not any(row["step"] >= 25 for row in rows(workdir)):
            assert child.poll() is None and time.monotonic() - waited < 100
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    reached = max(row["step"] for row in rows(workdir))
    assert 25 <= reached < 2000
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9999, "split": "train", "lo')  # a torn line
    steps = reached + 10
    train.train(tiny(**{**long, "steps": steps}), workdir)
    train.train(tiny(**{**long, "steps": steps}), tmp_path / "whole")
    assert rows(workdir) == rows(tmp_path / "whole")


def test_resume_continues_another_workdir(trained, tiny, tmp_path):
    workdir, _ = trained
    final = train.train(tiny(resume=str(workdir), steps=26), tmp_path / "on")
    assert final["steps"] == 26
    assert [r["step"] for r in rows(tmp_path / "on") if r["split"] == "train"] == [25, 26]
    with pytest.raises(UsageError, match="does not fit this config's model or optimizer"):
        train.train(tiny("lstm", resume=str(workdir), steps=26), tmp_path / "other")
    with pytest.raises(UsageError, match="holds no checkpoints folder"):
        train.train(tiny(resume=str(tmp_path / "nowhere")), tmp_path / "third")


def test_a_workdir_of_another_config_is_refused(trained, tiny):
    workdir, _ = trained
    with pytest.raises(UsageError) as error:
        train.train(tiny(seed=3, batch_size=17), workdir)
    assert "config.batch_size: 16 there, 17 asked for" in str(error.value)
    assert "config.seed: 0 there, 3 asked for" in str(error.value)
    with pytest.raises(UsageError, match=r"beyond config.steps=20; write --config.steps=24"):
        train.train(tiny(steps=20), workdir)


def test_a_workdir_of_something_else_is_refused(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        train.train(tiny(), tmp_path)
    with pytest.raises(UsageError, match="is a file; name a folder"):
        train.train(tiny(), tmp_path / "thesis.tex")


def test_a_missing_data_set_leaves_no_workdir(tmp_path):
    from configs.recurrent_bn import mnist

    config = mnist.get_config("lstm")
    config.data_dir = str(tmp_path / "data")
    with pytest.raises(UsageError, match=r"python -m experiments\.prepare mnist"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path):
    config = tiny("lstm", checkpoint_every=2, log_every=2)
    config.optim.name = "sgd"
    config.optim.clip_norm = 0.0
    config.optim.learning_rate = 1e20
    config.optim.l2 = 0.03  # parameters then grow until they overflow
    with pytest.raises(exits.Diverged, match=r"not finite at step \d+; .*learning_rate"):
        train.train(config, tmp_path / "run")


@pytest.mark.slow
def test_evaluate_gives_the_numbers_of_the_run(trained):
    workdir, final = trained
    for kind in evaluate.STATS:
        scored = evaluate.evaluate(workdir, split="test", stats=kind)
        assert scored["accuracy"] == final["test"][kind]["accuracy"]
        assert scored["loss"] == final["test"][kind]["loss"]
        assert ("note" in scored) == (kind == "running")
    assert f" had {final['best_step']} updates with decay 0.99, and " in scored["note"]
    assert train.summary(final).endswith(scored["note"])
    assert "how" not in evaluate.evaluate(workdir, split="valid", stats="batch")
    with pytest.raises(UsageError, match="known: test, valid, train"):
        evaluate.evaluate(workdir, split="tests", stats="batch")
    with pytest.raises(UsageError, match="holds no run"):
        evaluate.evaluate(workdir.parent, split="test", stats="batch")


def test_evaluation_does_not_depend_on_padding():
    """Rows of weight 0 enter no sum and no statistic, whatever they hold."""
    layer = nj.recurrent.lstm(3, norm_h=nj.recurrent.per_step(nj.batch_norm(), 6))
    task = SequenceClassifier(layer, classes=4)
    params, state = task.init(jax.random.key(0))
    pixels = jax.random.randint(jax.random.key(1), (5, 6), 0, 255)
    examples = splits.Split(pixels, jnp.arange(5) % 4)
    weight = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])
    padded, moved = task(params, state, tasks.Batch(examples, weight), stats="batch")
    first = tasks.Batch(splits.take(examples, slice(0, 3)))
    whole, expected = task(params, state, first, stats="batch")
    np.testing.assert_allclose(padded.loss, whole.loss, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8)  # means cancel
    jax.tree.map(close, moved, expected)
    assert isinstance(padded, tasks.Scores) and padded.count == whole.count == 3


def test_clipping_comes_before_the_optimizer():
    base = {"learning_rate": 1.0, "decay": 0.9, "momentum": 0.0, "eps": 1e-8, "name": "sgd"}
    base |= {"l2": 0.0, "l1": 0.0}
    grads = {"w": jnp.full((4,), 10.0)}
    for clip, norm in ((1.0, 1.0), (0.0, 20.0)):
        tx = step.optimizer({**base, "clip_norm": clip})
        updates, _ = tx.update(grads, tx.init(grads), grads)
        np.testing.assert_allclose(optax.tree.norm(updates), norm, rtol=1e-6)


def test_a_lstm_has_no_population_statistics_to_estimate(tiny, tmp_path):
    final = train.train(tiny("lstm"), tmp_path / "run")
    assert final["test"]["population"] == final["test"]["batch"] == final["test"]["running"]
    assert os.path.getsize(tmp_path / "run" / "final.json") > 0


@pytest.mark.parametrize("there", [False, True])
def test_a_refused_first_command_leaves_no_workdir(tiny, tmp_path, there, monkeypatch):
    """The corrected command would be refused there, as another config's."""
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    config = tiny("lstm")
    config.data.valid_size = 100_000  # seen when the data are read
    with pytest.raises(UsageError, match="the valid split of digits has 180 examples"):
        train.train(config, folder)
    assert folder.exists() == there
    config.data.valid_size = 0
    with monkeypatch.context() as patch:  # the most that a first command does
        patch.setattr(run._Run, "finish", _refused)
        with pytest.raises(UsageError, match="refused at last"):
            train.train(config, folder)
    assert folder.exists() == there and not list(folder.glob("*"))
    config.model.hidden = 3
    train.train(config, folder)


def _refused(self):
    self.close()
    raise UsageError("refused at last")


def test_a_validation_before_the_first_logged_step_is_reported(tmp_path, tiny, capsys):
    train.train(tiny("lstm", steps=2, log_every=2, eval_every=1, checkpoint_every=2), tmp_path)
    first, second = (row for row in capsys.readouterr().out.splitlines() if "valid accuracy" in row)
    assert "train loss -  valid accuracy" in first and "train loss 2." in second
