"""Trains LeNet with whitening and with batch norm, and times a step of each.

"Decorrelated Batch Normalization" and "Iterative Normalization" are 0.5 to 1 point better than
batch norm on CIFAR-10 and ImageNet. Here a step should take over 1.1 times as long; iterative
normalization should be within 1 point of ZCA and its step shorter by over 0.05 of batch norm's.

LeNet with ReLU, 12 and 32 feature maps, whitened all together; every norm has gain and bias.
`step_time` is the time of 5 training steps over that of 5 steps with batch norm, taken in turns,
the median of 25 turns, so that other load on the machine affects both. These are small matrices on
a CPU; the papers' machines are GPUs, on which an eigenvalue problem is expensive.
"""

from __future__ import annotations

import time

import jax
import numpy as np
from experiments.ledger.rules import Claim, less, more, same

from configs.mlp_cnn import _protocol
from experiments import tasks
from experiments.config import validate
from experiments.runtime import step

WHOLE = {"decay": 0.9, "use_scale": True, "use_bias": True}
NORMS = {
    "bn": {"name": "batch_norm", **WHOLE},
    "zca": {"name": "decorrelated_batch_norm", **WHOLE},
    "iterative": {"name": "iterative_norm", **WHOLE},
}
ACCURACY = "test.population.accuracy"

CLAIM = Claim(
    number=32,
    statement="Whitening inside the batch trains better than batch norm and costs more a step; "
    "iterative normalization costs less than ZCA and is as good",
    source="Huang et al. 2018 and 2019",
    expect="lower training loss, higher accuracy, longer steps; iterative between the two in time",
    arms=tuple(NORMS),
    rules=(
        less("zca", "bn", "area.train"),
        less("iterative", "bn", "area.train"),
        more("zca", "bn", ACCURACY),
        same("iterative", "zca", ACCURACY, within=0.01),
        more("zca", "bn", "step_time", by=0.1),
        more("iterative", "bn", "step_time", by=0.1),
        less("iterative", "zca", "step_time", by=0.05),
    ),
    rates=(0.03, 0.1, 0.3),
    tune="area.train",
    minutes=4,
    scale=_protocol.SCALE + "; the papers: CIFAR-10, ImageNet, on GPUs",
    twin="configs/mlp_cnn/full.py:32.ARM",
)

STEPS, TURNS = 5, 25


def get_config(arm):
    """The norm after both convolutions, before ReLU."""
    config = _protocol.lenet(arm, activation="relu", channels=12, norm_conv=NORMS[arm])
    return config


def clock(task, config, dataset):
    """A function that takes some training steps and says how many seconds they took."""
    optim, rate = step.static(config["optim"])
    index = np.arange(config["batch_size"], dtype=np.int32)
    state = step.start(task, step.optimizer(config["optim"]), config)["now"]

    def seconds():
        nonlocal state
        began = time.perf_counter()
        for _ in range(STEPS):
            state = step.train_step(state, dataset.train, index, rate, task=task, optim=optim)
        jax.block_until_ready(state)
        return time.perf_counter() - began

    seconds()  # compiles
    return seconds


def extra(run):
    """Time of a step over that of batch norm's."""
    usual = validate.check(get_config("bn"))
    own = clock(run.task, run.config, run.dataset)
    other = clock(tasks.build(usual, run.dataset), usual, run.dataset)
    return {"step_time": float(np.median([own() / other() for _ in range(TURNS)]))}
