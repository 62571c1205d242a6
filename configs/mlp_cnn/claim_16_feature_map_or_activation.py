"""Trains LeNet with batch norm of each feature map, or of each activation.

22 scales against 1,120. MNIST's digits are centred, so that a place has a meaning of its own, which
no place of a photograph has; the larger scales take that away.
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.claims import Claim, Group, Scale, more

SHIFTS = {"shift0": 0, "shift2": 2, "shift4": 4}


def scale(name, most):
    moved = f"each moved by up to {most} pixels" if most else "centred as they are"
    text = (
        f"MNIST 14 x 14, 5,000 training images drawn anew, {moved}, 1,000 updates of 128 (the "
        "source: ImageNet)"
    )
    return Scale(name, most, text, replicates=48, minutes=0.65)


GROUP = Group(
    number=16,
    title="Batch norm of feature maps or of activations",
    topic="batch norm in convolutional networks",
    source="Ioffe, Szegedy 2015, section 3.2, arXiv:1502.03167",
    axis="largest move of an image, in pixels of 28",
    scales=tuple(scale(*item) for item in SHIFTS.items()),
    arms=("map", "activation"),
    claims=(
        Claim(
            letter="",
            title="One statistic a feature map beats one an activation",
            statement="After convolutions batch norm should normalize all places of a feature map "
            "alike: one mean, variance, scale and bias for each map give a higher test accuracy "
            "than one for each activation",
            rule=more("map", "activation", "test.population.accuracy"),
            delta=0.01,
            why="the source gives no number; one point, a seventh of the error without a norm "
            "(7 %)",
            expect="batch norm obeys the convolutional property (an argument, no experiment)",
            change="photographs, whose content has no fixed place",
            methods=("batch norm",),
        ),
    ),
    rates=(0.1, 0.3, 1.0),
)


def get_config(arm, scale="shift0"):
    """Batch norm after both convolutions; an average over the batch alone is one an activation."""
    norm = dict(_protocol.NORMS["bn"])
    if arm == "activation":
        norm["axes"] = 0
    size = _protocol.sized("mnist5k")
    config = _protocol.lenet(arm, activation="relu", norm_conv=norm, **size)
    config.data.shift = SHIFTS[scale]
    return config
