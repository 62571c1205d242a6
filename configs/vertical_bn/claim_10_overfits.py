"""Trains three LSTM layers on spoken digits, with and without vertical batch norm."""

from experiments.ledger.rules import Claim, less, more

from configs.vertical_bn import _small

CLAIM = Claim(
    number=10,
    statement="Vertical batch norm lowers the training loss faster, and overfits more",
    source=(
        'Laurent et al., "Batch Normalized Recurrent Neural Networks", ICASSP 2016, '
        "arXiv:1510.01378, section 5"
    ),
    expect="on WSJ and PTB lower training and higher validation cross-entropy",
    arms=("none", "sequence", "frame"),
    rules=(
        less("sequence", "none", "area.train", by=0.05),
        less("frame", "none", "area.train", by=0.05),
        more("sequence", "none", "gap.end"),
        more("frame", "none", "gap.end"),
    ),
    rates=_small.RATES,
    minutes=12,
    scale=(
        "the Free Spoken Digit Dataset (2,400 short recordings) for 11,940 hours, 12,000 "
        "weights for 38 million, 400 updates; 3 LSTM layers, frame-wise and sequence-wise "
        "statistics"
    ),
    twin=(
        "the sources' speech data are private; Laurent's PTB protocol: "
        "configs/vertical_bn/ptb_words.py"
    ),
)


def get_config(arm: str = "sequence"):
    config = _small.spoken("lstm", 3, arm)
    config.name = arm
    config.lock()
    return config
