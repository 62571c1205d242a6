"""Trains an MLP at large learning rates, with and without batch norm.

The source trains with rates of 5 and 30 times the baseline's, which the baseline does not survive.
The permutation-invariant MLP; the rate is the question, so none is tuned.
"""

from experiments.ledger.rules import Claim, more

from configs.mlp_cnn import _protocol

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
    twin="configs/mlp_cnn/full.py:18.ARM",
)


def get_config(arm):
    """A norm and a rate."""
    name, _, rate = arm.partition("_")
    config = _protocol.mlp(arm, norm_dense=_protocol.NORMS[name])
    config.optim.learning_rate = float(rate)
    return config
