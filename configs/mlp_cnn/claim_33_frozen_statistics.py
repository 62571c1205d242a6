"""Fine-tunes LeNet at batches of 1, 2 and 32, with frozen statistics or those of the batch.

A practice of detection and segmentation, for instance He et al., "Mask R-CNN", 2017.

LeNet with ReLU, batch norm after its convolutions alone (as in the networks of this practice),
trained for 600 steps at batch 128 on Fashion-MNIST; then a new readout, and all weights trained on
the first 2,000 images of MNIST, twice over, whatever the batch size. An arm is statistics_batch
size; "frozen" uses the running averages of Fashion-MNIST and never moves them, "batch" those of its
batches. Averages keep 0.99 in both trainings. Each arm's rate is the best on validation images for
seed 0. Test accuracy is with running statistics, as in practice; "population" beside it is with
statistics estimated again over the 2,000 images, which repairs bad averages. The first run's grid
began at 0.003, which frozen_1 and frozen_2 chose; with the two rates below it all arms chose the
same again, and the numbers did not change.
"""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
from experiments.ledger.rules import Claim, contrast, more

from configs.mlp_cnn import _protocol
from experiments import tasks
from experiments.config import defaults, validate
from experiments.data import batches, datasets, splits
from experiments.runtime import step

ACCURACY = "test.running.accuracy"

CLAIM = Claim(
    number=33,
    statement="Fine-tuning at batch 1 and 2 needs frozen batch norm statistics",
    source="Wu, Johnson 2021",
    expect="test accuracy over 1 point higher with frozen statistics, and more so than at batch 32",
    arms=("batch_1", "frozen_1", "batch_2", "frozen_2", "batch_32", "frozen_32"),
    rules=(
        more("frozen_1", "batch_1", ACCURACY, by=0.01),
        more("frozen_2", "batch_2", ACCURACY, by=0.01),
        contrast(
            f"(frozen_2 - batch_2) - (frozen_32 - batch_32), {ACCURACY}",
            (1.0, "frozen_2", ACCURACY),
            (-1.0, "batch_2", ACCURACY),
            (-1.0, "frozen_32", ACCURACY),
            (1.0, "batch_32", ACCURACY),
            by=0.01,
        ),
    ),
    minutes=3,
    scale="LeNet of 14 x 14, Fashion-MNIST to 2,000 images of MNIST",
)

NORM = {"name": "batch_norm", "decay": 0.99}
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
STEPS, EXAMPLES = 600, 4000


def config_of(dataset, steps, size, images, **model):
    """The config of one training."""
    options = {"dataset": dataset, "steps": steps, "activation": "relu", "norm_conv": NORM}
    config = _protocol.lenet("bn", **options, **model)
    config.batch_size = size
    config.data.train_size = images
    config.data.valid_size = 2000
    return validate.check(config)


@functools.cache
def images_of(dataset, images):
    """The splits on the device."""
    return datasets.load_config_data(config_of(dataset, STEPS, 1, images)).on_device()


@functools.partial(jax.jit, static_argnames=("task", "optim"))
def take_steps(state, split, index, rate, task, optim):
    """An update for each row of indices."""

    def one(state, rows):
        return step.update(state, split, rows, rate, task=task, optim=optim), None

    return jax.lax.scan(one, state, index)[0]


def train(config, seed, rate, dataset, params=None, norm=None):
    """A training from scratch, or from all but the readout of another; `(task, state)`."""
    config = {**config, "seed": seed}
    task = tasks.build(config, dataset)
    state = step.start(task, step.optimizer(config["optim"]), config)["now"]
    if params is not None:
        state |= {"params": {**params, "head": state["params"]["head"]}, "norm": norm}
    indices = batches.batches(splits.size(dataset.train), config["batch_size"], seed)
    index = np.stack(list(itertools.islice(indices, config["steps"]))).astype(np.int32)
    optim, _ = step.static(config["optim"])
    return task, take_steps(state, dataset.train, index, np.float32(rate), task, optim)


@functools.cache
def pretrained(seed):
    """Parameters and running statistics after training on Fashion-MNIST."""
    config = config_of("fashion_mnist", STEPS, 128, 5000)
    _, state = train(config, seed, 0.1, images_of("fashion_mnist", 5000))
    return state["params"], state["norm"]


def fine_tuned(arm, seed, rate):
    """Scores after fine-tuning, of validation and test images."""
    stats, _, size = arm.partition("_")
    steps = EXAMPLES // int(size)
    config = config_of("mnist", steps, int(size), 2000, frozen=stats == "frozen")
    dataset = images_of("mnist", 2000)
    task, state = train(config, seed, rate, dataset, *pretrained(seed))
    scores = step.final_scores(state, dataset, task, config)
    return defaults.flatten(scores)


@functools.cache
def best_rate(arm):
    """The rate of the best validation accuracy, for seed 0."""
    return max(RATES, key=lambda rate: fine_tuned(arm, 0, rate)["valid.running.accuracy"])


def measure(arm, seed):
    """Accuracies and losses, and the rate that was taken."""
    return {**fine_tuned(arm, seed, best_rate(arm)), "rate": best_rate(arm)}
