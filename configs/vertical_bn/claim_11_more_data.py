"""Trains shallow and deep stacks on few and on many spoken digits, with and without batch norm.

Updates are the same at every size. The nets on 150 recordings are trained once for all sizes, and
those on all recordings are those of claim 9.
"""

from configs.vertical_bn import _small
from experiments.config.defaults import FOLD_SIZE
from experiments.ledger.claims import Claim, Group, contrast

FEW = 150


def scale(size):
    text = f"{size:,} recordings against {FEW}, 1 or 5 recurrent layers of clipped ReLU"
    return _small.scale(f"recordings{size}", size, text, replicates=6, minutes=19)


def claim(letter, title, statement, depth, kind, expect):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=contrast(
            f"gain at this size − gain at {FEW} recordings, depth {depth}, log error",
            (1.0, f"none_{depth}", _small.ERROR),
            (-1.0, f"bn_{depth}", _small.ERROR),
            (-1.0, f"none_{depth}_few", _small.ERROR),
            (1.0, f"bn_{depth}_few", _small.ERROR),
            kind=kind,
        ),
        delta=_small.HALF,
        why=_small.LIKE_GAIN,
        expect=expect,
        change="hours of speech, of many speakers",
        methods=("vertical batch norm",),
    )


GROUP = Group(
    number=11,
    title="Vertical batch norm and the amount of data",
    topic="vertical batch norm",
    source=f"{_small.DS2}, read beside {_small.LAURENT}, section 5",
    axis="training recordings",
    scales=(scale(600), scale(FOLD_SIZE)),
    arms=tuple(f"{n}_{d}{few}" for d in (1, 5) for few in ("", "_few") for n in ("none", "bn")),
    claims=(
        claim(
            "a",
            "The gain in deep stacks grows with data",
            "In a stack of 5 layers, what vertical batch norm gains grows with the training data",
            5,
            "more",
            "batch norm overfits more on the smaller set (Laurent et al., as reported by others, "
            "not verified), and helps deep stacks on 11,940 hours (Deep Speech 2)",
        ),
        claim(
            "b",
            "The gain in one layer does not grow with data",
            "In one layer, what vertical batch norm gains does not depend on the training data",
            1,
            "same",
            "one layer is harmed on 11,940 hours still: word error 13.55 to 14.40 % (Deep Speech "
            "2)",
        ),
    ),
    rates=_small.RATES,
)
replicate = _small.replicate


def get_config(arm, scale="recordings600"):
    norm, depth, *few = arm.split("_")
    config = _small.spoken(int(depth), "sequence" if norm == "bn" else "none", "clipped_relu")
    size = FEW if few else int(GROUP.scale(scale).at)
    config.data.train_size = 0 if size == FOLD_SIZE else size
    return config
