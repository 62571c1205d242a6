"""What the feed-forward claims share: small images, one training recipe, norms by name, sizes.

MNIST or Fashion-MNIST at three sizes: 5,000 and 50,000 training images with 2 x 2 blocks of pixels
averaged, 14 x 14, and 50,000 of 28 x 28, on which networks have the sources' sizes too. LeNet has
6 and 16 channels; on 14 x 14 its windows are 3 x 3 and its dense layers have 60 and 42 units, on
28 x 28 5 x 5, 120 and 84. SGD without momentum and without clipping. Running averages keep 0.9,
since the runs are short; "population" accuracies are with statistics estimated again over the
training images.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from experiments.config.defaults import TRAIN_SIZE, default
from experiments.ledger.claims import Scale

AXIS = "training pixels in millions"
NORMS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "bn": {"name": "batch_norm", "decay": 0.9},
    "ln": {"name": "layer_norm"},
}


def scale(name: str, train_size: int, *, steps: int = 300, minutes: float, **more: Any) -> Scale:
    """Return a size of a group whose axis is the number of training images."""
    text = f"MNIST 14 x 14, {train_size:,} training images drawn anew, {steps:,} updates of 128"
    return Scale(name, train_size, text, minutes=minutes, **more)


# By the end of a scale's name: side, training images, updates of 128, seconds of a run of LeNet.
SIZES = {
    "5k": (14, 5000, 1000, 6.5),
    "50k": (14, 50_000, 4000, 24.0),
    "28": (28, 50_000, 8000, 360.0),
}
REPLICATES = {"5k": 32, "50k": 12, "28": 8}
WORDS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}


def scales(dataset: str, runs: int, *, cost: float = 1.0, source: str = "") -> tuple[Scale, ...]:
    """Return three sizes, the last for a device.

    Args:
        dataset: name of the image set.
        runs: arms times rates.
        cost: of a run, over that of LeNet.
        source: what the source trains; empty if it is the last size.
    """
    beside = f" (the source: {source})" if source else ""
    found = []
    for end, (side, images, steps, seconds) in SIZES.items():
        words = f"{WORDS[dataset]} {side} x {side}, {images:,} training images drawn anew, "
        last = end == "28"
        found.append(
            Scale(
                dataset.partition("_")[0] + end,
                round(images * side * side / 1e6),
                f"{words}{steps:,} updates of 128{beside}",
                replicates=REPLICATES[end],
                minutes=float(f"{runs * cost * seconds / 60:.2g}"),
                device="gpu" if last else "cpu",
                of_source=last and not source,
            )
        )
    return tuple(found)


def sized(scale: str) -> dict[str, Any]:
    """Return the arguments of `images` for a scale of `scales`."""
    first = next(d for d in WORDS if scale.startswith(d.partition("_")[0]))
    side, train_size, steps, _ = SIZES[scale.removeprefix(first.partition("_")[0])]
    return {
        "dataset": first,
        "side": side,
        "train_size": train_size,
        "steps": steps,
        "rows": 20,
        "valid_size": 5000,
    }


def images(
    arm: str,
    *,
    dataset: str = "mnist",
    side: int = 14,
    steps: int = 300,
    train_size: int = 5000,
    valid_size: int = 0,
    rows: int = 10,
    **model: Any,
) -> Any:
    """The config of an arm with `rows` evaluations; `model` are keys of the task's model."""
    config = default()
    config.name = arm
    config.task = "image"
    config.dataset = dataset
    config.data.side = side
    config.data.layout = "images"
    config.data.train_size = train_size if train_size < TRAIN_SIZE[dataset] else 0
    config.data.valid_size = valid_size
    config.batch_size = 128
    config.eval_batch_size = 1000
    config.population.batch_size = 1000
    config.steps = steps
    config.log_every = steps // rows
    config.eval_every = steps // rows
    config.checkpoint_every = steps
    config.select = "loss"
    config.model = ml_collections.ConfigDict(model)
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.1
    config.optim.clip_norm = 0.0
    return config


def lenet(arm: str, **more: Any) -> Any:
    """LeNet, with the source's windows and dense layers on 28 x 28."""
    whole = more.get("side") == 28
    usual = {"kernel": 5, "hidden": 120} if whole else {"hidden": 60}
    return images(arm, **{"arch": "lenet", **usual, **more})


def mlp(arm: str, **more: Any) -> Any:
    """The permutation-invariant MLP: two hidden layers of ReLU, 1,000 units on 28 x 28."""
    hidden = 1000 if more.get("side") == 28 else 100
    return images(arm, **{"arch": "mlp", "hidden": hidden, "activation": "relu", **more})
