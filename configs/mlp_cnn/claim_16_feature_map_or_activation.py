"""Batch norm of a feature map, or of each of its activations.

Paper:     Ioffe, Szegedy, "Batch Normalization", 2015, section 3.2: statistics, scale and bias are
           a feature map's, so that all its places are normalized alike.
Claim:     shared over a feature map is better than one for each activation.
Expected:  higher test accuracy; 22 scales against 1,120.
Twin:      configs/mlp_cnn/full.py:16.ARM
Cost:      2 arms, 8 runs of 300 steps each: about 2 minutes on two CPU cores.
Command:   python -m experiments.claim 16
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.rules import Claim, more

CLAIM = Claim(
    number=16,
    statement="After convolutions, batch norm with one statistic a feature map is better than with "
    "one an activation",
    source="Ioffe, Szegedy 2015, section 3.2",
    expect="higher test accuracy",
    arms=("map", "activation"),
    rules=(more("map", "activation", "test.population.accuracy"),),
    rates=(0.03, 0.1, 0.3),
    tune="valid.population.accuracy",
    minutes=2,
    scale=_protocol.SCALE,
)


def get_config(arm):
    """Batch norm after both convolutions; an average over the batch alone is one an activation."""
    norm = dict(_protocol.NORMS["bn"])
    if arm == "activation":
        norm["axes"] = 0
    return _protocol.lenet(arm, activation="relu", norm_conv=norm)
