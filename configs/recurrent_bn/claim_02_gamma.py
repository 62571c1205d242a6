"""Trains BN-LSTMs on permuted MNIST from five initial gammas, at three lengths."""

from configs.recurrent_bn import _lengths
from experiments.ledger.claims import Claim, Group, contrast, less

GAMMAS = (0.1, 0.3, 0.5, 0.7, 1.0)
MEAN = sum(GAMMAS) / len(GAMMAS)
SQUARES = sum((gamma - MEAN) ** 2 for gamma in GAMMAS)
WHY = (
    "half of the 0.25 nats between the source's curves of validation loss for 1.0 and 0.1 (read "
    "off the figure after 50,000 updates)"
)
EXPECT = "about 0.45 nats from 1.0 and 0.2 from 0.1 after 50,000 updates, figure of appendix B"

GROUP = Group(
    number=2,
    title="The initial gamma of BN-LSTM",
    topic="horizontal batch norm",
    source="Cooijmans et al., ICLR 2017, arXiv:1603.09025, section 4 and appendix B",
    axis="length of the sequence in steps",
    scales=_lengths.scales(0, 5),
    arms=tuple(f"gamma_{gamma}" for gamma in GAMMAS),
    claims=(
        Claim(
            letter="a",
            title="The larger its initial gamma, the slower BN-LSTM learns",
            statement="On permuted MNIST, the mean validation loss over the run rises with the "
            "initial gamma of BN-LSTM (line through 0.1, 0.3, 0.5, 0.7 and 1)",
            rule=contrast(
                "rise of the line from gamma 0.1 to 1, area.valid",
                *((0.9 * (g - MEAN) / SQUARES, f"gamma_{g}", "area.valid") for g in GAMMAS),
            ),
            delta=0.125,
            why=WHY,
            expect=f"curves in the order of gamma; {EXPECT}",
            published=0.25,
            controls=(),  # about the speed of training, not its end
            change="the source's 100,000 updates at 784 steps, with more than one seed",
            methods=("recurrent batch norm",),
        ),
        Claim(
            letter="b",
            title="BN-LSTM learns faster from gamma 0.1 than from 1",
            statement="On permuted MNIST, BN-LSTM with an initial gamma of 0.1 has a lower mean "
            "validation loss over the run than with 1, the usual start of batch norm",
            rule=less("gamma_0.1", "gamma_1.0", "area.valid"),
            delta=0.125,
            why=WHY,
            expect=f"{EXPECT}; 1.0 near chance until about 27,000 updates",
            published=0.25,
            controls=(),  # about the speed of training, not its end
            change="the source's 100,000 updates at 784 steps, with more than one seed",
            methods=("recurrent batch norm",),
        ),
    ),
    rates=_lengths.RATES,
)


def get_config(arm, scale="pmnist49"):
    return _lengths.permuted("bn_lstm", scale, float(arm.removeprefix("gamma_")))
