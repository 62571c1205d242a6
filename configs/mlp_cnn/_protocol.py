"""What the feed-forward claims share: small images, one training recipe, norms by name.

MNIST or Fashion-MNIST with 2 x 2 blocks of pixels averaged, 14 x 14 (the sources: 28 x 28), the
first 5,000 training images, all of validation and test. LeNet: 3 x 3 windows, 6 and 16 channels,
dense layers of 60 and 42 units (the sources: 5 x 5 windows, 120 and 84). SGD without momentum and
without clipping. Running averages keep 0.9, since the runs are a few hundred steps; "population"
accuracies are with statistics estimated again over the training images.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from experiments.config.defaults import TRAIN_SIZE, default
from experiments.ledger.claims import Scale

NORMS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "bn": {"name": "batch_norm", "decay": 0.9},
    "ln": {"name": "layer_norm"},
}


def scale(name: str, train_size: int, *, steps: int = 300, minutes: float, **more: Any) -> Scale:
    """Return a size of a group whose axis is the number of training images."""
    text = f"MNIST 14 x 14, {train_size:,} training images drawn anew, {steps:,} updates of 128"
    return Scale(name, train_size, text, minutes=minutes, **more)


def images(
    arm: str,
    *,
    dataset: str = "mnist",
    steps: int = 300,
    train_size: int = 5000,
    **model: Any,
) -> Any:
    """The config of an arm; `model` are keys of `experiments.tasks.image`."""
    config = default()
    config.name = arm
    config.task = "image"
    config.dataset = dataset
    config.data.side = 14
    config.data.layout = "images"
    config.data.train_size = train_size if train_size < TRAIN_SIZE[dataset] else 0
    config.batch_size = 128
    config.eval_batch_size = 1000
    config.population.batch_size = 1000
    config.steps = steps
    config.log_every = steps // 10
    config.eval_every = steps // 10
    config.checkpoint_every = steps
    config.select = "loss"
    config.model = ml_collections.ConfigDict(model)
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.1
    config.optim.clip_norm = 0.0
    return config


def lenet(arm: str, **more: Any) -> Any:
    """LeNet."""
    return images(arm, **{"arch": "lenet", "hidden": 60, **more})


def mlp(arm: str, **more: Any) -> Any:
    """The permutation-invariant MLP: two hidden layers of ReLU."""
    return images(arm, **{"arch": "mlp", "hidden": 100, "activation": "relu", **more})
