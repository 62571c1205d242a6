"""Trains stacked RNNs on spoken digits with horizontal beside vertical batch norm."""

from experiments.ledger.rules import Claim, less, more

from configs.vertical_bn import _small

CLAIM = Claim(
    number=12,
    statement=(
        "In stacked layers, horizontal batch norm with gamma 1 hurts beside vertical batch norm"
    ),
    source=(
        'Laurent et al., "Batch Normalized Recurrent Neural Networks", ICASSP 2016, '
        "arXiv:1510.01378, section 4"
    ),
    expect="slower and worse than vertical alone",
    arms=("vertical", "gamma_0.1", "gamma_1.0"),
    rules=(
        less("vertical", "gamma_1.0", "area.error", by=0.02),
        more("vertical", "gamma_1.0", "test.population.accuracy", by=0.01),
    ),
    rates=_small.RATES,
    minutes=16,
    scale=(
        "the Free Spoken Digit Dataset (2,400 short recordings) for 11,940 hours, 12,000 "
        "weights for 38 million, 400 updates; 3 tanh RNN layers, statistics of each step; "
        "gamma 0.1 on the recurrent term shown beside it"
    ),
    twin=(
        "the sources' speech data are private; Laurent's PTB protocol: "
        "configs/vertical_bn/ptb_words.py"
    ),
)


def get_config(arm: str = "gamma_1.0"):
    gamma = None if arm == "vertical" else float(arm.removeprefix("gamma_"))
    config = _small.spoken("rnn", 3, "frame", horizontal=gamma)
    config.name = arm
    config.lock()
    return config
