"""Trains BN-LSTM on permuted MNIST; measures population statistics in batches of several sizes.

The pass over the training set normalizes each batch by itself, as training does. So a step's
statistics are measured behind steps that were normalized by those of a batch, and at test behind
steps that are normalized by the population's. The larger the batches, the less the two differ; in
one batch of the whole set they are the same. The runs are those of claim 1, and each estimate
scores the test set. Before registration four runs of 10,000 updates at 49 steps and rate 0.001 were
seen: three had the same test accuracy, to a point, with batches of 1,000 and with the test batches'
own statistics. The fourth, whose permutation starts with two pixels that hardly vary, had 60 % with
batches of 100, 68 % with 1,000, and 93 % with one of 20,000 images or with its test batches' own.
Each estimate picks its own learning rate, and so other networks; at one rate, 0.003, the
differences of the first record are -0.080 (a) and -0.044 (b).
"""

from configs.recurrent_bn import _lengths, _statistics
from experiments.ledger.claims import Claim, Group, contrast

SIZES = (100, 1000, 10_000, 50_000)
IOFFE = "Ioffe, Szegedy, ICML 2015, arXiv:1502.03167, algorithm 2"


def claim(letter, title, statement, left, right, expect, source=_lengths.COOIJMANS):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=contrast(
            f"accuracy.{left} − accuracy.{right}",
            (1.0, "bn_lstm", f"accuracy.{left}"),
            (-1.0, "bn_lstm", f"accuracy.{right}"),
            kind="not_worse",
        ),
        delta=0.01,
        why="no source gives a number for it; one point, a fifth of the 5.2 that batch norm gains "
        "in table 1 of Cooijmans et al.",
        expect=expect,
        source=source,
        controls=(),  # about statistics of the same parameters, wherever training ends
        change="inputs whose first steps vary as much as the later ones",
        methods=("recurrent batch norm", "population statistics"),
    )


GROUP = Group(
    number=45,
    title="The batches in which population statistics are measured",
    topic="population statistics",
    source=_lengths.COOIJMANS,
    axis="length of the sequence in steps",
    scales=_lengths.scales(0, 1.2, middle="cpu"),  # 0.2: five estimates
    arms=("bn_lstm",),
    claims=(
        claim(
            "a",
            "Statistics of batches of 100 do as well as of all data",
            "At test, BN-LSTM is no worse with population statistics pooled over batches of the "
            "size of training's, 100, than with those of one batch of the whole training set",
            100,
            50_000,
            "population statistics are the mean over training batches; no source asks how large",
            IOFFE,
        ),
        claim(
            "b",
            "Statistics of batches of 1,000 do as well as of all data",
            "At test, BN-LSTM is no worse with population statistics pooled over batches of 1,000 "
            "than with those of one batch of the whole training set",
            1000,
            50_000,
            "the authors' code takes batches of 5,000 and gives no reason",
        ),
        claim(
            "c",
            "Population statistics do as well as the test batch's own",
            "At test, BN-LSTM is no worse with population statistics, of one batch of the whole "
            "training set, than with the statistics of test batches of 500",
            50_000,
            "batch",
            "population statistics at test, section 3; no source compares",
        ),
    ),
    rates=_lengths.RATES,
)


def get_config(arm, scale="pmnist49"):
    return _lengths.permuted(arm, scale)


def extra(finished):
    """Test accuracy with each estimate, and with the test batches' own statistics."""
    found = {}
    for size in SIZES:
        task, norm = _statistics.population(finished, batch_size=size)
        scores = _statistics.score(finished, task, norm, finished.dataset.test)
        found[f"accuracy.{size}"] = scores["accuracy"]
    task, test = finished.task, finished.dataset.test
    scores = _statistics.score(finished, task, finished.norm, test, stats="batch")
    return found | {"accuracy.batch": scores["accuracy"]}
