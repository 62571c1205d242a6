"""Trains an MLP from hidden weights of three scales under four norms, at nine learning rates.

The rate is tuned for every scale, as anyone would who sees a network that does not train; at one
rate for all the differences are larger, which the rate curves of the record show.
"""

from configs.mlp_cnn import _protocol, _rates
from experiments.ledger.claims import Claim, Group, contrast

ACCURACY = _rates.ACCURACY
IOFFE = "Ioffe, Szegedy 2015, section 3.3, arXiv:1502.03167"
BA = "Ba, Kiros, Hinton 2016, section 5.1 and table 1, arXiv:1607.06450"
SALIMANS = "Salimans, Kingma 2016, section 3, arXiv:1602.07868"
SHORT = {"none": "plain", "wn": "WN"}
NAMES = {"bn": "batch norm", "ln": "layer norm", "wn": "weight norm", "none": "plain weights"}


def claim(letter, norm, other, scale, source, expect):
    times = {"0.1": "a tenth of the weights", "5": "five times the weights"}[scale]
    return Claim(
        letter=letter,
        title=f"{times.capitalize()}: {norm.upper()} loses less than {SHORT[other]}",
        statement=f"Training from {times} of the usual initialization costs less accuracy with "
        f"{NAMES[norm]} than with {NAMES[other]}",
        rule=contrast(
            f"({other}_1 − {other}_{scale}) − ({norm}_1 − {norm}_{scale}), {ACCURACY}",
            (1.0, f"{other}_1", ACCURACY),
            (-1.0, f"{other}_{scale}", ACCURACY),
            (-1.0, f"{norm}_1", ACCURACY),
            (1.0, f"{norm}_{scale}", ACCURACY),
        ),
        delta=0.02,
        why="the source gives no number; two points, a third of the plain network's error in a "
        "pilot (7 %)",
        expect=expect,
        source=source,
        change="a deep network, in which the scale goes with the power of the depth",
        methods=tuple(NAMES[n] for n in (norm, other) if n != "none"),
    )


SAYS = {
    "bn": "less careful initialization (in words): batch norm of a W is that of W",
    "ln": "layer norm does not change when all weights are rescaled, table 1",
    "wn": "weight norm does not fix the scale of features, so its start matters (in words)",
}
GROUP = Group(
    number=19,
    title="Norms and the scale of the initial weights",
    topic="initialization",
    source="Ioffe, Szegedy 2015; Ba, Kiros, Hinton 2016; Salimans, Kingma 2016",
    axis=_protocol.AXIS,
    scales=_protocol.scales("mnist", 108, cost=0.3, source="no experiment"),
    arms=tuple(f"{net}_{scale}" for net in _rates.NETS for scale in ("0.1", "1", "5")),
    claims=(
        claim("a", "bn", "none", "0.1", IOFFE, SAYS["bn"]),
        claim("b", "bn", "none", "5", IOFFE, SAYS["bn"]),
        claim("c", "ln", "none", "0.1", BA, SAYS["ln"]),
        claim("d", "ln", "none", "5", BA, SAYS["ln"]),
        claim("e", "bn", "wn", "0.1", SALIMANS, SAYS["wn"]),
        claim("f", "bn", "wn", "5", SALIMANS, SAYS["wn"]),
    ),
    rates=_rates.RATES,
)


def get_config(arm, scale="mnist5k"):
    """A norm in both hidden layers, and a factor of their initial weights."""
    net, _, factor = arm.partition("_")
    more = {} if factor == "1" else {"init_scale": float(factor)}  # runs of claim 18 are shared
    return _rates.mlp(arm, net, scale, **more)
