"""Trains LSTM and BN-LSTM on digits, pixel by pixel."""

from configs.recurrent_bn import _small
from experiments.ledger.rules import Claim, less, more

CLAIM = Claim(
    number=1,
    statement=(
        "BN-LSTM (per step, gamma 0.1, input and recurrent terms apart) converges faster and "
        "generalizes better than LSTM"
    ),
    source=(
        'Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017, arXiv:1603.09025, table 1'
    ),
    expect="MNIST 99.0 % against 98.9 %, permuted MNIST 95.4 % against 90.2 %, and fewer steps",
    arms=("lstm", "bn_lstm"),
    rules=(
        less("bn_lstm", "lstm", "area.error", by=0.02),
        more("bn_lstm", "lstm", "test.population.accuracy", by=0.01),
    ),
    rates=_small.RATES,
    minutes=6,
    scale=(
        "scikit-learn's digits (64 steps of a pixel) for sequential MNIST (784), 50 units for"
        " 100, 800 updates for 100,000"
    ),
    twin="configs/recurrent_bn/mnist.py and pmnist.py, variants lstm and bn_lstm",
)


def get_config(arm: str = "bn_lstm"):
    config = _small.digits(arm)
    config.lock()
    return config
