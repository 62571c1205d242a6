"""Trains an MLP at nine learning rates, with batch norm, layer norm, weight norm and none.

Claim a averages over rates of 3 to 30: on 5,000 images batch norm has 95 % of test answers right at
3, 39 % at 10 and 10 %, chance, at 30, where claim b compares it.
"""

from configs.mlp_cnn import _protocol, _rates
from experiments.ledger.claims import Claim, Control, Group, Settled, contrast, less, more, same

ACCURACY = _rates.ACCURACY
IOFFE = "Ioffe, Szegedy 2015, sections 3.3 and 4.2.2, arXiv:1502.03167"
LEARNS = Control(
    "the plain network learns at rate 1",
    contrast(f"none_1, {ACCURACY}", (1.0, "none_1", ACCURACY)),
    0.5,
)
TABLE = (
    "accuracy on ImageNet about 72.2 % without batch norm, which diverges at 5 times its rate; "
    "with it about 72.7 % at the usual rate, 73.0 % at 5 times and 74.8 % at 30 times that, "
    "figure 3 (from memory, not verified)"
)


def claim(letter, title, statement, rule, delta, why, *, source=IOFFE, expect=TABLE, **more_of_it):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=delta,
        why=why,
        expect=expect,
        source=source,
        controls=more_of_it.pop("controls", (LEARNS,)),  # about rates, not about where runs end
        change="a deep network, and a schedule that lowers the rate",
        methods=("layer norm",) if letter == "e" else ("batch norm",),
        **more_of_it,
    )


GROUP = Group(
    number=18,
    title="Norms and large learning rates",
    topic="learning rate",
    source="Ioffe, Szegedy 2015; Bjorck et al. 2018; Ba, Kiros, Hinton 2016",
    axis=_protocol.AXIS,
    scales=_protocol.scales("mnist", 36, cost=0.3, source="Inception on ImageNet"),
    arms=tuple(f"{net}_{rate:g}" for net in _rates.NETS for rate in _rates.RATES),
    claims=(
        claim(
            "a",
            "Batch norm trains at rates that plain networks do not bear",
            "At 3 to 30 times the best rate of the plain network, batch norm trains and the plain "
            "network does not: its accuracy, averaged over rates 3, 10 and 30, is higher",
            _rates.ahead("bn_", "none_"),
            0.36,
            "half of the 73 points between a trained and a diverged network; not verified",
            published=0.73,
        ),
        claim(
            "b",
            "With batch norm 30 times the usual rate is better",
            "With batch norm, 30 times the plain network's best rate gives a higher accuracy than "
            "that rate itself",
            more("bn_30", "bn_1", ACCURACY),
            0.0105,
            "half of about 2.1 points, 74.8 against 72.7 %; not verified",
            published=0.021,
        ),
        claim(
            "c",
            "Batch norm trains faster at the same small rate",
            "At the same rate, a tenth of the plain network's best, batch norm trains faster",
            less("bn_0.1", "none_0.1", "area.train"),
            0.05,
            "the source gives steps and no loss; a tenth of the plain network's mean training loss "
            "in a pilot (0.5)",
            expect="the usual rate: 72.2 % after 13.3 instead of 31.0 million steps, figure 3 "
            "(about, not verified)",
        ),
        claim(
            "d",
            "At the same small rate batch norm tests no better",
            "At the same small rate, a tenth of the plain network's best, batch norm ends with no "
            "higher accuracy: its gain is that it bears larger rates",
            same("bn_0.1", "none_0.1", ACCURACY),
            0.0105,
            "the source shows curves; half of the gain of about 2.1 points that 18b's source "
            "reports at a large rate; not verified",
            source="Bjorck et al. 2018, arXiv:1806.02375",
            expect="curves of a ResNet on CIFAR-10 at rate 0.0001 that end close to each other, "
            "figure 1 (from memory, not verified)",
            controls=(Settled(),),
        ),
        claim(
            "e",
            "Layer norm trains at rates that plain networks do not bear",
            "As weights grow, layer norm lowers the rate at which they turn, so that it bears "
            "rates at which the plain network fails: higher mean accuracy over rates 3, 10 and 30",
            _rates.ahead("ln_", "none_"),
            0.13,
            "the source gives no number; half of what one more of the three rates is worth, from "
            "chance to 0.9",
            source="Ba, Kiros, Hinton 2016, section 5.2, arXiv:1607.06450",
            expect="an argument about the geometry of parameters, no experiment",
        ),
    ),
)


def get_config(arm, scale="mnist5k"):
    """A norm and a rate."""
    net, _, rate = arm.partition("_")
    config = _rates.mlp(arm, net, scale)
    config.optim.learning_rate = float(rate)
    return config
