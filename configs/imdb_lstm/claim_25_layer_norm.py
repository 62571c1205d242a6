"""Trains LSTM and LN-LSTM on film reviews.

From GloVe's vectors: --config.data.vectors=glove.6B.100d.txt --config.model.embed=100.
"""

from experiments.ledger.rules import Claim, less, same

from configs.imdb_lstm import _small

CLAIM = Claim(
    number=25,
    statement=(
        "On film reviews an LN-LSTM is more stable than an LSTM and overfits less, with no "
        "visible acceleration"
    ),
    source=(
        "notebook imdb.ipynb of senliuy/keras_layerNorm_mlp_lstm (its two arms had different "
        "optimizers and its layer norm very probably never ran)"
    ),
    expect="validation accuracy 0.80 against 0.72 after 50 epochs there",
    arms=("lstm", "ln_lstm"),
    rules=(
        less("ln_lstm", "lstm", "rough.valid"),
        less("ln_lstm", "lstm", "gap.end"),
        same("ln_lstm", "lstm", "area.train", within=0.03),
    ),
    rates=_small.RATES,
    minutes=15,
    scale=(
        "5,000 training reviews of at most 100 words, 10 epochs, embeddings learned; "
        "validated on 2,500, tested on all 25,000"
    ),
    twin="the same config with --config.data.train_size=0 and --config.data.length=400",
)


def get_config(arm: str = "ln_lstm"):
    config = _small.reviews(arm)
    config.lock()
    return config
