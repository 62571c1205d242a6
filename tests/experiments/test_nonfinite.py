"""Numbers that are not finite: skipped or the end of a run, never in the statistics, and named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.runtime import exits, nonfinite, parallel, step
from tests._support import models


def poisoned():
    """The small CNN with one image that is not a number."""
    split = jax.tree.map(jnp.asarray, models.rows())
    image = split["image"].astype(jnp.float32)
    return {**split, "image": image.at[3].set(jnp.nan), "mask": split["mask"].at[3].set(True)}


OPTIM = {"name": "sgd", "learning_rate": 0.1, "decay": 0.9, "momentum": 0.5, "eps": 1e-8}
OPTIM |= {"clip_norm": 1.0, "l2": 0.0, "l1": 0.0}


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
def test_skipping_leaves_everything_as_it_was(mode, monkeypatch):
    monkeypatch.setattr(parallel, "available", jax.devices)
    task, split = models.MODELS["cnn"], poisoned()
    optim, rate = step.static(OPTIM)
    config = {"seed": 0, "log_every": 3, "optim": OPTIM}
    layout = parallel.DeviceLayout(mode, 2)
    take = step.compiled_step(layout, task, optim, True, False)
    now = layout.replicate(step.start(task, step.optimizer(OPTIM), config)["now"])
    split = layout.replicate(split)
    good, bad = np.arange(4, 16, dtype=np.int32), np.arange(12, dtype=np.int32)
    now = take(now, split, *layout.split(layout.pad(good)), rate)
    before = jax.device_get({k: now[k] for k in ("params", "norm", "opt")})
    now = take(now, split, *layout.split(layout.pad(bad)), rate)
    after = jax.device_get({k: now[k] for k in before})
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert int(now["skipped"]) == 1 and int(now["step"]) == 2
    now = take(now, split, *layout.split(layout.pad(good)), rate)
    assert int(now["skipped"]) == 1 and np.isfinite(now["window"]["loss"][2])


def test_running_statistics_never_take_a_batch_that_is_not_finite():
    """Whatever the policy: the parameters go, what the norms keep stays."""
    task, split = models.MODELS["cnn"], poisoned()
    optim, rate = step.static(OPTIM)
    config = {"seed": 0, "log_every": 3, "optim": OPTIM}
    now = step.start(task, step.optimizer(OPTIM), config)["now"]
    new = jax.jit(step.update, static_argnames=("task", "optim"))(
        now, split, jnp.arange(12), None, rate, task=task, optim=optim
    )
    jax.tree.map(np.testing.assert_array_equal, new["norm"], now["norm"])
    assert not np.isfinite(new["params"]["head"]).all()


def test_a_report_names_what_went_first():
    task, split = models.MODELS["cnn"], poisoned()
    config = {"seed": 0, "log_every": 3, "optim": OPTIM}
    now = step.start(task, step.optimizer(OPTIM), config)["now"]
    line = nonfinite.report(task, now, split, np.arange(12), None)
    assert line.startswith("Not finite first: the batch's image. Then the loss; then the gradients")
    assert "conv1" in line
    affine = now["params"]["norm2"]
    now["params"]["norm2"] = affine._replace(scale=affine.scale.at[0].set(jnp.inf))
    line = nonfinite.report(task, now, split, np.arange(4, 16), None)
    assert line.startswith("Not finite first: the parameters before it: norm2/scale. Then")
    assert "Repeated" in nonfinite.report(
        task, {**now, "params": task.init(jax.random.key(0))[0]}, split, np.arange(4, 9), None
    )


def test_a_report_names_the_norm_whose_squares_overflow():
    """Inputs and parameters are finite, and so are the running averages, which skip the batch."""
    task = models.MODELS["cnn"]
    split = jax.tree.map(jnp.asarray, models.rows())
    config = {"seed": 0, "log_every": 3, "optim": OPTIM}
    now = step.start(task, step.optimizer(OPTIM), config)["now"]
    now["params"]["conv2"] = jax.tree.map(lambda w: w * 1e24, now["params"]["conv2"])
    line = nonfinite.report(task, now, split, np.arange(4, 16), None)
    first = line.split(". Then")[0]
    assert first == "Not finite first: what these norms measured of the batch: norm2"


def test_a_report_tells_finite_gradients_whose_norm_overflows():
    task = models.MODELS["cnn"]
    split = jax.tree.map(jnp.asarray, models.rows())
    config = {"seed": 0, "log_every": 3, "optim": OPTIM}
    now = step.start(task, step.optimizer(OPTIM), config)["now"]
    now["params"]["head"] = jax.tree.map(lambda w: w * 1e22, now["params"]["head"])
    line = nonfinite.report(task, now, split, np.arange(4, 16), None)
    assert "All tensors are finite" in line and "their norm is not" in line


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_run_that_diverges_says_where_and_in_what(policy, tiny, tmp_path):
    config = tiny("lstm", checkpoint_every=2, log_every=4, nonfinite=policy, nonfinite_limit=3)
    config.optim.update(name="sgd", clip_norm=0.0, learning_rate=1e20, l2=0.03)
    with pytest.raises(exits.Diverged) as error:
        train.train(config, tmp_path / "run")
    text = str(error.value)
    assert "not finite at step" in text and "Not finite first: the loss" in text
    assert "--config.nonfinite=skip" in text
    assert ("more than config.nonfinite_limit" in text) == (policy == "skip")
