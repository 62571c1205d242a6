"""Trains LeNet with layer norm or batch norm after its convolutions.

In convolutional networks, the paper says, units far from the image's centre are rarely active and
so have other statistics; tutorials turn this into "layer norm destroys the features". Layer norm is
over channels, rows and columns, or over channels alone.
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.claims import Claim, Control, Group, Settled, contrast, more, not_worse

ACCURACY = "test.population.accuracy"
NORMS = {
    "none": {"name": "none"},
    "ln": {"name": "layer_norm", "axes": [-3, -2, -1], "feature_axes": [-1]},
    "ln_channels": {"name": "layer_norm"},
    "bn": _protocol.NORMS["bn"],
}
LEARNS = Control(
    "LeNet without a norm learns", contrast(f"none, {ACCURACY}", (1.0, "none", ACCURACY)), 0.5
)
BA = "Ba, Kiros, Hinton 2016, section 6.7, arXiv:1607.06450"


def claim(letter, title, rule, delta, why, expect, statement="", source=BA, **more_of_it):
    return Claim(
        letter=letter,
        title=title,
        statement=statement or f"{title} of a convolutional network",
        rule=rule,
        delta=delta,
        why=why,
        expect=expect,
        source=source,
        controls=more_of_it.pop("controls", (LEARNS, Settled())),
        change="deep convolutional networks, whose layer norms see more places and channels",
        methods=("layer norm", "batch norm") if letter == "d" else ("layer norm",),
        **more_of_it,
    )


POINT = "the source gives no number; one point, a seventh of the error without a norm (7 %)"
FASTER = "layer norm trains faster than no norm, and batch norm is better than both (in words)"
GROUP = Group(
    number=15,
    title="Layer norm after convolutions",
    topic="layer norm",
    source="Ba, Kiros, Hinton 2016, section 6.7, and tutorials after it; Wu, He 2018",
    axis=_protocol.AXIS,
    scales=_protocol.scales("mnist", 12, source="no network named; ImageNet in Wu, He"),
    arms=tuple(NORMS),
    claims=(
        claim(
            "a",
            "Layer norm after convolutions keeps a net from learning",
            more("ln", "none", "train.loss"),
            1.15,
            "a network that cannot converge stays at the loss of chance, ln 10; half of that",
            "the model cannot converge (in words)",
            statement="With layer norm after its convolutions a network cannot converge: its "
            "training loss ends near that of chance",
            source="tutorials after Ba, Kiros, Hinton 2016, section 6.7",
            controls=(LEARNS,),
        ),
        claim(
            "b",
            "Layer norm over whole maps loses no test accuracy",
            not_worse("ln", "none", ACCURACY),
            0.01,
            POINT,
            FASTER,
        ),
        claim(
            "c",
            "Layer norm over channels loses no test accuracy",
            not_worse("ln_channels", "none", ACCURACY),
            0.01,
            POINT,
            FASTER,
        ),
        claim(
            "d",
            "Batch norm after convolutions beats layer norm",
            more("bn", "ln", ACCURACY),
            0.0085,
            "half of the 1.7 points between ResNet-50s on ImageNet",
            "validation error of ResNet-50 on ImageNet: batch norm 23.6 %, layer norm 25.3 %, "
            "figure 4 and table 1",
            statement="After convolutions batch norm has a higher test accuracy than layer norm",
            source="Ba, Kiros, Hinton 2016, section 6.7; Wu, He 2018, arXiv:1803.08494",
            published=0.017,
        ),
    ),
    rates=(0.1, 0.3, 1.0),
)


def get_config(arm, scale="mnist5k"):
    """A norm after both convolutions, before ReLU; none in the dense layers."""
    size = _protocol.sized(scale)
    return _protocol.lenet(arm, activation="relu", norm_conv=NORMS[arm], **size)
