"""An MLP or a small LeNet on any image set: the digits at first, yours by --config.dataset=NAME.

Command:   python -m experiments.train --config=configs/yours/images.py:bn_lenet \
               --config.dataset=cifar10 --config.model.kernel=5 --workdir=runs/cifar10/bn_lenet

Variants: mlp, bn_mlp, lenet, bn_lenet. NAME is a set of TFDS as TFDS writes it, NAME[/CONFIG],
which `python -m experiments.prepare NAME` downloads; docs/experiments.md says what else there is.
Another norm: --config.model.norm_dense.name=layer_norm, and norm_conv after convolutions.
"""

import ml_collections

from experiments.config.defaults import default
from experiments.tasks.image import DEFAULTS

VARIANTS = ("mlp", "bn_mlp", "lenet", "bn_lenet")


def get_config(variant: str = "bn_lenet"):
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; variants: {', '.join(VARIANTS)}")
    config = default()
    config.name = variant
    config.task = "image"
    config.data.layout = "images"
    config.batch_size = 64
    config.population.batch_size = 100
    config.optim.name = "adam"
    config.select = "loss"
    model = {**DEFAULTS, "arch": variant.removeprefix("bn_"), "activation": "relu"}
    model |= {"kernel": 2, "hidden": 120}
    if variant.startswith("bn_"):
        model |= {"norm_conv": {"name": "batch_norm"}, "norm_dense": {"name": "batch_norm"}}
    config.model = ml_collections.ConfigDict(model)
    config.lock()
    return config
