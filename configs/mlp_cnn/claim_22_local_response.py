"""Trains LeNet with batch norm, local response normalization, both and none."""

from configs.mlp_cnn import _protocol
from experiments.ledger.claims import Claim, Control, Group, Settled, more, same

ACCURACY = "test.population.accuracy"
HELPS = "half of the about 1.4 points that it gave AlexNet on ImageNet (from memory, not verified)"
GROUP = Group(
    number=22,
    title="Local response normalization beside batch norm",
    topic="local response normalization",
    source="Ioffe, Szegedy 2015, section 4.2.1, arXiv:1502.03167",
    axis=_protocol.AXIS,
    scales=_protocol.scales("fashion_mnist", 12, cost=1.4, source="Inception on ImageNet"),
    arms=("none", "lrn", "bn", "bn_lrn"),
    claims=(
        Claim(
            letter="",
            title="Local response norm adds nothing beside batch norm",
            statement="With batch norm, local response normalization is not necessary: with and "
            "without it test accuracy is the same",
            rule=same("bn_lrn", "bn", ACCURACY),
            delta=0.007,
            why=HELPS,
            expect="removed; other networks benefit from it, batch norm makes it needless (in "
            "words)",
            controls=(
                Control("it helps without batch norm", more("lrn", "none", ACCURACY), 0.007),
                Settled(),
            ),
            change="a network and data on which local response normalization helps alone",
            methods=("local response norm", "batch norm"),
        ),
    ),
    rates=(0.1, 0.3, 1.0),
)


def get_config(arm, scale="fashion5k"):
    """Convolution, batch norm, ReLU, local response over 5 maps, pool; AlexNet's constants."""
    bn = _protocol.NORMS["bn" if "bn" in arm else "none"]
    response = {"name": "local_response_norm", "k": 2.0} if "lrn" in arm else {"name": "none"}
    size = {"order": ("norm", "act", "response"), **_protocol.sized(scale)}
    return _protocol.lenet(arm, activation="relu", norm_conv=bn, response=response, **size)
