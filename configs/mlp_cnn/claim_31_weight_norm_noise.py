"""Trains an MLP with weight norm at large learning rates and in small batches.

Rates are three, ten and thirty times about the plain network's best: 3, 10 and 30 in batches of
128, 0.3, 1 and 3 in batches of 4, with as many updates. The source names recurrent
networks too, which are not tried.
"""

from configs.mlp_cnn import _protocol, _rates
from experiments.ledger.claims import Claim, Control, Group

SMALL = (0.3, 1.0, 3.0)


def claim(letter, title, statement, batch, rates):
    pair = f"wn{batch}_", f"none{batch}_"
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=_rates.ahead(*pair, rates),
        delta=0.13,
        why="the source gives no number; half of what one more of the three rates is worth, from "
        "chance to 0.9",
        expect="the norm of v grows until the step fits: training is robust to the rate (in words)",
        # About rates that training bears, not about where it ends.
        controls=(Control("not all at chance", _rates.alive(*pair, rates=rates), 0.2),),
        change="a deep network, or one that is trained until the norm of v has grown",
        methods=("weight norm",),
    )


GROUP = Group(
    number=31,
    title="Weight norm, large rates and noisy gradients",
    topic="weight norm",
    source="Salimans, Kingma 2016, section 2.1, arXiv:1602.07868",
    axis=_protocol.AXIS,
    scales=_protocol.scales("mnist", 12, cost=0.3, source="no experiment of it"),
    arms=tuple(
        f"{net}{batch}_{rate:g}"
        for batch, rates in (("", _rates.LARGE), ("4", SMALL))
        for net in ("none", "wn")
        for rate in rates
    ),
    claims=(
        claim(
            "a",
            "Weight norm bears larger learning rates",
            "Weight norm makes training robust to the learning rate: at 3 to 30 times the plain "
            "network's best rate its accuracy, averaged over three rates, is higher",
            "",
            _rates.LARGE,
        ),
        claim(
            "b",
            "Weight norm bears the noise of small batches",
            "Weight norm makes training robust to noisy gradients: in batches of 4, at 3 to 30 "
            "times the usual rate, its accuracy, averaged over three rates, is higher",
            "4",
            SMALL,
        ),
    ),
)


def get_config(arm, scale="mnist5k"):
    """Network, batch and rate of an arm."""
    net, _, rate = arm.partition("_")
    config = _rates.mlp(arm, net.rstrip("4"), scale)
    config.optim.learning_rate = float(rate)
    if net.endswith("4"):
        config.batch_size = 4
    return config
