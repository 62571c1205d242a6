"""Trains LeNet with layer norm after its convolutions.

In convolutional networks, the source says, units far from the image's centre are rarely active, so
they have other statistics; tutorials turn this into "layer norm destroys the features of
convolutions". The arms normalize over channels, rows and columns, or over channels alone.
"""

from experiments.ledger.rules import Claim, less

from configs.mlp_cnn import _protocol

WHOLE = {"name": "layer_norm", "axes": [-3, -2, -1], "feature_axes": [-1]}
NORMS = {"none": {"name": "none"}, "ln": WHOLE, "ln_channels": {"name": "layer_norm"}}

CLAIM = Claim(
    number=15,
    statement="Layer norm after convolutions destroys features: test accuracy falls below that "
    "without a norm",
    source="tutorials after Ba, Kiros, Hinton 2016, section 6.7",
    expect="test accuracy of both layer norms below none",
    arms=tuple(NORMS),
    rules=(
        less("ln", "none", "test.population.accuracy"),
        less("ln_channels", "none", "test.population.accuracy"),
    ),
    rates=(0.03, 0.1, 0.3),
    tune="valid.population.accuracy",
    minutes=3,
    scale=_protocol.SCALE,
    twin="configs/mlp_cnn/full.py:15.ARM",
)


def get_config(arm):
    """A norm after both convolutions, before ReLU; none in the dense layers."""
    return _protocol.lenet(arm, activation="relu", norm_conv=NORMS[arm])
