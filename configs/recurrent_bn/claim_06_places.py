"""Trains LSTMs on digits with a norm on the input term, the recurrent term, both or none."""

from experiments.ledger.rules import Claim, less

from configs.recurrent_bn import _small

CLAIM = Claim(
    number=6,
    statement=(
        "Normalizing the recurrent term helps as well: both terms learn faster than the input"
        " term alone or the recurrent term alone"
    ),
    source=(
        'Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017, arXiv:1603.09025, '
        "against Laurent et al. 2016, who found only the input term worth normalizing"
    ),
    expect="both terms best",
    arms=("none", "vertical", "horizontal", "both"),
    rules=(
        less("both", "vertical", "area.error", by=0.01),
        less("both", "horizontal", "area.error", by=0.01),
    ),
    rates=_small.RATES,
    minutes=12,
    scale=(
        "scikit-learn's digits (64 steps of a pixel) for sequential MNIST (784), 50 units for"
        " 100, 800 updates for 100,000; no norm of the cell in any arm"
    ),
    twin="configs/recurrent_bn/pmnist.py, variants lstm, bn_x, bn_h, bn_lstm",
)


PLACES = {"none": (), "vertical": ("norm_x",), "horizontal": ("norm_h",)}


def get_config(arm: str = "both"):
    config = _small.digits("bn_lstm")
    config.name = arm
    with config.unlocked():
        for place in ("norm_x", "norm_h"):
            if place not in PLACES.get(arm, ("norm_x", "norm_h")):
                config.model[place].name = "none"
        config.model.norm_c = {"name": "identity", "use_bias": True}
    config.lock()
    return config
