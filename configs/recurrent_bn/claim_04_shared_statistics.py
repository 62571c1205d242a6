"""Trains BN-LSTMs on digits with statistics of each step, or shared over time."""

from experiments.ledger.rules import Claim, more

from configs.recurrent_bn import _small

CLAIM = Claim(
    number=4,
    statement="Population statistics shared over time fail where those of each step work",
    source=(
        'Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017, arXiv:1603.09025, section 3'
    ),
    expect=(
        "at test, accuracy with statistics averaged over time far below that with statistics "
        "of each step"
    ),
    arms=("bn_lstm", "bn_shared"),
    rules=(more("bn_lstm", "bn_shared", "test.population.accuracy", by=0.05),),
    rates=_small.RATES,
    minutes=6,
    scale=(
        "scikit-learn's digits (64 steps of a pixel) for sequential MNIST (784), 50 units for"
        " 100, 800 updates for 100,000"
    ),
    twin="configs/recurrent_bn/mnist.py, variants bn_lstm and bn_shared",
)


def get_config(arm: str = "bn_shared"):
    config = _small.digits(arm)
    config.lock()
    return config
