from __future__ import annotations

import jax
import pytest

from configs.recurrent_bn import digits
from experiments.runtime import parallel


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
