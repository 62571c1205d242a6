"""Trains an MLP with norms of its weights.

The sources show training curves without numbers for this network, so the smallest effect that
matters is a share of what the loss is. The cosine layers have a learned gain and bias, starting at
1 and 0, since a network of numbers within [-1, 1] needs it.
"""

from typing import Any

from configs.mlp_cnn import _protocol
from experiments.ledger.claims import Claim, Group, less

WN = {"weight": {"name": "weight_norm"}}
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "wn": WN,
    "wn_init": {**WN, "data_init": True},
    "wn_mean_only": {**WN, "norm_dense": {"name": "mean_only_batch_norm"}, "bias": False},
    "cosine": {"weight": {"name": "cosine_dense", "use_scale": True}},
}
WHY = (
    "the source gives a curve and no number; 0.05 nats are a tenth of the plain network's mean "
    "training loss in a pilot (0.52)"
)


def faster(letter, arm, title, statement, source, methods):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=less(arm, "none", "area.train"),
        delta=0.05,
        why=WHY,
        expect="a training curve below that of plain weights",
        controls=(),  # about the speed of training, not its end
        source=source,
        change="a larger effect in deep convolutional networks, which the sources train",
        methods=methods,
    )


SALIMANS = "Salimans, Kingma 2016, section 5.1, arXiv:1602.07868"
GROUP = Group(
    number=24,
    title="Normalizing weights trains faster",
    topic="weight norm",
    source="Salimans, Kingma 2016; Luo et al. 2017",
    axis="training images",
    scales=(
        _protocol.scale("mnist5k", 5000, minutes=0.6),
        _protocol.scale("mnist50k", 50_000, minutes=0.6),
    ),
    arms=tuple(ARMS),
    claims=(
        faster(
            "a",
            "wn",
            "Weight norm trains faster than plain weights",
            "Weight norm alone trains the permutation-invariant MLP faster than plain weights",
            SALIMANS,
            ("weight norm",),
        ),
        faster(
            "b",
            "wn_init",
            "Weight norm with data-dependent start trains faster",
            "Weight norm with data-dependent initialization trains faster than plain weights",
            SALIMANS,
            ("weight norm", "data-dependent initialization"),
        ),
        faster(
            "c",
            "wn_mean_only",
            "Weight norm with mean-only batch norm trains faster",
            "Weight norm with mean-only batch norm trains faster than plain weights",
            SALIMANS,
            ("weight norm", "mean-only batch norm"),
        ),
        faster(
            "d",
            "cosine",
            "Cosine normalization trains faster than plain weights",
            "Cosine normalization trains faster than plain weights",
            "Luo et al. 2017, figure 2, arXiv:1702.05870",
            ("cosine norm",),
        ),
    ),
    rates=(0.03, 0.1, 0.3, 1.0, 3.0),
)


def get_config(arm, scale="mnist5k"):
    """Two hidden layers of ReLU."""
    return _protocol.mlp(arm, train_size=GROUP.scale(scale).at, **ARMS[arm])
