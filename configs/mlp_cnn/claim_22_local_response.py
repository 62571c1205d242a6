"""Local response normalization beside batch norm.

Paper:     Ioffe, Szegedy, "Batch Normalization", 2015, section 4.2.1: local response normalization
           was found unnecessary with batch norm and removed.
Claim:     it adds nothing beside batch norm.
Expected:  test accuracy within 1 point with and without it.
Twin:      configs/mlp_cnn/full.py:22.ARM
Cost:      3 arms, 8 runs of 300 steps each: about 3 minutes on two CPU cores.
Command:   python -m experiments.claim 22
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.rules import Claim, same

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
)


def get_config(arm):
    """Convolution, batch norm, ReLU, local response over 5 maps, pool; AlexNet's constants."""
    bn = _protocol.NORMS["bn" if "bn" in arm else "none"]
    response = {"name": "local_response_norm", "k": 2.0} if "lrn" in arm else {"name": "none"}
    order = ("norm", "act", "response")
    return _protocol.lenet(arm, activation="relu", order=order, norm_conv=bn, response=response)
