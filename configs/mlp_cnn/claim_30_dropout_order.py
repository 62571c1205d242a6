"""Trains LeNet with dropout before batch norm, after it, and after the last one only.

Before batch norm, dropout makes the variance of training another than that of the test. Dropout
after one layer's activation is before the next layer's batch norm too; only after the last norm is
it before none. "running" accuracies are with averages of training, "population" ones with
statistics estimated again without dropout.
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.claims import Claim, Control, Group, Scale, Settled, contrast, more

RUNNING, POPULATION = "test.running.accuracy", "test.population.accuracy"
AFTER, BEFORE = ("norm", "act", "dropout"), ("dropout", "norm", "act")
# norms, order, dropout or not, in the last hidden layer alone
ARMS = {
    "plain": (False, AFTER, False, False),
    "plain_last": (False, AFTER, True, True),
    "bn": (True, AFTER, False, False),
    "bn_after": (True, AFTER, True, False),
    "bn_before": (True, BEFORE, True, False),
    "bn_last": (True, AFTER, True, True),
}
SHARES = {"dropout10": 0.1, "dropout30": 0.3, "dropout50": 0.5}
HELPS = Control("dropout helps the net without norms", more("plain_last", "plain", RUNNING), 0.002)
WORDS = "errors that rise when dropout comes before batch norm, tables 1 and 2 (not verified)"
WHY = "the source's tables were not at hand; one point, of an error of 18 % in a pilot"


def claim(letter, title, statement, rule, expect, controls, delta=0.01, why=WHY):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=delta,
        why=why,
        expect=expect,
        controls=controls,
        change="deep networks, in which the shift of the variance adds up over layers",
        methods=("batch norm", "dropout"),
    )


def scale(name, share):
    text = (
        f"LeNet, Fashion-MNIST 14 x 14, 5,000 training images drawn anew, dropout {share:g}, 1,000 "
        "updates of 128 (the source: four deep networks on CIFAR-10 and CIFAR-100)"
    )
    return Scale(name, share, text, replicates=24, minutes=2.0)


GROUP = Group(
    number=30,
    title="Dropout and batch norm: the order",
    topic="dropout",
    source="Li, Chen, Hu, Yang 2019, arXiv:1801.05134",
    axis="share of units dropped",
    scales=tuple(scale(*item) for item in SHARES.items()),
    arms=tuple(ARMS),
    claims=(
        claim(
            "a",
            "Dropout after batch norm beats dropout before it",
            "Dropout after batch norm and ReLU of each layer has a higher test accuracy than "
            "dropout before batch norm",
            more("bn_after", "bn_before", RUNNING),
            WORDS,
            (Settled(),),
        ),
        claim(
            "b",
            "Dropout after the last batch norm alone is best",
            "Dropout after the last batch norm alone has a higher test accuracy than dropout in "
            "every layer",
            more("bn_last", "bn_after", RUNNING),
            WORDS,
            (HELPS, Settled()),
        ),
        claim(
            "c",
            "Dropout before batch norm spoils running statistics",
            "Dropout before batch norm shifts the variance: with statistics estimated again "
            "without dropout the same network has a higher test accuracy",
            contrast(
                "bn_before, test.population − test.running accuracy",
                (1.0, "bn_before", POPULATION),
                (-1.0, "bn_before", RUNNING),
            ),
            "averages that are adjusted without dropout lower the error, section 5 (not verified)",
            (Settled(),),
        ),
        claim(
            "d",
            "Dropout after the last batch norm beats none",
            "Dropout after the last batch norm improves on batch norm without dropout",
            more("bn_last", "bn", RUNNING),
            "gains of about 0.1 to 0.5 points, table 5 (from memory, not verified)",
            (HELPS, Settled()),
            delta=0.0015,
            why="half of the middle of the source's gains, about 0.3 points; not verified",
        ),
    ),
    rates=(0.1, 0.3, 1.0),
)


def get_config(arm, scale="dropout10"):
    """Batch norm in all hidden layers, or none; dropout in all or in the last."""
    normed, order, dropped, last = ARMS[arm]
    norm = _protocol.NORMS["bn" if normed else "none"]
    options = {"norm_conv": norm, "norm_dense": norm, "order": order, "bias": not normed}
    options |= {"dropout": SHARES[scale] if dropped else 0.0, "dropout_last": last}
    return _protocol.lenet(arm, activation="relu", **options, **_protocol.sized("fashion5k"))
