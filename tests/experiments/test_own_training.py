"""Whole runs of what users bring and ask for: stopped, resumed, spread over devices, reported."""

from __future__ import annotations

import json
import sys
import textwrap

import jax
import numpy as np
import pytest

from experiments import evaluate
from experiments.config import defaults, validate
from experiments.runtime import accumulate, curves, parallel, step
from experiments.runtime.run import train
from experiments.tasks import Batch
from experiments.usage import UsageError
from tests._support import processes

from .test_models import SMALL, close, make_task
from .test_own_model import LINEN, NNX, written  # noqa: F401

BN = {"name": "batch_norm", "decay": 0.9}
RECIPE = {
    "optim.name": "adamw",
    "optim.weight_decay": 0.01,
    "optim.learning_rate": 0.01,
    "optim.schedule": "cosine",
    "optim.schedule_steps": 24,
    "optim.warmup": 4,
    "optim.label_smoothing": 0.1,
    "optim.ema": 0.9,
    "optim.accumulate": 2,
    "dtype": "bfloat16",
}


def make_config(**changes):
    """A run of 24 steps on digits."""
    config = defaults.default()
    config.task, config.data.layout = "image", "images"
    config.update(batch_size=16, steps=24, log_every=4, eval_every=8, checkpoint_every=8, devices=1)
    config.data.update(train_size=160, valid_size=40, test_size=40)
    model = changes.pop("model")
    config.model = {}
    with config.unlocked():
        config.model = model
        config.update_from_flattened_dict(changes)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linen", "nnx", "resnet"])
def test_a_stopped_run_continues_to_the_bit(kind, written, tmp_path):  # noqa: F811
    """With all of the recipe, and the averaged parameters in its checkpoints."""
    model = {"arch": "resnet", "depth": 8}
    if kind != "resnet":
        text = (LINEN if kind == "linen" else NNX).replace("nnx.Conv(2,", "nnx.Conv(1,")
        model = {"module": written(text), "rate": 0.2}
    model["norm"] = BN
    whole = train(make_config(model=model, **RECIPE), tmp_path / "whole")
    train(make_config(model=model, **RECIPE, steps=16), tmp_path / "parts")
    parts = train(make_config(model=model, **RECIPE), tmp_path / "parts")
    assert processes.rows(tmp_path / "whole") == processes.rows(tmp_path / "parts")
    for split in ("valid", "test"):
        assert whole[split] == parts[split]
    scores = evaluate.evaluate(tmp_path / "parts", split="test", stats="population")
    assert scores["accuracy"] == whole["test"]["population"]["accuracy"]
    longer = make_config(model=model, **{**RECIPE, "optim.schedule_steps": 30})
    with pytest.raises(UsageError, match=r"config\.optim\.schedule_steps: 24 there, 30 asked"):
        train(longer, tmp_path / "parts")


@pytest.mark.slow
def test_a_file_outside_the_repository_is_trained_killed_resumed_and_reported(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "mine.py").write_text(textwrap.dedent(NNX.replace("nnx.Conv(2,", "nnx.Conv(1,")))
    (folder / "config.py").write_text(
        textwrap.dedent("""
        from experiments.config.defaults import default

        def get_config():
            config = default()
            config.task, config.data.layout = "image", "images"
            config.batch_size = 20
            config.update(steps=1500, log_every=10, eval_every=500, checkpoint_every=50)
            config.model = {"module": "mine:Net", "norm": {"name": "batch_norm"}, "width": 6}
            return config
        """)
    )
    words = ["--config=config.py", "--config.model.norm.name=layer_norm", "--workdir=run"]
    root = str(parallel.__file__).partition("/experiments/")[0]
    command = f"import sys, runpy; sys.path.insert(1, {root!r}); sys.path.insert(0, '')"
    command += "; runpy.run_module('experiments.train', run_name='__main__')"
    program = [sys.executable, "-c", command, *words]

    def reached():
        saved = folder / "run" / "checkpoints"
        return any(path.name.isdigit() for path in saved.glob("*"))

    processes.killed(processes.begin(program, cwd=folder), reached, 0.0)
    assert not (folder / "run" / "final.json").exists()
    child = processes.begin(program, cwd=folder)
    out, errors = child.communicate(timeout=300)
    assert child.returncode == 0 and "parameters, from step " in out, errors
    assert "run" in curves.report([folder / "run"])
    final = json.loads((folder / "run" / "final.json").read_text())
    assert final["config"]["model"]["norm"]["name"] == "layer_norm"
    assert json.loads((folder / "run" / "config.json").read_text())["versions"]["model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode"), [("nnx", "shard_map"), ("nnx", "pmap"), ("resnet", "jit")]
)
def test_a_step_on_four_devices_is_that_on_one(kind, mode, written, monkeypatch):  # noqa: F811
    """In microbatches, with statistics over all devices, averaged parameters and a schedule."""
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    monkeypatch.setattr(parallel, "available", jax.devices)
    model = {"arch": "resnet", **SMALL["resnet"]} if kind == "resnet" else {"module": written(NNX)}
    task, split = make_task("image", examples=16, norm=BN, **model)
    # not by AdamW, which makes steps of one size of gradients that are 0 but for rounding
    recipe = {**RECIPE, "dtype": "float32", "optim.name": "sgd", "optim.weight_decay": 0.0}
    config = validate.check(make_config(model={**model, "norm": BN}, **recipe))
    optim, rate = step.static(config["optim"])
    index = np.arange(16)

    def after(mode, devices):
        layout = parallel.DeviceLayout(mode, devices)
        now = layout.replicate(step.start(task, step.optimizer(config["optim"]), config)["now"])
        compiled = step.compiled_step(layout, task, optim, False, False)
        for _ in range(2):
            rows = layout.split(layout.pad(index))
            now = compiled(now, layout.replicate(split), *rows, rate)
        return jax.device_get({k: now[k] for k in ("params", "norm", "ema")})

    close(after(mode, 4), after("jit", 1), rtol=2e-3, atol=2e-5)


def test_the_batch_of_a_step_must_divide_into_microbatches(written):  # noqa: F811
    task, split = make_task("image", module=written(LINEN), norm=BN)
    params, norm = task.init(jax.random.key(0))
    micro = accumulate.microbatches(4, task)
    assert micro == (4, 0.9, 0)
    args = (
        task,
        params,
        norm,
        Batch(split, None, jax.random.key(0)),
        parallel.SINGLE,
        micro,
    )
    with pytest.raises(UsageError, match=r"accumulate=4 does not divide 6"):
        parallel.gradients(*args)
