"""Permuted MNIST at three lengths: images averaged down to 7 x 7 and 14 x 14, and as they are.

All 50,000 images, 100 units, batches of 100, the published protocol (`_protocol.py`). A replicate
draws its own permutation, the same for both arms. The two short lengths are trained until the
validation loss settles, in a tenth of the source's updates or less; 784 steps are for a device.
"""

import functools

from configs.recurrent_bn import _protocol
from experiments.ledger.claims import Scale

RATES = (1e-3, 3e-3, 1e-2)
SIDES = {"pmnist49": 7, "pmnist196": 14, "pmnist784": 28}
UPDATES = {"pmnist49": 10_000, "pmnist196": 4000, "pmnist784": 20_000}


def _scale(name, **more):
    side, updates = SIDES[name], UPDATES[name]
    text = (
        f"permuted MNIST {side} x {side}, {side * side} steps, 50,000 images, 100 units, "
        f"{updates:,} updates of 100 (the source: 784 steps, 100,000 updates)"
    )
    return Scale(name, side * side, text, **more)


SCALES = (
    _scale("pmnist49", replicates=16, minutes=14),
    _scale("pmnist196", replicates=8, minutes=40),
    _scale("pmnist784", replicates=8, minutes=330, device="gpu", of_source=True),
)


@functools.cache
def _known(name):
    return next(scale for scale in SCALES if scale.name == name)


def permuted(variant, name, gamma=None):
    """The config of a variant of `_protocol.VARIANTS` at a length."""
    steps = int(_known(name).at)
    config = _protocol.sequential_images("pmnist", variant)
    config.data.side = SIDES[name]
    for place in ("norm_x", "norm_h", "norm_sum", "norm_c"):
        if "max_steps" in config.model.get(place, {}):
            config.model[place].max_steps = steps
    config.steps = UPDATES[name]
    config.log_every = config.steps_per_call = 100
    config.eval_every = config.checkpoint_every = config.steps // 20
    config.eval_batch_size = 500
    config.population.batch_size = 1000
    if gamma is not None:
        config.gamma = gamma
    return config
