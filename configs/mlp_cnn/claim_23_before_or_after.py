"""Batch norm before or after the activation, and the bias before it.

Paper:     Ioffe, Szegedy, "Batch Normalization", 2015, section 3.2: W u + b is normalized, before
           the nonlinearity, since it is more symmetric; b has no effect and is left out.
Claim:     before is better than after; a bias before batch norm is useless.
Expected:  higher test accuracy before; with and without the bias within 1 point.
Twin:      configs/mlp_cnn/full.py:23.ARM
Cost:      3 arms, 8 runs of 300 steps each: about 3 minutes on two CPU cores.
Command:   python -m experiments.claim 23
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.rules import Claim, more, same

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
)


def get_config(arm):
    """ReLU and batch norm in all four hidden layers."""
    norm, bias = _protocol.NORMS["bn"], arm != "before"
    order = ORDERS[arm]
    how = {"order": order, "bias": bias, "norm_conv": norm, "norm_dense": norm}
    return _protocol.lenet(arm, activation="relu", **how)
