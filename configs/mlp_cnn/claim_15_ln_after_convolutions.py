"""Layer norm after convolutions.

Paper:     Ba, Kiros, Hinton, "Layer Normalization", 2016, section 6.7: in convolutional networks
           units far from the image's centre are rarely active, so they have other statistics;
           tutorials make it "layer norm destroys the features of convolutions".
Claim:     layer norm after convolutions does harm.
Expected:  test accuracy below that without a norm, over channels, rows and columns or over
           channels alone.
Twin:      configs/mlp_cnn/full.py:15.ARM
Cost:      3 arms, 8 runs of 300 steps each: about 3 minutes on two CPU cores.
Command:   python -m experiments.claim 15
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.rules import Claim, less

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
)


def get_config(arm):
    """A norm after both convolutions, before ReLU; none in the dense layers."""
    return _protocol.lenet(arm, activation="relu", norm_conv=NORMS[arm])
