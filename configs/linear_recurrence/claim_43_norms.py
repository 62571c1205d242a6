"""Trains stacks of linear recurrent units on permuted MNIST with batch, layer and RMS norm.

Four blocks of 64 features and 64 complex states, the average over time read out. The recipe is that
of the code of S5, whose blocks are alike: batch norm over examples and time before the recurrence,
averages that keep 0.95, batches of 64, AdamW with weight decay 0.05, a cosine to 0. Unlike there
the recurrence has the rate of the rest, gradients are clipped at 1, a tenth of the updates is
warm-up, and networks and budgets are smaller. Pixels are permuted, anew in each replicate: in scan
order such networks make too few errors for norms to differ, and group 1 asks LSTMs at the same
lengths.

An arm is a norm, its place and the batch size; without a norm both places are one network. Batches
of 8 see as many images as those of 64, in eight times the updates; their rates are those of 64
times the square root of 1/8, as suits Adam, and a record's rate is that at 64. Population
statistics are estimated again over the training images. No source at hand compares these norms with
tuned rates and several seeds: the deltas are the ledger's own, from a pilot of one seed, 250
updates of 49 steps at rate 0.003 and 1,000 test images: 93.3 % with batch norm (statistics of the
batch), 91.9 % without a norm, 90.3 % with layer norm.
"""

import ml_collections

from experiments.config.defaults import default
from experiments.ledger.claims import Claim, Group, Scale, Settled, contrast, more, not_worse
from experiments.runtime import members

LARGE, IMAGES = 64, 128_000  # IMAGES: seen by every arm
SIDES = {"pmnist49": 7, "pmnist196": 14, "pmnist784": 28}
# On two cores: 0.1, 0.52 and 3.0 seconds of a core for an update of 64 in a pilot
MINUTES = {"pmnist49": 58, "pmnist196": 270, "pmnist784": 1550}
POPULATION, RUNNING = "test.population.accuracy", "test.running.accuracy"
NORMS = {
    "bn": {"name": "batch_norm", "decay": 0.95},
    "ln": {"name": "layer_norm"},
    "rms": {"name": "rms_norm"},
    "none": {"name": "none"},
}
OF_S5 = (
    "no comparison: batch norm before the recurrence is the default of the code of S5 "
    "(arXiv:2208.04933: batchnorm, prenorm, bn_momentum 0.95, batches of 64); Orvieto et al. "
    "(arXiv:2303.06349, figure 1) have a norm in that place, of the batch or of the layer"
)
DELTA = 0.008
WHY = "no source has a number; half of the 1.6 points between layer norm and none in the pilot"


def scale(name, **more_of_it):
    side = SIDES[name]
    text = (
        f"permuted MNIST {side} x {side}, {side * side} steps, 50,000 images, 64 features, "
        f"{IMAGES:,} images seen in batches of 64 and of 8 (the source: 784 steps, 128 features, "
        "100 epochs)"
    )
    return Scale(name, side * side, text, minutes=MINUTES[name], **more_of_it)


def claim(letter, title, statement, rule, expect, *, source="", methods):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=DELTA,
        why=WHY,
        expect=expect,
        controls=(Settled(),),
        source=source,
        change="a task on which such networks are used, such as the Long Range Arena",
        methods=methods,
    )


def lag(size):
    """Claim that both kinds of statistics give one accuracy."""
    arm = f"bn_pre_{size}"
    return contrast(
        f"{arm}, running − population accuracy",
        (1.0, arm, RUNNING),
        (-1.0, arm, POPULATION),
        kind="same",
    )


