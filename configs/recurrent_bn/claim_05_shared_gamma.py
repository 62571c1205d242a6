"""Trains BN-LSTMs on digits with one gamma for all steps, or one for each."""

from experiments.ledger.rules import Claim, same

from configs.recurrent_bn import _small

CLAIM = Claim(
    number=5,
    statement="One gamma and beta shared over time do as well as a pair for each step",
    source=(
        'Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017, arXiv:1603.09025, '
        "section 3 (parameters shared over time), and peers that keep one gamma and beta a "
        "step"
    ),
    expect="no difference beyond 2 points of accuracy",
    arms=("shared", "per_step"),
    rules=(same("shared", "per_step", "test.population.accuracy", within=0.02),),
    rates=_small.RATES,
    minutes=8,
    scale=(
        "scikit-learn's digits (64 steps of a pixel) for sequential MNIST (784), 50 units for"
        " 100, 800 updates for 100,000"
    ),
    twin="configs/recurrent_bn/pmnist.py:bn_lstm with share_params=False in each norm",
)


def get_config(arm: str = "shared"):
    config = _small.digits("bn_lstm")
    config.name = arm
    if arm == "per_step":
        for place in ("norm_x", "norm_h", "norm_c"):
            config.model[place].share_params = False
    config.lock()
    return config
