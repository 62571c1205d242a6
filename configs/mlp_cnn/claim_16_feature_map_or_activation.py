"""Trains LeNet with batch norm of each feature map, or of each activation.

In the source, statistics, scale and bias are a feature map's, so that all its places are normalized
alike: 22 scales here, against 1,120 with one for each activation.
"""

from experiments.ledger.rules import Claim, more

from configs.mlp_cnn import _protocol

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
    twin="configs/mlp_cnn/full.py:16.ARM",
)


def get_config(arm):
    """Batch norm after both convolutions; an average over the batch alone is one an activation."""
    norm = dict(_protocol.NORMS["bn"])
    if arm == "activation":
        norm["axes"] = 0
    return _protocol.lenet(arm, activation="relu", norm_conv=norm)
