"""Trains shallow and deep stacks on a quarter of the spoken digits and on all of them."""

from experiments.ledger.rules import Claim, contrast, more

from configs.vertical_bn import _small

CLAIM = Claim(
    number=11,
    statement=(
        "With vertical batch norm, more data removes the harm in a deep stack, and not in a "
        "shallow one"
    ),
    source=(
        'Amodei et al., "Deep Speech 2", ICML 2016, arXiv:1512.02595, read beside Laurent et '
        'al., "Batch Normalized Recurrent Neural Networks", ICASSP 2016, arXiv:1510.01378 '
        "(the more data, the less batch norm overfits)"
    ),
    expect=(
        "the gain from batch norm grows with data at depth 5; one layer is still harmed with "
        "all data"
    ),
    arms=tuple(
        f"{norm}_{depth}_{size}"
        for depth in (1, 5)
        for size in (600, 2400)
        for norm in ("none", "bn")
    ),
    rules=(
        contrast(
            "gain with all data - gain with a quarter, 5 layers, test.population.accuracy",
            (1, "bn_5_2400", "test.population.accuracy"),
            (-1, "none_5_2400", "test.population.accuracy"),
            (-1, "bn_5_600", "test.population.accuracy"),
            (1, "none_5_600", "test.population.accuracy"),
        ),
        more("none_1_2400", "bn_1_2400", "test.population.accuracy"),
    ),
    rates=_small.RATES,
    minutes=30,
    scale=(
        "the Free Spoken Digit Dataset (2,400 short recordings) for 11,940 hours, 12,000 "
        "weights for 38 million, 400 updates; 600 or 2,400 recordings, depth 1 or 5; tanh "
        "RNN, sequence-wise statistics"
    ),
    twin=(
        "the sources' speech data are private; Laurent's PTB protocol: "
        "configs/vertical_bn/ptb_words.py"
    ),
)


def get_config(arm: str = "bn_5_2400"):
    norm, depth, size = arm.split("_")
    config = _small.spoken("rnn", int(depth), "sequence" if norm == "bn" else "none")
    config.data.train_size = int(size)
    config.name = arm
    config.lock()
    return config
