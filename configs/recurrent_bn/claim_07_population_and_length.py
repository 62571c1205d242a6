"""Scores character models with population and batch statistics on longer and longer segments."""

from experiments.ledger.rules import Claim, less

from configs.recurrent_bn import _text
from experiments.data import datasets, splits
from experiments.runtime import step

CLAIM = Claim(
    number=7,
    statement=(
        "At test, population statistics do better than the batch's own, and BN-LSTM keeps its"
        " lead on sequences longer than it was trained on"
    ),
    source=(
        'Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017, arXiv:1603.09025, '
        "section 5.2, table 2 and its figure of test lengths"
    ),
    expect=(
        "bits per character at length 1,000: LSTM 1.390, BN-LSTM 1.333 with population and "
        "1.362 with batch statistics; at length 100 1.449, 1.398, 1.420"
    ),
    arms=("lstm", "bn_lstm"),
    rules=(
        less("bn_lstm", "bn_lstm", "population.50", other="batch.50"),
        less("bn_lstm", "bn_lstm", "population.400", other="batch.400"),
        less("bn_lstm", "lstm", "population.50"),
        less("bn_lstm", "lstm", "population.400"),
    ),
    rates=(1e-3, 3e-3, 1e-2),
    minutes=8,
    scale=(
        "100 units for 1,000, 5,000 segments of 50 characters, 600 updates for 400,000; test"
        " lengths 50 to 400"
    ),
    twin="configs/recurrent_bn/ptb.py, variants lstm and bn_lstm",
)


LENGTHS = (50, 100, 200, 400)


def get_config(arm: str = "bn_lstm"):
    config = _text.small(arm)
    config.lock()
    return config


def extra(run):
    """Loss on the test set's first 40,000 characters, cut into longer and longer segments."""
    config, losses = run.config, {}
    size = config["population"]["batch_size"]
    exact = step.population(
        run.params, run.norm, run.dataset.train, task=run.task, how="pooled", batch_size=size
    )
    for length in LENGTHS:
        longer = {
            **config,
            "data": {**config["data"], "length": length, "train_size": 0, "test_size": 0},
        }
        split = datasets.load_config_data(longer).test
        split = splits.take(split, slice(0, 40_000 // length))
        for name, norm, stats in (("population", exact, "running"), ("batch", run.norm, "batch")):
            scores = step.evaluate(
                run.params, norm, split, task=run.task, stats=stats, batch_size=100
            )
            losses[f"{name}.{length}"] = scores["loss"]
    return losses
