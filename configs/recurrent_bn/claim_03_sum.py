"""Trains LSTMs on permuted MNIST with one norm on the sum of both terms, or one on each.

Gamma is that of all norms of an arm, the cell's too.
"""

from configs.recurrent_bn import _lengths
from experiments.ledger.claims import Claim, Group, more, not_worse

ACCURACY = "test.population.accuracy"
DS2 = "Amodei et al., ICML 2016, arXiv:1512.02595, section 3.2"


def claim(letter, title, statement, rule, expect, source, why="the source gives no number; "):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=0.026,
        why=f"{why}{_lengths.WHOLE_GAIN}",
        expect=expect,
        source=source,
        change="the same at 784 steps, or in the sources' stacks on speech",
        methods=("recurrent batch norm",),
    )


GROUP = Group(
    number=3,
    title="One norm on the sum of input and recurrent term",
    topic="horizontal batch norm",
    source=f"{_lengths.LAURENT}; {DS2}; {_lengths.COOIJMANS}",
    axis="length of the sequence in steps",
    scales=_lengths.scales(1, 3),
    arms=("lstm", "bn_lstm", "bn_sum_0.1", "bn_sum_1.0"),
    claims=(
        claim(
            "a",
            "Batch norm of the sum with gamma 1 does not help",
            "Batch norm (gamma 1, statistics of each step) of the sum of input and recurrent term "
            "does not help: the net without norm does not generalize worse",
            not_worse("lstm", "bn_sum_1.0", ACCURACY),
            "equal to the baseline or worse on Penn Treebank characters (section 4, as reported by "
            "others, not verified); no benefit in Deep Speech 2",
            f"{_lengths.LAURENT}, section 4; {DS2}",
        ),
        claim(
            "b",
            "Norms on each term are better than one on their sum",
            "BN-LSTM generalizes better with a norm on the input term and one on the recurrent "
            "term than with one norm on their sum, all with gamma 0.1",
            more("bn_lstm", "bn_sum_0.1", ACCURACY),
            "the terms are normalized apart, section 3; the authors' script can normalize the sum, "
            "without a published result",
            _lengths.COOIJMANS,
        ),
        claim(
            "c",
            "The norm of the sum wants gamma 0.1, not 1",
            "It was gamma = 1 that made the norm of the sum fail: with 0.1 it generalizes better",
            more("bn_sum_0.1", "bn_sum_1.0", ACCURACY),
            "the source explains the failure of others by their gamma of 1, section 4",
            _lengths.COOIJMANS,
        ),
    ),
    rates=_lengths.RATES,
)


def get_config(arm, scale="pmnist49"):
    variant, _, gamma = arm.rpartition("_") if arm.startswith("bn_sum") else (arm, "", "")
    return _lengths.permuted(variant, scale, float(gamma) if gamma else None)
