"""Trains stacks of 1 to 7 recurrent layers on spoken digits, with and without batch norm."""

from experiments.ledger.rules import Claim, contrast, more

from configs.vertical_bn import _small

CLAIM = Claim(
    number=9,
    statement="Vertical batch norm brings nothing sure up to 5 layers and helps beyond",
    source=(
        'Amodei et al., "Deep Speech 2", ICML 2016, arXiv:1512.02595, table of architectures '
        'by depth, and Laurent et al., "Batch Normalized Recurrent Neural Networks", ICASSP '
        "2016, arXiv:1510.01378"
    ),
    expect=(
        "in Deep Speech 2 the word error rate changed by +0.85, -1.05, -0.99, -1.31 with "
        "batch norm at 1, 3, 5, 7 layers: harm at one, more help with depth"
    ),
    arms=tuple(f"{norm}_{depth}" for depth in (1, 3, 5, 7) for norm in ("none", "bn")),
    rules=(
        more("bn_7", "none_7", "test.population.accuracy", by=0.01),
        more("none_5", "bn_5", "test.population.accuracy", by=-0.03),
        contrast(
            "gain at 7 layers - gain at 1, test.population.accuracy",
            (1, "bn_7", "test.population.accuracy"),
            (-1, "none_7", "test.population.accuracy"),
            (-1, "bn_1", "test.population.accuracy"),
            (1, "none_1", "test.population.accuracy"),
        ),
    ),
    rates=_small.RATES,
    minutes=30,
    scale=(
        "the Free Spoken Digit Dataset (2,400 short recordings) for 11,940 hours, 12,000 "
        "weights for 38 million, 400 updates; depth 1, 3, 5, 7; tanh RNN, sequence-wise "
        "statistics"
    ),
    twin=(
        "the sources' speech data are private; Laurent's PTB protocol: "
        "configs/vertical_bn/ptb_words.py"
    ),
)


def get_config(arm: str = "bn_7"):
    norm, depth = arm.split("_")
    config = _small.spoken("rnn", int(depth), "sequence" if norm == "bn" else "none")
    config.name = arm
    config.lock()
    return config
