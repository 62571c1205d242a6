"""Trains BN-LSTM on permuted MNIST and tests it with statistics of each step or shared over time.

Training uses each batch's own statistics of each step, so one run answers for all: afterwards the
population statistics are estimated anew, per step or over all steps, in some of the places. Each
kind of statistics picks its own learning rate, and so other networks; at one rate, 0.003, the
differences of the first record are 0.71 (a), 0.25 (b) and 0.71 (c).
"""

from configs.recurrent_bn import _lengths, _statistics
from experiments.ledger.claims import Claim, Group, more

SHARED = {"each": (), "all": ("norm_x", "norm_h", "norm_c"), "h": ("norm_h",), "x": ("norm_x",)}


def claim(letter, title, statement, shared):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=more("bn_lstm", "bn_lstm", "accuracy.each", other=f"accuracy.{shared}"),
        delta=0.052,
        why="the source gives no number; the 5.2 points of its table 1: a loss of that size undoes "
        "all that batch norm gains there",
        expect="sharing statistics over time hurts badly, because of the initial transient, "
        "section 3; the source does not take the terms apart",
        change="statistics of the first steps apart and one for all later ones",
        methods=("recurrent batch norm", "population statistics"),
    )


GROUP = Group(
    number=4,
    title="Population statistics shared over time",
    topic="statistics of steps",
    source="Cooijmans et al., ICLR 2017, arXiv:1603.09025, section 3",
    axis="length of the sequence in steps",
    scales=_lengths.scales(0, 1.2, middle="cpu"),  # 0.2: four times the statistics
    arms=("bn_lstm",),
    claims=(
        claim(
            "a",
            "Population statistics shared over time fail",
            "At test, BN-LSTM is far worse with population statistics averaged over time than with "
            "those of each step",
            "all",
        ),
        claim(
            "b",
            "Shared statistics of the recurrent term alone fail",
            "At test, averaging the population statistics of the recurrent term alone over time "
            "makes BN-LSTM far worse",
            "h",
        ),
        claim(
            "c",
            "Shared statistics of the input term alone fail",
            "At test, averaging the population statistics of the input term alone over time makes "
            "BN-LSTM far worse",
            "x",
        ),
    ),
    rates=_lengths.RATES,
)


def get_config(arm, scale="pmnist49"):
    return _lengths.permuted(arm, scale)


def extra(finished):
    """Test accuracy with population statistics shared over time in some places."""
    found = {}
    for name, places in SHARED.items():
        task, exact = _statistics.population(finished, places)
        scores = _statistics.score(finished, task, exact, finished.dataset.test)
        found[f"accuracy.{name}"] = scores["accuracy"]
    return found
