"""Trains LeNet at small and large batches under norms of a batch and of one sample.

"bn_small" sees the scale's batch size, "bn_large" 128; all see 100,000 examples. Rates are those at
128 and go with the batch size, as in Wu, He. "ghost_large" has the scale's batch size as that of
its ghosts: its statistics are those of bn_small, its steps those of bn_large. Test accuracy is with
running statistics, as in the papers.
"""

from typing import Any

from configs.mlp_cnn import _protocol
from experiments.ledger.claims import Claim, Control, Group, Scale, Settled, contrast, more, same
from experiments.runtime import members

ACCURACY = "test.running.accuracy"
LARGE, EXAMPLES = 128, 100_000
NORMS: dict[str, dict[str, Any]] = {
    "bn": {"name": "batch_norm", "decay": 0.9},
    "gn": {"name": "group_norm", "groups": 2},
    "ln": {"name": "layer_norm", "axes": [-3, -2, -1], "feature_axes": [-1]},
    "in": {"name": "instance_norm"},
    "brn": {"name": "batch_renorm", "decay": 0.9},
    "ghost": {"name": "ghost_batch_norm", "decay": 0.9},
}
WU = "Wu, He 2018, table 2 and figure 1, arXiv:1803.08494"
ERRORS = (
    "error of ResNet-50 on ImageNet at 32 and 2 images a device: batch norm 23.6 and 34.7 %, group "
    "norm 24.1 and 24.1 %"
)
ALIKE = Control(
    "group norm equals batch norm at the large batch", same("gn_large", "bn_large", ACCURACY), 0.02
)


def scale(batch, minutes, replicates):
    text = (
        f"LeNet, MNIST 14 x 14, 5,000 training images drawn anew, batches of {batch} and {LARGE}, "
        "100,000 examples seen (the source: ResNet-50, ImageNet, batches of 2 to 32 a device)"
    )
    return Scale(f"batch{batch}", LARGE // batch, text, replicates, minutes)


def falls(letter, norm, words, published):
    return Claim(
        letter=letter,
        title=f"Small batches: BN loses more than {norm.upper()}",
        statement=f"From large to small batches batch norm loses more accuracy than {words} norm",
        rule=contrast(
            f"(bn_large − bn_small) − ({norm}_large − {norm}_small), {ACCURACY}",
            (1.0, "bn_large", ACCURACY),
            (-1.0, "bn_small", ACCURACY),
            (-1.0, f"{norm}_large", ACCURACY),
            (1.0, f"{norm}_small", ACCURACY),
        ),
        delta=0.0555,
        published=published,
        why="half of the 11.1 points by which batch norm falls more than group norm at 2 images",
        expect=ERRORS,
        source=WU,
        controls=(ALIKE, Settled()),
        change="deep networks, in which the noise of many layers adds up",
        methods=("batch norm", f"{words} norm"),
    )


GROUP = Group(
    number=17,
    title="Batch size: norms of a batch and of one sample",
    topic="batch size",
    source="Wu, He 2018; Ioffe 2017; Hoffer et al. 2017",
    axis="128 over the batch size",
    scales=(
        scale(32, 3.5, 16),
        scale(16, 4.5, 12),
        scale(8, 7.5, 12),
        scale(4, 14, 8),
        scale(2, 27, 8),
    ),
    arms=(
        *("bn_small", "gn_small", "ln_small", "in_small", "brn_small"),
        *("bn_large", "gn_large", "ln_large", "in_large", "ghost_large"),
    ),
    claims=(
        falls("a", "gn", "group", 0.111),
        falls("b", "ln", "layer", None),
        falls("c", "in", "instance", None),
        Claim(
            letter="d",
            title="Small batches: batch renorm beats batch norm",
            statement="In small batches batch renormalization has a higher accuracy than batch "
            "norm",
            rule=more("brn_small", "bn_small", ACCURACY),
            delta=0.0115,
            published=0.023,
            why="half of about 2.3 points, from memory; not verified",
            expect="Inception-v3 on ImageNet in batches of 4: batch norm about 74.2 %, batch "
            "renorm about 76.5 % (from memory, not verified)",
            source="Ioffe 2017, section 4.2, arXiv:1702.03275",
            controls=(Settled(),),
            change="deep networks, and the source's schedule of the two clips",
            methods=("batch renorm", "batch norm"),
        ),
        Claim(
            letter="e",
            title="Ghost batches generalize better than one large batch",
            statement="In a large batch, statistics of ghost batches give a higher accuracy than "
            "statistics of the whole batch",
            rule=more("ghost_large", "bn_large", ACCURACY),
            delta=0.006,
            published=0.012,
            why="half of about 1.2 points, from memory; not verified",
            expect="ResNet-44 on CIFAR-10 in batches of 4096, ghosts of 128: about 90.5 against "
            "89.3 %, table 1 (from memory, not verified)",
            source="Hoffer et al. 2017, arXiv:1705.08741",
            controls=(Settled(),),
            change="batches of thousands, where the source sees a gap between large and small",
            methods=("ghost batch norm", "batch norm"),
        ),
    ),
    rates=(0.2, 0.6, 2.0),
)


def get_config(arm, scale="batch32"):
    """The norm after both convolutions, before ReLU."""
    name, _, size = arm.partition("_")
    small = LARGE // int(GROUP.scale(scale).at)
    batch = small if size == "small" else LARGE
    norm = {**NORMS[name], "size": small} if name == "ghost" else NORMS[name]
    steps = EXAMPLES // batch // 20 * 20
    options = {"steps": steps, "rows": 20, "valid_size": 5000}
    config = _protocol.lenet(arm, activation="relu", norm_conv=norm, **options)
    config.batch_size = batch
    config.steps_per_call = 25 if batch <= 8 else 1
    return config


def replicate(config, n):
    """The learning rate of 128 times the share of it that the batch is."""
    del n
    rate = config.optim.learning_rate * config.batch_size / LARGE
    return members.with_changes(config, {"optim.learning_rate": rate})
