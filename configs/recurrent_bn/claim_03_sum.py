"""Trains BN-LSTMs on digits with one norm on the sum of both terms, or one on each."""

from experiments.ledger.rules import Claim, more

from configs.recurrent_bn import _small

CLAIM = Claim(
    number=3,
    statement=(
        "Normalizing the sum of input and recurrent term fails: it is worse than normalizing "
        "them apart, and no better than no norm"
    ),
    source=(
        'Laurent et al., "Batch Normalized Recurrent Neural Networks", ICASSP 2016, '
        'arXiv:1510.01378, section 4, and Amodei et al., "Deep Speech 2", 2016, section 3.2'
    ),
    expect=(
        "no benefit, or harm; the sources had gamma 1, here it starts at 0.1 in both "
        "normalized arms so that the place alone differs"
    ),
    arms=("lstm", "bn_lstm", "bn_sum"),
    rules=(
        more("bn_lstm", "bn_sum", "test.population.accuracy", by=0.01),
        more("lstm", "bn_sum", "test.population.accuracy", by=-0.01),
    ),
    rates=_small.RATES,
    minutes=9,
    scale=(
        "scikit-learn's digits (64 steps of a pixel) for sequential MNIST (784), 50 units for"
        " 100, 800 updates for 100,000"
    ),
    twin="configs/recurrent_bn/pmnist.py, variants lstm, bn_lstm and bn_sum",
)


def get_config(arm: str = "bn_sum"):
    config = _small.digits(arm)
    config.lock()
    return config
