"""Trains LeNet from hidden weights of different scales, with and without batch norm.

LeNet with tanh, batch norm before each activation. All arms share one rate, 0.1: a rate tuned for
each scale would hide what is tested.
"""

from experiments.ledger.rules import Claim, contrast

from configs.mlp_cnn import _protocol

ACCURACY = "test.population.accuracy"


def fall(scale):
    """What another scale costs without a norm, less what it costs with batch norm."""
    return contrast(
        f"(none_1 - none_{scale}) - (bn_1 - bn_{scale}), {ACCURACY}",
        (1.0, "none_1", ACCURACY),
        (-1.0, f"none_{scale}", ACCURACY),
        (-1.0, "bn_1", ACCURACY),
        (1.0, f"bn_{scale}", ACCURACY),
        by=0.02,
    )


CLAIM = Claim(
    number=19,
    statement="Batch norm makes training less sensitive to the scale of the initial weights",
    source="Ioffe, Szegedy 2015, section 3.3",
    expect="weights times 0.1 or 5 cost over 2 points more without a norm than with batch norm",
    arms=("none_0.1", "none_1", "none_5", "bn_0.1", "bn_1", "bn_5"),
    rules=(fall("0.1"), fall("5")),
    minutes=3,
    scale=_protocol.SCALE,
    twin="configs/mlp_cnn/full.py:19.ARM",
)


def get_config(arm):
    """A norm in all layers, and a factor of the initial hidden weights."""
    name, _, scale = arm.partition("_")
    norm = _protocol.NORMS[name]
    return _protocol.lenet(arm, norm_conv=norm, norm_dense=norm, init_scale=float(scale))
