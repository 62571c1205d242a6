"""Trains small character transformers at up to five learning rates, by their norms' places.

An arm is a network of group 41 and a rate of its own. "pre" and "post" have layer norm before the
layers or after the sums, and "qk" is "pre" with a layer norm of queries and keys too; "cold"
networks have no warm-up. A run that diverges scores the loss of a uniform guess, log(65). Any other
is scored at its best evaluation, so that most failures are near the 3.3 nats of characters that are
guessed by frequency.
"""

from configs.language import _transformers
from configs.language._transformers import LOSS
from experiments.ledger.claims import Claim, Control, Group, contrast

NETS = {
    "pre": {"norm": "ln"},
    "pre_cold": {"norm": "ln", "warm": False},
    "post": {"norm": "ln", "position": "post"},
    "post_cold": {"norm": "ln", "position": "post", "warm": False},
    "qk": {"norm": "ln", "qk": True},
}
USUAL = 1e-3
LARGE = (1e-2, 3e-2, 1e-1)
LARGER = (3e-2, 1e-1, 3e-1)  # pre-norm still trains at 0.03 in a pilot of 200 updates
RATES = dict.fromkeys(NETS, (USUAL, *LARGE))
RATES |= {"pre": (USUAL, *LARGE, LARGER[-1]), "qk": (USUAL, *LARGER)}
DELTA, OF_QK = 0.17, 0.11
WHY = (
    "no source has a number in these units; half of what one more of the three rates is worth at "
    "which a network learns: 2.33 nats against 3.35, pre-norm and post-norm without warm-up at "
    "rate 0.03 in a pilot of 200 updates (one seed)"
)
WHY_OF_QK = (
    "the sources show curves; half of the 0.22 nats that pre-norm lost from rate 0.03 to 0.1 in a "
    "pilot of 200 updates (2.33, without warm-up, and 2.55 nats; one seed)"
)
XIONG = "Xiong et al. 2020, arXiv:2002.04745"
NGUYEN = "Nguyen, Salazar 2019, arXiv:1910.05895"
WORTSMAN = "Wortsman et al. 2023, arXiv:2309.14322"


def mean(weight, net, rates=LARGE):
    """Terms of a network's mean loss over large rates."""
    return tuple((weight / len(rates), f"{net}_{rate:g}", LOSS) for rate in rates)


def over(rates):
    return f"mean over rates {', '.join(f'{rate:g}' for rate in rates)}, {LOSS}"


def learns(*nets):
    """The control that networks learn at the usual rate: more than pairs of characters (0.28)."""
    share, metric = 1 / len(nets), "valid.population.accuracy"
    arms = [f"{net}_{USUAL:g}" for net in nets]
    label = f"mean {metric} of {', '.join(arms)}"
    rule = contrast(label, *((share, arm, metric) for arm in arms))
    return Control(f"at rate {USUAL:g} {' and '.join(nets)} learn", rule, 0.35)


HURT = Control(
    "large rates hurt without QK-norm",
    contrast(
        f"pre, {over(LARGER)}, − at {USUAL:g}",
        *mean(1.0, "pre", LARGER),
        (-1.0, f"pre_{USUAL:g}", LOSS),
    ),
    2 * OF_QK,
)


def claim(letter, title, statement, rule, source, expect, controls):
    qk = letter == "c"
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=OF_QK if qk else DELTA,
        why=WHY_OF_QK if qk else WHY,
        expect=expect,
        controls=controls,  # about rates at which training may fail, not about where it ends
        source=source,
        change="other optimizers, and widths at which attention logits grow large",
        methods=("QK-norm", "layer norm") if qk else ("layer norm",),
    )


GROUP = Group(
    number=44,
    title="Large learning rates in a small character transformer",
    topic="learning rate",
    source="Xiong et al. 2020; Nguyen, Salazar 2019; Dehghani et al. 2023; Wortsman et al. 2023",
    axis="blocks",
    scales=_transformers.scales(
        sum(map(len, RATES.values())), "translation with 6 and 6 blocks; 3 to 32 blocks of text"
    ),
    arms=tuple(f"{net}_{rate:g}" for net, rates in RATES.items() for rate in rates),
    claims=(
        claim(
            "a",
            "Without warm-up pre-norm bears larger rates than post-norm",
            "Without warm-up, a character transformer with layer norm before its layers has a "
            "lower test loss than one with layer norm after the sums, averaged over rates of 10, "
            "30 and 100 times the usual 0.001",
            contrast(
                f"post_cold − pre_cold, {over(LARGE)}",
                *mean(1.0, "post_cold"),
                *mean(-1.0, "pre_cold"),
            ),
            f"{NGUYEN}, abstract; {XIONG}, abstract",
            "pre-norm and small initial weights enable training without warm-up at large rates (in "
            "words); gradients near the output of post-norm are large at the start (a theorem)",
            (learns("pre_cold", "post_cold"),),
        ),
        claim(
            "b",
            "Warm-up rescues post-norm more than pre-norm",
            "Averaged over rates of 10, 30 and 100 times the usual 0.001, warm-up lowers the test "
            "loss more in a character transformer with layer norm after the sums than in one with "
            "layer norm before its layers",
            contrast(
                f"(post_cold − post) − (pre_cold − pre), {over(LARGE)}",
                *mean(1.0, "post_cold"),
                *mean(-1.0, "post"),
                *mean(-1.0, "pre_cold"),
                *mean(1.0, "pre"),
            ),
            XIONG,
            "warm-up is essential for post-norm and can be removed with pre-norm, abstract",
            (learns("pre", "post"),),
        ),
        claim(
            "c",
            "QK-norm bears larger rates",
            "Averaged over rates of 30, 100 and 300 times the usual 0.001, norms of queries and "
            "keys lower the test loss of a character transformer with layer norm before its layers "
            "and warm-up",
            contrast(
                f"pre − qk, {over(LARGER)}", *mean(1.0, "pre", LARGER), *mean(-1.0, "qk", LARGER)
            ),
            f"{WORTSMAN}, and Dehghani et al. 2023, arXiv:2302.05442",
            "attention logits grow at large rates in small models too, and QK-norm widens the "
            "range of rates with a loss near the best, at all widths, figure 1 (in words)",
            (learns("pre", "qk"), HURT),
        ),
    ),
)


def get_config(arm, scale="blocks2"):
    """A network and a rate."""
    net, _, rate = arm.rpartition("_")
    config = _transformers.transformer(arm, scale, **NETS[net])
    config.optim.learning_rate = float(rate)
    return config
