"""Dropout after the activation, or before batch norm.

Paper:     Li et al., "Understanding the Disharmony between Dropout and Batch Normalization by
           Variance Shift", 2019 (arXiv:1801.05134); Ioffe, Szegedy, 2015, for the usual order.
Claim:     convolution, batch norm, ReLU, dropout is better than dropout before batch norm: there
           the running variance, taken with dropout on, is not that of the test.
Expected:  higher test accuracy with running statistics.
Twin:      configs/mlp_cnn/full.py:30.ARM
Cost:      2 arms, 8 runs of 300 steps each: about 2 minutes on two CPU cores.
Command:   python -m experiments.claim 30

Dropout 0.5 in all four hidden layers. "population" accuracies are with statistics taken without
dropout, which mends the shift: they are in the record beside.
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.rules import Claim, more

ORDERS = {"after": ("norm", "act", "dropout"), "before": ("dropout", "norm", "act")}

CLAIM = Claim(
    number=30,
    statement="Dropout after batch norm and ReLU is better than dropout before batch norm",
    source="Li et al. 2019",
    expect="higher test accuracy with running statistics",
    arms=tuple(ORDERS),
    rules=(more("after", "before", "test.running.accuracy"),),
    rates=(0.03, 0.1, 0.3),
    tune="valid.running.accuracy",
    minutes=2,
    scale=_protocol.SCALE,
)


def get_config(arm):
    """Batch norm and dropout in all hidden layers."""
    norm, order = _protocol.NORMS["bn"], ORDERS[arm]
    how = {"norm_conv": norm, "norm_dense": norm, "order": order, "bias": False}
    return _protocol.lenet(arm, activation="relu", dropout=0.5, **how)
