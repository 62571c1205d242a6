"""Lists the questions on which the sources disagree, what each says, and the claims that ask them.

The page "Where the sources disagree" is made from it. A stance is "+" for yes, "−" for no and "0"
for no difference. A claim is named by its id, such as "6a"; what was found is in its verdict.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Answer = Literal["+", "−", "0"]


@dataclasses.dataclass(frozen=True)
class Stance:
    """What one source says to a question.

    Attributes:
        source: first author and year.
        stance: its answer.
        says: the answer in words.
        where: the place in the source, with its arXiv number.
    """

    source: str
    stance: Answer
    says: str
    where: str


@dataclasses.dataclass(frozen=True)
class Dispute:
    """A question with more than one answer.

    Attributes:
        name: of its section, for links.
        question: one that "yes" or "no" answers.
        stances: of the sources.
        claims: ids of the claims that ask it here.
        why: what may explain the disagreement.
    """

    name: str
    question: str
    stances: tuple[Stance, ...]
    claims: tuple[str, ...]
    why: str = ""


LAURENT, AMODEI, COOIJMANS = "Laurent 2016", "Amodei 2016", "Cooijmans 2017"
BA, IOFFE, SANTURKAR = "Ba 2016", "Ioffe 2015", "Santurkar 2018"
OF_LAURENT, OF_AMODEI, OF_COOIJMANS = "arXiv:1510.01378", "arXiv:1512.02595", "arXiv:1603.09025"
OF_BA = "arXiv:1607.06450"

DISPUTES = (
    Dispute(
        "horizontal",
        "Does batch norm of the recurrent term help?",
        (
            Stance(
                LAURENT,
                "−",
                "normalizing the recurrent term does not help",
                f"abstract, {OF_LAURENT}",
            ),
            Stance(
                AMODEI,
                "−",
                "normalizing the whole pre-activation, input and recurrent term as one, did not "
                "help",
                f"section 3.2, {OF_AMODEI}",
            ),
            Stance(
                COOIJMANS,
                "+",
                "better on all of its tasks, with the two terms normalized apart, statistics of "
                "each step, and gamma starting at 0.1",
                f"sections 3 and 5, {OF_COOIJMANS}",
            ),
        ),
        ("1a", "1b", "3a", "3b", "6a", "6b", "6c", "12a", "12c"),
        "Cooijmans et al. explain the earlier failures by gamma, which started at 1. The earlier "
        "cells also had one norm on the sum.",
    ),
    Dispute(
        "vertical",
        "Does batch norm of the input term alone help?",
        (
            Stance(
                LAURENT,
                "0",
                "the training loss falls faster, generalization does not improve",
                f"abstract, {OF_LAURENT}",
            ),
            Stance(
                AMODEI,
                "+",
                "in stacks of 3, 5 and 7 layers the word error rate falls by 1.05, 0.99 and 1.31 "
                "points",
                f"table of architectures, {OF_AMODEI}",
            ),
            Stance(
                AMODEI,
                "−",
                "with a single layer it rises by 0.85 points",
                f"table of architectures, {OF_AMODEI}",
            ),
        ),
        ("6d", "6e", "9a", "9b", "10a", "10b", "11a"),
        "Amodei et al. have far more data, 11,940 hours of speech.",
    ),
    Dispute(
        "gamma",
        "Should gamma start far below 1 in a recurrent layer?",
        (
            Stance(
                COOIJMANS,
                "+",
                "0.1 for batch norm: on permuted MNIST larger values learn more slowly",
                f"section 4 and appendix B, {OF_COOIJMANS}",
            ),
            Stance(
                COOIJMANS,
                "0",
                "on characters of the Penn Treebank gamma hardly matters",
                f"appendix B, {OF_COOIJMANS}",
            ),
            Stance(
                BA,
                "−",
                "1 for layer norm: clearly better than 0.1",
                f"section 6.2, {OF_BA}",
            ),
        ),
        ("2a", "2b", "3c", "8a", "8b", "12b"),
    ),
    Dispute(
        "per-step",
        "Do statistics have to be those of each step?",
        (
            Stance(
                COOIJMANS,
                "+",
                "averages over time hurt badly, because the first steps differ from the rest",
                f"section 3, {OF_COOIJMANS}",
            ),
            Stance(
                LAURENT,
                "0",
                "of each step for language models, where later steps may not be seen; over batch "
                "and time for speech",
                OF_LAURENT,
            ),
            Stance(
                AMODEI,
                "−",
                "over the batch and the whole length, for the input term",
                f"section 3.2, {OF_AMODEI}",
            ),
        ),
        ("4a", "4b", "4c", "7e"),
        "Statistics over time were used for the input term, which has no transient of its own.",
    ),
    Dispute(
        "layer-norm",
        "Does layer norm do better than batch norm, or no norm, in recurrent layers?",
        (
            Stance(
                BA,
                "+",
                "faster and lower validation error than BN-LSTM in the attentive reader; faster "
                "than no norm in order embeddings, DRAW and handwriting",
                f"section 6, {OF_BA}",
            ),
            Stance(
                BA,
                "0",
                "the likelihood of handwriting ends the same as without a norm",
                f"section 6, {OF_BA}",
            ),
        ),
        ("8c", "8d", "25a"),
    ),
    Dispute(
        "covariate-shift",
        "Does batch norm work because it reduces covariate shift?",
        (
            Stance(
                IOFFE,
                "+",
                "the inputs of layers keep their distribution, which is why training is faster",
                "sections 2 and 4.1, arXiv:1502.03167",
            ),
            Stance(
                SANTURKAR,
                "−",
                "the shift of gradients does not shrink; the loss becomes smoother",
                "sections 2 and 3, arXiv:1805.11604",
            ),
        ),
        ("28a", "28b", "28d"),
    ),
    Dispute(
        "dynamic-tanh",
        "Is a language model worse with dynamic tanh than with its norms?",
        (
            Stance(
                "Zhu 2025",
                "0",
                "large language models match those with RMS norm",
                "abstract, arXiv:2503.10622",
            ),
            Stance(
                "Verma 2026",
                "+",
                "GPT-2 of 64 million weights on 118 million tokens: validation loss 18.8 % worse",
                "abstract, arXiv:2604.23434",
            ),
            Stance(
                "Verma 2026",
                "−",
                "the same network on 1 million tokens: 27.3 % better",
                "abstract, arXiv:2604.23434",
            ),
        ),
        ("41b",),
        "Verma explains it by regularization: tanh bounds what a network can fit, which helps "
        "where data are few.",
    ),
    Dispute(
        "pre-norm",
        "Is a transformer as good with its norms before the layers as with norms after the sums?",
        (
            Stance(
                "Xiong 2020",
                "+",
                "comparable results without warm-up, in less time",
                "abstract, arXiv:2002.04745",
            ),
            Stance(
                "Nguyen 2019",
                "+",
                "on five small translation sets it trains without warm-up at large rates",
                "abstract, arXiv:1910.05895",
            ),
            Stance(
                "Nguyen 2019",
                "−",
                "on a large translation set it is worse",
                "abstract, arXiv:1910.05895",
            ),
        ),
        ("41f", "44a", "44b"),
    ),
)
