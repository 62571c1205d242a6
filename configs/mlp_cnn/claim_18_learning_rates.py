"""Batch norm at large learning rates.

Paper:     Ioffe, Szegedy, "Batch Normalization", 2015, sections 3.3 and 4.2.2: a rate 5 and 30
           times the baseline's trains, and the baseline with it does not.
Claim:     batch norm allows larger learning rates.
Expected:  at rate 3, thirty times the usual 0.1, batch norm is more than 10 points ahead of none
           and not more than 3 behind itself at 0.1.
Twin:      configs/mlp_cnn/full.py:18.ARM
Cost:      6 arms, 5 runs of 300 steps each: about 2 minutes on two CPU cores.
Command:   python -m experiments.claim 18

The permutation-invariant MLP; the rate is the question, so none is tuned.
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.rules import Claim, more

CLAIM = Claim(
    number=18,
    statement="Batch norm allows larger learning rates: at 30 times the usual one it trains as "
    "well, and without it training suffers",
    source="Ioffe, Szegedy 2015, sections 3.3 and 4.2.2",
    expect="at rate 3 over 10 points ahead of none, within 3 points of itself at 0.1",
    arms=("none_0.1", "none_1", "none_3", "bn_0.1", "bn_1", "bn_3"),
    rules=(
        more("bn_3", "none_3", "test.population.accuracy", by=0.1),
        more("bn_3", "bn_0.1", "test.population.accuracy", by=-0.03),
    ),
    minutes=2,
    scale="MLP, MNIST 14 x 14, 5,000 training images, 300 steps",
)


def get_config(arm):
    """A norm and a rate."""
    name, _, rate = arm.partition("_")
    config = _protocol.mlp(arm, norm_dense=_protocol.NORMS[name])
    config.optim.learning_rate = float(rate)
    return config
