"""Trains LeNet with batch norm before or after the activation, and with a bias before it.

In the source W u + b is normalized before the nonlinearity, since it is more symmetric; b has no
effect and is left out.
"""

from experiments.ledger.rules import Claim, more, same

from configs.mlp_cnn import _protocol

ORDERS = {"before": ("norm", "act"), "before_bias": ("norm", "act"), "after": ("act", "norm")}

CLAIM = Claim(
    number=23,
    statement="Batch norm before the activation is better than after it, and a bias before batch "
    "norm is useless",
    source="Ioffe, Szegedy 2015, section 3.2",
    expect="higher test accuracy before; within 1 point with and without the bias",
    arms=("before", "after", "before_bias"),
    rules=(
        more("before", "after", "test.population.accuracy"),
        same("before", "before_bias", "test.population.accuracy", within=0.01),
    ),
    rates=(0.03, 0.1, 0.3),
    tune="valid.population.accuracy",
    minutes=3,
    scale=_protocol.SCALE,
    twin="configs/mlp_cnn/full.py:23.ARM",
)


def get_config(arm):
    """ReLU and batch norm in all four hidden layers."""
    norm, bias = _protocol.NORMS["bn"], arm != "before"
    order = ORDERS[arm]
    options = {"order": order, "bias": bias, "norm_conv": norm, "norm_dense": norm}
    return _protocol.lenet(arm, activation="relu", **options)
