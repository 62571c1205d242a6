"""Permuted MNIST at three lengths: images averaged down to 7 x 7 and 14 x 14, and as they are.

All 50,000 images, 100 units, batches of 100, the published protocol (`_protocol.py`). A replicate
draws its own permutation, the same for both arms. The two short lengths are meant to be trained
until the validation loss settles, in a tenth of the source's updates; 784 steps are for a device.
Arms that several groups share are trained once: `minutes` counts them in each.

Population statistics are those of the whole training set as one batch. In smaller batches a step is
measured behind steps that each batch has normalized by itself; see claim 45.
"""

import functools

from configs.recurrent_bn import _protocol
from experiments.ledger.claims import Scale

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SIDES = {"pmnist49": 7, "pmnist196": 14, "pmnist784": 28}
UPDATES = {"pmnist49": 10_000, "pmnist196": 10_000, "pmnist784": 20_000}
# Minutes of one run on two cores, without and with norms: updates times the recorded step time.
PLAIN = {"pmnist49": 2.0, "pmnist196": 13.8, "pmnist784": 96.0}
NORMALIZED = {"pmnist49": 2.7, "pmnist196": 19.3, "pmnist784": 116.0}
COOIJMANS = "Cooijmans et al., ICLR 2017, arXiv:1603.09025"
LAURENT = "Laurent et al., ICASSP 2016, arXiv:1510.01378"
WHOLE_GAIN = "half of the 5.2 points that batch norm gains in all in table 1 of Cooijmans et al."


def _scale(name, plain, normalized, **more):
    side, updates = SIDES[name], UPDATES[name]
    text = (
        f"permuted MNIST {side} x {side}, {side * side} steps, 50,000 images, 100 units, "
        f"{updates:,} updates of 100 (the source: 784 steps, 100,000 updates)"
    )
    minutes = round(len(RATES) * (plain * PLAIN[name] + normalized * NORMALIZED[name]))
    return Scale(name, side * side, text, minutes=minutes, **more)


def scales(plain, normalized, *, middle="gpu"):
    """The three lengths for so many arms without and with norms; `middle` runs the second."""
    return (
        _scale("pmnist49", plain, normalized, replicates=16 if plain + normalized < 3 else 8),
        _scale("pmnist196", plain, normalized, replicates=8, device=middle),
        _scale("pmnist784", plain, normalized, replicates=8, device="gpu", of_source=True),
    )


SCALES = scales(1, 1, middle="cpu")


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
    config.population.batch_size = 50_000
    if gamma is not None:
        config.gamma = gamma
    return config
