"""Trains BN-LSTMs on permuted MNIST with one gamma and beta for all steps, or a pair for each.

A pair for each step adds ten weights a unit and step. The arm `shared_wide` has one pair for all,
and as many more units as make up for these weights.
"""

from configs.recurrent_bn import _lengths
from experiments.ledger.claims import Claim, Group, not_worse

ACCURACY = "test.population.accuracy"


def claim(letter, title, statement, arm):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=not_worse(arm, "per_step", ACCURACY),
        delta=0.026,
        why=f"the source gives no number; {_lengths.WHOLE_GAIN}",
        expect="gamma and beta are shared over time, statistics are not, section 3; no comparison "
        "was published",
        change="the same on text, where a step is no place in a picture",
        methods=("recurrent batch norm",),
    )


GROUP = Group(
    number=5,
    title="Gamma and beta shared over time",
    topic="statistics of steps",
    source=f"{_lengths.COOIJMANS}, section 3",
    axis="length of the sequence in steps",
    scales=_lengths.scales(0, 3.6),  # the wide arm counts as 1.6
    arms=("shared", "per_step", "shared_wide"),
    claims=(
        claim(
            "a",
            "One gamma and beta for all steps do as well",
            "BN-LSTM with one gamma and beta shared over time generalizes no worse than with a "
            "pair for each step",
            "shared",
        ),
        claim(
            "b",
            "One gamma and beta do as well at equal numbers of weights",
            "BN-LSTM with one gamma and beta shared over time generalizes no worse than one with a "
            "pair for each step and the same number of weights",
            "shared_wide",
        ),
    ),
    rates=_lengths.RATES,
)


def weights(hidden, pairs=1):
    """Weights of a BN-LSTM of one input and ten classes, with so many pairs of gamma and beta."""
    cell = 4 * hidden * (1 + hidden + 1) + 2 * hidden  # input, recurrent, bias; h0 and c0
    return cell + 10 * hidden * pairs + 10 * (hidden + 1)  # gammas of x, h, c, beta of c; readout


def get_config(arm, scale="pmnist49"):
    config = _lengths.permuted("bn_lstm", scale)
    steps = int(GROUP.scale(scale).at)
    if arm == "per_step":
        for place in ("norm_x", "norm_h", "norm_c"):
            config.model[place].share_params = False
    if arm == "shared_wide":
        aim = weights(config.model.hidden, steps)
        config.model.hidden = min(range(100, 1000), key=lambda h: abs(weights(h) - aim))
    return config
