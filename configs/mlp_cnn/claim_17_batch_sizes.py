"""Trains LeNet at batches of 2, 8 and 128 under norms of a batch and of one sample.

Error of ResNet-50 on ImageNet in Wu, He, figure 1 and table 2: BN 23.6 at 32 images per device,
34.7 at 2; GN 24.1 at both. Batch renorm should be above batch norm at 2, and ghosts of 16 within 1
point of batch norm at 128. An arm is norm_batch size. Test accuracy is with running statistics, as
in the papers: those are the averages over small batches.
"""

from experiments.ledger.rules import Claim, contrast, more, same

from configs.mlp_cnn import _protocol

NORMS = {
    "bn": {"name": "batch_norm", "decay": 0.9},
    "gn": {"name": "group_norm", "groups": 2},
    "ln": {"name": "layer_norm", "axes": [-3, -2, -1], "feature_axes": [-1]},
    "in": {"name": "instance_norm"},
    "brn": {"name": "batch_renorm", "decay": 0.9},
    "ghost": {"name": "ghost_batch_norm", "size": 16, "decay": 0.9},
}
STEPS = {2: 1500, 8: 800, 128: 150}
ACCURACY = "test.running.accuracy"


def fall(norm):
    """Accuracy lost from batch 128 to 2, of batch norm more than of another."""
    return contrast(
        f"(bn_128 - bn_2) - ({norm}_128 - {norm}_2), {ACCURACY}",
        (1.0, "bn_128", ACCURACY),
        (-1.0, "bn_2", ACCURACY),
        (-1.0, f"{norm}_128", ACCURACY),
        (1.0, f"{norm}_2", ACCURACY),
        by=0.01,
    )


CLAIM = Claim(
    number=17,
    statement="Batch norm loses accuracy at small batches where group, layer and instance norm do "
    "not, batch renorm loses less, and ghost batches lose nothing at a large one",
    source="Wu, He 2018, figure 1; Ioffe 2017; Hoffer et al. 2017",
    expect="batch norm falls by over 1 point more than the others from batch 128 to 2",
    arms=(
        *("bn_2", "bn_8", "bn_128", "gn_2", "gn_8", "gn_128"),
        *("ln_2", "ln_128", "in_2", "in_128", "brn_2", "ghost_128"),
    ),
    rules=(
        fall("gn"),
        fall("ln"),
        fall("in"),
        more("brn_2", "bn_2", ACCURACY),
        same("ghost_128", "bn_128", ACCURACY, within=0.01),
    ),
    rates=(0.03, 0.1),
    tune="valid.running.accuracy",
    minutes=10,
    scale=_protocol.SCALE + "; batches 2, 8, 128",
    twin="configs/mlp_cnn/full.py:17.ARM",
)


def get_config(arm):
    """The norm after both convolutions, before ReLU."""
    name, _, size = arm.partition("_")
    config = _protocol.lenet(arm, activation="relu", norm_conv=NORMS[name], steps=STEPS[int(size)])
    config.batch_size = int(size)
    return config
