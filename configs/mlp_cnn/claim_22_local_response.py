"""Trains LeNet with batch norm, local response normalization and both."""

from experiments.ledger.rules import Claim, same

from configs.mlp_cnn import _protocol

CLAIM = Claim(
    number=22,
    statement="Local response normalization adds nothing beside batch norm",
    source="Ioffe, Szegedy 2015, section 4.2.1",
    expect="within 1 point of test accuracy",
    arms=("bn", "bn_lrn", "lrn"),
    rules=(same("bn_lrn", "bn", "test.population.accuracy", within=0.01),),
    rates=(0.03, 0.1, 0.3),
    tune="valid.population.accuracy",
    minutes=3,
    scale=_protocol.SCALE,
    twin="configs/mlp_cnn/full.py:22.ARM",
)


def get_config(arm):
    """Convolution, batch norm, ReLU, local response over 5 maps, pool; AlexNet's constants."""
    bn = _protocol.NORMS["bn" if "bn" in arm else "none"]
    response = {"name": "local_response_norm", "k": 2.0} if "lrn" in arm else {"name": "none"}
    order = ("norm", "act", "response")
    return _protocol.lenet(arm, activation="relu", order=order, norm_conv=bn, response=response)
