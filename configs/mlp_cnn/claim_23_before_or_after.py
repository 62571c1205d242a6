"""Trains LeNet with batch norm before or after the activation, and with a bias before it."""

from configs.mlp_cnn import _protocol
from experiments.ledger.claims import Claim, Group, more, not_worse, same

ACCURACY = "test.population.accuracy"
ORDERS = {"before": ("norm", "act"), "before_bias": ("norm", "act"), "after": ("act", "norm")}
IOFFE = "Ioffe, Szegedy 2015, section 3.2, arXiv:1502.03167"
MISHKIN = "Mishkin, Sergievskiy, Matas 2016, arXiv:1606.02228"
TABLE = (
    "accuracy of CaffeNet on ImageNet, with scale and bias: about 47.8 % before, 49.3 % after ReLU "
    "(from memory, not verified)"
)
HALF = "half of the about 1.5 points between the two on ImageNet in Mishkin et al.; not verified"


def claim(letter, title, statement, rule, source, expect):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=0.0075,
        why=HALF,
        expect=expect,
        source=source,
        change="deep networks, with a residual path on which the order changes what is summed",
        methods=("batch norm",),
    )


GROUP = Group(
    number=23,
    title="Batch norm before or after the activation",
    topic="batch norm in convolutional networks",
    source="Ioffe, Szegedy 2015; Mishkin et al. 2016",
    axis=_protocol.AXIS,
    scales=_protocol.scales("fashion_mnist", 9, source="Inception, CaffeNet on ImageNet"),
    arms=tuple(ORDERS),
    claims=(
        claim(
            "a",
            "Batch norm before the activation beats after",
            "Batch norm before the nonlinearity is better than after it, since W u + b is more "
            "symmetric and not sparse: higher test accuracy",
            more("before", "after", ACCURACY),
            IOFFE,
            "an argument about distributions, no experiment",
        ),
        claim(
            "b",
            "Batch norm after the activation is not worse",
            "Batch norm after ReLU is no worse than before it: test accuracy is not lower",
            not_worse("after", "before", ACCURACY),
            MISHKIN,
            TABLE,
        ),
        claim(
            "c",
            "A bias before batch norm is useless",
            "A bias before batch norm changes nothing, since the mean is subtracted: test accuracy "
            "is the same with and without it",
            same("before", "before_bias", ACCURACY),
            IOFFE,
            "an identity in training; the bias is left out",
        ),
    ),
    rates=(0.3, 1.0, 3.0),
)


def get_config(arm, scale="fashion5k"):
    """ReLU and batch norm in all four hidden layers."""
    norm = _protocol.NORMS["bn"]
    options = {"order": ORDERS[arm], "bias": arm != "before", **_protocol.sized(scale)}
    return _protocol.lenet(arm, activation="relu", norm_conv=norm, norm_dense=norm, **options)
