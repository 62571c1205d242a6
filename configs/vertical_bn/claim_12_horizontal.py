"""Trains stacked RNNs on spoken digits with horizontal beside vertical batch norm.

Tanh, statistics of each step, gamma 1 on the input terms. Gamma 0.3 on the recurrent terms is shown
beside the claims' 0.1 and 1.
"""

from configs.vertical_bn import _small
from experiments.ledger.claims import Claim, Group, less, not_worse

COOIJMANS = "Cooijmans et al., ICLR 2017, arXiv:1603.09025, section 4"


def claim(letter, title, statement, rule, expect, source):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=_small.HALF,
        why=_small.LIKE_GAIN,
        expect=expect,
        source=source,
        change="longer sequences, or stacks of LSTMs",
        methods=("vertical batch norm", "recurrent batch norm"),
    )


GROUP = Group(
    number=12,
    title="Horizontal beside vertical batch norm",
    topic="horizontal batch norm",
    source=f"{_small.LAURENT}, section 4; {COOIJMANS}",
    axis="recurrent layers",
    scales=(
        _small.scale("depth3", 3, "3 recurrent layers of tanh", replicates=6, minutes=22),
        _small.scale("depth7", 7, "7 recurrent layers of tanh", replicates=6, minutes=50),
    ),
    arms=("vertical", "h_0.1", "h_0.3", "h_1.0"),
    claims=(
        claim(
            "a",
            "Horizontal batch norm (gamma 1) adds nothing to vertical",
            "In stacked layers, batch norm of the recurrent terms with gamma 1 beside that of the "
            "input terms does not help: without it there are no more errors",
            not_worse("vertical", "h_1.0", _small.ERROR),
            "batch norm of hidden-to-hidden transitions does not help, abstract",
            _small.LAURENT,
        ),
        claim(
            "b",
            "Horizontal batch norm wants gamma 0.1, not 1",
            "It was gamma = 1 that made horizontal batch norm fail: beside vertical batch norm in "
            "stacked layers it makes fewer errors from a gamma of 0.1",
            less("h_0.1", "h_1.0", _small.ERROR),
            "the source explains the failure of others by their gamma of 1, from one layer",
            COOIJMANS,
        ),
        claim(
            "c",
            "Horizontal batch norm (gamma 0.1) adds to vertical",
            "It is beneficial to normalize the recurrent terms as well: with gamma 0.1, beside "
            "that of the input terms, batch norm of the recurrent terms lowers the errors",
            less("h_0.1", "vertical", _small.ERROR),
            "beneficial in one layer, abstract; no stack was published",
            COOIJMANS,
        ),
    ),
    rates=_small.RATES,
)
replicate = _small.replicate


def get_config(arm, scale="depth3"):
    gamma = None if arm == "vertical" else float(arm.removeprefix("h_"))
    return _small.spoken(int(GROUP.scale(scale).at), "frame", "tanh", horizontal=gamma)
