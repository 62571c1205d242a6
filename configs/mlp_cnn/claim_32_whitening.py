"""Trains LeNet with whitening and with batch norm, and times a step of each.

12 and 32 feature maps, whitened in groups or all together; every norm has gain and bias, and eps
1e-5. `steps_time` is the time of 5 training steps over that of 5 steps with batch norm, taken in
turns, the median of 9 turns, so that other load on the machine affects both. On a CPU these are
small matrices; the papers' machines are GPUs, on which an eigenvalue problem is expensive.
"""

from __future__ import annotations

import time

import jax
import numpy as np

from configs.mlp_cnn import _protocol
from experiments import tasks
from experiments.config import validate
from experiments.ledger.claims import Claim, Group, Scale, Settled, less, more, same
from experiments.runtime import step

ACCURACY = "test.population.accuracy"
DBN = "Huang et al. 2018, arXiv:1804.08450"
ITERNORM = "Huang et al. 2019, arXiv:1904.03441"
GROUPS = {"groups2": 2, "groups4": 4, "all": None}
NAMES = {"zca": "decorrelated_batch_norm", "iterative": "iterative_norm"}
LOSS = (
    "the source shows curves; a tenth of batch norm's mean training loss on MNIST in a pilot (0.38)"
)
TIME = "the source's times are of other machines; a tenth of a step with batch norm"

END = (Settled(),)


def claim(letter, title, rule, delta, why, expect, source, published=None, controls=END):
    return Claim(
        letter=letter,
        title=title,
        statement=f"{title}, inside a convolutional network after each convolution",
        rule=rule,
        delta=delta,
        why=why,
        expect=expect,
        published=published,
        source=source,
        controls=controls,  # none for claims about the speed of training or of a step
        change="deep networks on photographs; times on an accelerator",
        methods=("whitening", "batch norm"),
    )


def scale(name, size, replicates=16):
    together = f"groups of {size} maps" if size else "all maps together"
    text = (
        "LeNet of 12 and 32 maps, Fashion-MNIST 14 x 14, 5,000 training images drawn anew, "
        f"{together}, 1,000 updates of 128 (the source: CIFAR-10 and ImageNet)"
    )
    return Scale(name, size or 32, text, replicates=replicates, minutes=3.0)


GROUP = Group(
    number=32,
    title="Whitening inside the batch",
    topic="whitening",
    source="Huang et al. 2018 and 2019",
    axis="feature maps whitened together",
    scales=tuple(scale(*item) for item in GROUPS.items()),
    arms=("bn", "zca", "iterative"),
    claims=(
        claim(
            "a",
            "ZCA whitening trains faster than batch norm",
            less("zca", "bn", "area.train"),
            0.04,
            LOSS,
            "training curves below those of batch norm",
            DBN,
            controls=(),
        ),
        claim(
            "b",
            "Iterative whitening trains faster than batch norm",
            less("iterative", "bn", "area.train"),
            0.04,
            LOSS,
            "training curves below those of batch norm",
            ITERNORM,
            controls=(),
        ),
        claim(
            "c",
            "ZCA whitening tests better than batch norm",
            more("zca", "bn", ACCURACY),
            0.00375,
            "half of the middle of about 0.5 to 1 points; not verified",
            "about 0.5 to 1 points on CIFAR-10 (from memory, not verified)",
            DBN,
            0.0075,
        ),
        claim(
            "d",
            "Iterative whitening tests better than batch norm",
            more("iterative", "bn", ACCURACY),
            0.0055,
            "half of about 1.1 points; not verified",
            "ResNet-50 on ImageNet about 77.1 against 76.0 % (from memory, not verified)",
            ITERNORM,
            0.011,
        ),
        claim(
            "e",
            "Iterative whitening is as good as ZCA",
            same("iterative", "zca", ACCURACY),
            0.00375,
            "as 32c: half of what ZCA is said to gain",
            "as good or better, at a lower price (in words)",
            ITERNORM,
        ),
        claim(
            "f",
            "A step with ZCA takes longer than with batch norm",
            more("zca", "bn", "steps_time"),
            0.1,
            TIME,
            "slower by the eigenvalue problem (in words)",
            DBN,
            controls=(),
        ),
        claim(
            "g",
            "A step with iterative whitening is shorter than with ZCA",
            less("iterative", "zca", "steps_time"),
            0.1,
            TIME,
            "no eigenvalue problem, products of matrices alone (in words)",
            ITERNORM,
            controls=(),
        ),
    ),
    rates=(0.1, 0.3, 1.0),
)

STEPS, TURNS = 5, 9


def get_config(arm, scale="groups2"):
    """The norm after both convolutions, before ReLU."""
    norm = {"name": NAMES.get(arm, "batch_norm"), "decay": 0.9}
    norm |= {"use_scale": True, "use_bias": True}
    if arm in NAMES and GROUPS[scale]:
        norm["group_size"] = GROUPS[scale]
    size = _protocol.sized("fashion5k")
    return _protocol.lenet(arm, activation="relu", channels=12, norm_conv=norm, **size)


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
    return {"steps_time": float(np.median([own() / other() for _ in range(TURNS)]))}
