"""Trains an MLP with dropout, weight decay or fixed batches, with and without batch norm.

2 x 200 units of ReLU, few images, 62 passes in batches of 32 with momentum 0.9, so that there is
much to overfit: the training loss ends near 0, and the last parameters are judged, since picking
the best ones is a regularizer too. One rate for all, since a rate tuned for each strength would be
a regularizer as well. "once" deals the batches once and for all, and shuffles their order.
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.claims import Claim, Control, Group, Scale, contrast, more

ACCURACY = "test.population.accuracy"
STRENGTHS = {
    "dropout": (0.1, 0.2, 0.35, 0.5),
    "l2": (3e-4, 1e-3, 3e-3, 1e-2),
}
IMAGES = {"fashion512": 512, "fashion2k": 2048}


def names(kind):
    return [f"{kind}{strength:g}" for strength in STRENGTHS[kind]]


def gain(kind, norm):
    """The mean gain over all strengths."""
    return [
        *((0.25, f"{norm}_{name}", ACCURACY) for name in names(kind)),
        (-1.0, f"{norm}_plain", ACCURACY),
    ]


def claim(letter, title, statement, rule, delta, why, expect, controls, published=None):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=delta,
        why=why,
        expect=expect,
        published=published,
        controls=controls,
        change="networks and data of a size at which the source regularizes",
        methods=("batch norm",),
    )


def less_needed(letter, kind, words, expect):
    with_it = [(-w, arm, metric) for w, arm, metric in gain(kind, "bn")]
    helps = contrast(f"gain of {kind}, none, {ACCURACY}", *gain(kind, "none"))
    return claim(
        letter,
        f"With batch norm {words} helps less",
        f"With batch norm less {words} is needed: it adds less accuracy, averaged over four "
        "strengths, than without",
        contrast(f"gain of {kind}, none − bn, {ACCURACY}", *gain(kind, "none"), *with_it),
        0.005,
        "the source gives no number for it; half of the point that 20c's shuffling is worth",
        expect,
        (Control(f"{words} helps without batch norm", helps, 0.005),),
    )


def scale(name, count, minutes, replicates):
    text = (
        f"MLP of 2 x 200 units, Fashion-MNIST 14 x 14, {count:,} training images drawn anew, 62 "
        "passes in batches of 32, SGD at 0.01 with momentum 0.9 (the source: Inception, ImageNet)"
    )
    return Scale(name, count, text, replicates, minutes)


SHUFFLING = "about 1 % of validation accuracy from shuffling within shards, section 4.2.1"
GROUP = Group(
    number=20,
    title="Batch norm and other regularizers",
    topic="regularization",
    source="Ioffe, Szegedy 2015, section 4.2.1, arXiv:1502.03167",
    axis="training images",
    scales=(scale("fashion512", 512, 2.0, 48), scale("fashion2k", 2048, 6.0, 24)),
    arms=tuple(
        f"{norm}_{change}"
        for norm in ("none", "bn")
        for change in ("plain", *names("dropout"), *names("l2"), "once")
    ),
    claims=(
        less_needed("a", "dropout", "dropout", "dropout removed without loss (in words)"),
        less_needed(
            "b", "l2", "weight decay", "L2 made five times smaller, which helps (in words)"
        ),
        claim(
            "c",
            "With batch norm, new batches in each pass help",
            "With batch norm, shuffling the examples into new batches in each pass gives a higher "
            "accuracy than the same batches again",
            more("bn_plain", "bn_once", ACCURACY),
            0.005,
            "half of about 1 point; not verified",
            SHUFFLING,
            (),  # the training loss is near 0 by then
            published=0.01,
        ),
        claim(
            "d",
            "New batches help more with batch norm than without",
            "New batches in each pass add more accuracy with batch norm than without, since an "
            "example is then normalized with others each time",
            contrast(
                f"(bn_plain − bn_once) − (none_plain − none_once), {ACCURACY}",
                (1.0, "bn_plain", ACCURACY),
                (-1.0, "bn_once", ACCURACY),
                (-1.0, "none_plain", ACCURACY),
                (1.0, "none_once", ACCURACY),
            ),
            0.005,
            "half of about 1 point, all of which the source ascribes to batch norm; not verified",
            SHUFFLING,
            (),
            published=0.01,
        ),
    ),
    rates=(0.01,),
)


def get_config(arm, scale="fashion512"):
    """Batch norm before ReLU, or none."""
    norm, _, change = arm.partition("_")
    count = IMAGES[scale]
    options = {"dataset": "fashion_mnist", "hidden": 200, "dropout": 0.0, "train_size": count}
    steps = 1000 * count // 512
    config = _protocol.mlp(arm, norm_dense=_protocol.NORMS[norm], steps=steps, **options)
    config.batch_size = 32
    config.steps_per_call = 20
    config.eval_every = config.steps
    config.eval_batch_size = 500
    config.population.batch_size = 500
    config.data.valid_size = 2000
    config.optim.momentum = 0.9
    if change.startswith("dropout"):
        config.model.dropout = float(change.removeprefix("dropout"))
    elif change.startswith("l2"):
        config.optim.l2 = float(change.removeprefix("l2"))
    elif change == "once":
        config.data.shuffle = "once"
    return config