GROUP = Group(
    number=43,
    title="Norms between linear recurrent units",
    topic="linear recurrence",
    source="Smith et al., ICLR 2023; Orvieto et al., ICML 2023",
    axis="length of the sequence in steps",
    scales=(
        scale("pmnist49", replicates=8),
        scale("pmnist196", replicates=8, device="gpu"),
        scale("pmnist784", replicates=8, device="gpu"),
    ),
    arms=(
        *("bn_pre_64", "bn_pre_8", "bn_post_64", "ln_pre_64", "ln_pre_8", "ln_post_64"),
        *("rms_pre_64", "none_64"),
    ),
    claims=(
        claim(
            "a",
            "Linear recurrence: batch norm is no worse than layer norm",
            "Between linear recurrent units, batch norm with population statistics has a test "
            "accuracy no lower than layer norm, both before the recurrence, in batches of 64",
            not_worse("bn_pre_64", "ln_pre_64", POPULATION),
            OF_S5,
            methods=("batch norm", "layer norm"),
        ),
        claim(
            "b",
            "Batches of 64: running averages do as population statistics",
            "Between linear recurrent units that were trained in batches of 64 to the end of a "
            "cosine, batch norm has the same test accuracy with running averages as with "
            "population statistics",
            lag(64),
            "no comparison: the code of S5 evaluates with running averages that keep 0.95",
            methods=("batch norm", "population statistics"),
        ),
        claim(
            "c",
            "Batches of 8: running averages do as population statistics",
            "Between linear recurrent units that were trained in batches of 8 to the end of a "
            "cosine, batch norm has the same test accuracy with running averages as with "
            "population statistics",
            lag(8),
            "no comparison: the code of S5 evaluates with running averages that keep 0.95, "
            "batches of 64",
            methods=("batch norm", "population statistics"),
        ),
        claim(
            "d",
            "Linear recurrence: small batches cost batch norm more",
            "From batches of 64 to batches of 8 batch norm loses more test accuracy, with "
            "population statistics, than layer norm",
            contrast(
                f"(bn_64 − bn_8) − (ln_64 − ln_8), all pre, {POPULATION}",
                (1.0, "bn_pre_64", POPULATION),
                (-1.0, "bn_pre_8", POPULATION),
                (-1.0, "ln_pre_64", POPULATION),
                (1.0, "ln_pre_8", POPULATION),
            ),
            "of images: from 32 to 8 a device the error of ResNet-50 rises from 23.6 to 24.8 % "
            "with batch norm, and not with group norm (24.1 and 24.0 %), table 2 (from memory, not "
            "verified); here batch norm averages over the steps of a sequence too",
            source="Wu, He 2018, arXiv:1803.08494",
            methods=("batch norm", "layer norm"),
        ),
        claim(
            "e",
            "Batches of 8: batch norm is no worse than layer norm",
            "Between linear recurrent units that are trained in batches of 8, batch norm with "
            "population statistics has a test accuracy no lower than layer norm",
            not_worse("bn_pre_8", "ln_pre_8", POPULATION),
            "no comparison, and no batch as small: a question that follows from 17b and 43a",
            methods=("batch norm", "layer norm"),
        ),
        claim(
            "f",
            "Linear recurrence: batch norm belongs before the block",
            "Batch norm before the recurrence has a higher test accuracy than batch norm after the "
            "sum with the block's input",
            more("bn_pre_64", "bn_post_64", POPULATION),
            OF_S5,
            methods=("batch norm",),
        ),
        claim(
            "g",
            "Linear recurrence: layer norm belongs before the block",
            "Layer norm before the recurrence has a higher test accuracy than layer norm after the "
            "sum with the block's input",
            more("ln_pre_64", "ln_post_64", POPULATION),
            "no comparison: prenorm is the default of the code of S5, and what Xiong et al. 2020 "
            "(arXiv:2002.04745) recommend for transformers",
            methods=("layer norm",),
        ),
        claim(
            "h",
            "Linear recurrence: batch norm is better than no norm",
            "Batch norm before the recurrence has a higher test accuracy than no norm at all",
            more("bn_pre_64", "none_64", POPULATION),
            OF_S5,
            methods=("batch norm",),
        ),
        claim(
            "i",
            "Linear recurrence: RMS norm is no worse than layer norm",
            "Between linear recurrent units RMS norm has a test accuracy no lower than layer norm, "
            "both before the recurrence",
            not_worse("rms_pre_64", "ln_pre_64", POPULATION),
            "of translations with a GRU: 22.4 points of BLEU against 22.6",
            source="Zhang, Sennrich 2019, arXiv:1910.07467",
            methods=("RMS norm", "layer norm"),
        ),
    ),
    rates=(1e-3, 3e-3, 1e-2),
)


def get_config(arm, scale="pmnist49"):
    """A norm, its place, and the batch size."""
    norm, *place, size = arm.split("_")
    config = default()
    config.name = arm
    config.dataset = "pmnist"
    config.data.side = SIDES[scale]
    config.data.valid_size = 2000
    config.batch_size = int(size)
    config.eval_batch_size = 500
    config.population.batch_size = 500
    config.steps = IMAGES // config.batch_size
    config.log_every = config.eval_every = config.steps // 20
    config.checkpoint_every = config.steps
    config.steps_per_call = 1 if config.batch_size == LARGE else 10
    config.select = "loss"
    config.optim.update(name="adamw", learning_rate=1e-3, weight_decay=0.05)
    config.optim.update(schedule="cosine", warmup=config.steps // 10)
    model = {"arch": "lru", "width": 64, "states": 64, "depth": 4, "norm": NORMS[norm]}
    model["position"] = place[0] if place else "pre"
    config.model = ml_collections.ConfigDict(model)
    return config


def replicate(config, n):
    """The learning rate of batches of 64 times the square root of the share that the batch is."""
    del n
    rate = config.optim.learning_rate * (config.batch_size / LARGE) ** 0.5
    return members.with_changes(config, {"optim.learning_rate": rate})
