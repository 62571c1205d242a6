from __future__ import annotations

import contextlib

import jax
import pytest

from configs.recurrent_bn import digits
from experiments.runtime import parallel, run


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """One of the suite's devices: runs over several have their own tests, tests/multidevice."""
    monkeypatch.setattr(parallel, "available", lambda: jax.devices()[:1])


@pytest.fixture(autouse=True)
def standard_promotion(strict_numerics):
    """Optax wants the standard promotion, which is what users run with."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def make_tiny(variant="bn_lstm", **changes):
    """Make a config that trains in seconds: make_tiny("bn_lstm", seed=3)."""
    config = digits.get_config(variant)
    config.model.hidden = 4
    config.batch_size = 16
    settings = {"steps": 24, "log_every": 5, "eval_every": 10, "checkpoint_every": 10, "devices": 1}
    for key, value in {**settings, **changes}.items():
        config[key] = value
    return config


@pytest.fixture
def tiny():
    return make_tiny


@contextlib.contextmanager
def as_in_a_test():
    """For fixtures of a whole session: one device and the standard promotion, as above."""
    with (
        pytest.MonkeyPatch.context() as patch,
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        patch.setattr(parallel, "available", lambda: jax.devices()[:1])
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The workdir of a tiny run of 24 steps, to look at and to copy, and what it returned."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with as_in_a_test():
        return folder, run.train(make_tiny(), folder)


@pytest.fixture(scope="session")
def finished(trained):
    """The workdir of that run."""
    return trained[0]


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """The workdir of the same run, stopped at step 20, after a checkpoint."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with as_in_a_test():
        run.train(make_tiny(steps=20), folder)
    (folder / "final.json").unlink()
    return folder
