"""Trains two LSTM layers on the words of the Penn Treebank, with and without batch norm.

The protocol of `ptb_words.py`. The rate is the published one for both arms.
"""

from configs.vertical_bn import ptb_words
from experiments.ledger.claims import Claim, Group, Scale, Settled, less, more, not_worse

EPOCH = 2219  # updates of 20 segments of 20 words
TABLE = (
    "perplexity of training and validation about 78.5 and 119.2 without, about 62.5 and 120.9 with "
    "batch norm (small network, from memory of the paper's table, not verified)"
)


def scale(name, epochs, **more):
    text = (
        f"words of Penn Treebank in segments of 20, two LSTM layers of 200 units, {epochs} epochs "
        "at rate 1 (the source: the same network)"
    )
    return Scale(name, epochs, text, **more)


def claim(letter, title, statement, rule, delta, why, published=None, controls=()):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=delta,
        why=why,
        expect=TABLE,
        published=published,
        controls=controls,
        change="the source's larger network, or its speech (Wall Street Journal)",
        methods=("vertical batch norm",),
    )


GROUP = Group(
    number=10,
    title="Vertical batch norm fits faster and overfits more",
    topic="vertical batch norm",
    source="Laurent et al., ICASSP 2016, arXiv:1510.01378, section 5.2",
    axis="epochs",
    scales=(
        scale("words5", 5, replicates=4, minutes=46),
        scale("words26", 26, replicates=8, minutes=240, device="gpu", of_source=True),
    ),
    arms=("none", "bn"),
    claims=(
        claim(
            "a",
            "Vertical batch norm lowers the training loss faster",
            "Frame-wise batch norm of the input terms leads to a lower training loss after the "
            "same number of epochs",
            less("bn", "none", "train.loss"),
            0.114,
            "half of the log ratio of the source's training perplexities, about 0.228 (not "
            "verified)",
            published=0.228,  # about the speed of training: no control
        ),
        claim(
            "b",
            "Vertical batch norm does not generalize better",
            "Frame-wise batch norm of the input terms does not improve generalization: without it "
            "the test loss is not higher",
            not_worse("none", "bn", "test.population.loss"),
            0.114,
            "half of the log ratio of the source's training perplexities, about 0.228 (not "
            "verified): a gain on new text half as large as that on the training text",
            published=0.014,
            controls=(Settled(),),
        ),
        claim(
            "c",
            "Vertical batch norm overfits more at equal training loss",
            "Where the training losses are equal (4.8 nats), the validation loss is higher with "
            "frame-wise batch norm of the input terms",
            more("bn", "none", "gap.at_4.8"),
            0.121,
            "half of the difference of the log ratios of validation to training perplexity at the "
            "end of the source's runs, about 0.242 (not verified)",  # in mid-run: no control
        ),
    ),
    rates=(1.0,),
)


def get_config(arm, scale="words5"):
    config = ptb_words.get_config(arm)
    with config.unlocked():
        config.steps = int(GROUP.scale(scale).at) * EPOCH // 100 * 100
        config.log_every = config.steps_per_call = 100
        config.eval_every = config.checkpoint_every = config.steps // 2000 * 100  # 20 of them
        config.eval_batch_size = config.population.batch_size = 200  # 10,000 logits a word
    return config
