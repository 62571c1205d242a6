"""Trains LSTM and LN-LSTM on 1,000 film reviews, and on all of them."""

from configs.imdb_lstm import _small
from experiments.ledger.claims import Claim, Group, Scale, Settled, less, more, same


def claim(letter, title, statement, rule, delta, why, expect, published=None, controls=()):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=delta,
        why=why,
        expect=f"{expect} (one run each, with different optimizers, 100 reviews validated)",
        published=published,
        controls=controls,
        change="pretrained vectors, as the notebook's, and more units",
        methods=("layer norm",),
    )


GROUP = Group(
    number=25,
    title="Layer norm in an LSTM on film reviews",
    topic="layer norm",
    source="notebook imdb.ipynb of senliuy/keras_layerNorm_mlp_lstm, whose layer norm very "
    "probably never ran",
    axis="training reviews",
    scales=(
        Scale(
            "reviews1000",
            1000,
            "1,000 IMDB reviews, last 100 words, 128 units, 50 epochs, as the notebook; embeddings "
            "learned (the source: GloVe's)",
            replicates=16,
            minutes=4,
            of_source=True,
        ),
        Scale(
            "reviews22500",
            22_500,
            "all 22,500 IMDB reviews, last 400 words, 32 units, 5 epochs (the source: 1,000 "
            "reviews of 100 words)",
            replicates=8,
            minutes=14,
        ),
    ),
    arms=("lstm", "ln_lstm"),
    claims=(
        claim(
            "a",
            "LN-LSTM classifies reviews better than LSTM",
            "At its best validation, LN-LSTM classifies more film reviews right than LSTM",
            more("ln_lstm", "lstm", "test.population.accuracy"),
            0.025,
            "half of the notebook's 0.05",
            "best validation accuracy 0.81 against 0.76",
            published=0.05,
            controls=(Settled(),),
        ),
        claim(
            "b",
            "LN-LSTM is more stable than LSTM",
            "The validation loss of LN-LSTM changes less from one evaluation to the next, in the "
            "second half of training, than that of LSTM",
            less("ln_lstm", "lstm", "rough.valid"),
            0.03,
            "the source shows a curve and no number; 0.03 nats are a quarter of the LSTM's changes "
            "in an earlier run on 5,000 reviews (0.125)",
            "a smoother curve of validation",
        ),
        claim(
            "c",
            "LN-LSTM overfits less at equal training loss",
            "Where the training losses are equal (0.3 nats), the validation loss of LN-LSTM is "
            "lower than that of LSTM",
            less("ln_lstm", "lstm", "gap.at_0.3"),
            0.016,
            "half of the 0.032 nats between the notebook's smallest validation losses",
            "smallest validation loss 0.524 against 0.556; none at equal training loss",
        ),
        claim(
            "d",
            "Layer norm does not visibly speed up training",
            "LN-LSTM and LSTM have the same mean training loss over the run",
            same("ln_lstm", "lstm", "area.train"),
            0.03,
            "the source shows a curve and no number; 0.03 nats are a quarter of the LSTM's mean "
            "training loss in an earlier run on 5,000 reviews (0.128)",
            "no visible acceleration",
        ),
    ),
    rates=_small.RATES,
)


def get_config(arm, scale="reviews22500"):
    return _small.reviews(arm, every=scale == "reviews22500")
