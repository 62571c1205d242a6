"""Trains LeNet with dropout after the activation, or before batch norm.

Before batch norm, dropout makes the running variance of training another than that of the test.
Ioffe, Szegedy, 2015, have the usual order. Dropout 0.5 in all four hidden layers. "population"
accuracies, beside in the record, are with statistics estimated without dropout, which removes the
shift.
"""

from experiments.ledger.rules import Claim, more

from configs.mlp_cnn import _protocol

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
    twin="configs/mlp_cnn/full.py:30.ARM",
)


def get_config(arm):
    """Batch norm and dropout in all hidden layers."""
    norm, order = _protocol.NORMS["bn"], ORDERS[arm]
    options = {"norm_conv": norm, "norm_dense": norm, "order": order, "bias": False}
    return _protocol.lenet(arm, activation="relu", dropout=0.5, **options)
