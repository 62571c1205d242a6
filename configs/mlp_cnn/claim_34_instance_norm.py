"""Trains classifiers and painters of images with instance norm and with batch norm.

"class" is LeNet on 14 x 14 pixels, norms after its convolutions; "style" is the generator of
`experiments.tasks.generate` on 28 x 28, which paints an image in stripes. Adam for both. Batch norm
has statistics estimated again over the training images; instance norm has none.
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.claims import Claim, Group, Scale, less

NORMS = {"bn": _protocol.NORMS["bn"], "in": {"name": "instance_norm"}}
CONTRASTS = {"contrast1": 1, "contrast2": 2, "contrast5": 5}


def scale(name, most):
    range_of = f"their contrast divided by 1 to {most}" if most > 1 else "as they are"
    text = (
        f"Fashion-MNIST, 5,000 training images drawn anew, {range_of}, 1,000 updates of 128 "
        "(classes) or 600 of 32 (style) with Adam (the sources: photographs)"
    )
    return Scale(name, most, text, replicates=24, minutes=2.1)


GROUP = Group(
    number=34,
    title="Instance norm for classes and for style",
    topic="instance norm",
    source="Ulyanov, Vedaldi, Lempitsky 2016; Wu, He 2018",
    axis="largest over smallest contrast",
    scales=tuple(scale(*item) for item in CONTRASTS.items()),
    arms=("bn_class", "in_class", "bn_style", "in_style"),
    claims=(
        Claim(
            letter="a",
            title="Instance norm classifies worse than batch norm",
            statement="Instance norm after convolutions has a lower test accuracy than batch norm",
            rule=less("in_class", "bn_class", "test.population.accuracy"),
            delta=0.024,
            why="half of the 4.8 points between ResNet-50s on ImageNet",
            expect="validation error of ResNet-50 on ImageNet: instance norm 28.4 %, batch norm "
            "23.6 %, figure 4 and table 1",
            published=0.048,
            source="Wu, He 2018, arXiv:1803.08494",
            change="images on which the contrast between feature maps carries the class",
            methods=("instance norm", "batch norm"),
        ),
        Claim(
            letter="b",
            title="Instance norm paints in a style better than batch norm",
            statement="A network that paints images in the style of a picture reaches a lower loss "
            "of content and style with instance norm than with batch norm, since the contrast of "
            "the content should not matter",
            rule=less("in_style", "bn_style", "test.population.loss"),
            delta=0.036,
            why="the source shows pictures and no number; a tenth of batch norm's loss (0.36) in a "
            "pilot",
            expect="pictures of visibly better quality, figures 1 and 5",
            source="Ulyanov et al. 2016, arXiv:1607.08022",
            change="the source's generator on photographs, with a trained network for the loss",
            methods=("instance norm", "batch norm"),
        ),
    ),
    rates=(0.003, 0.01, 0.03),
)


def get_config(arm, scale="contrast1"):
    """The norm before every ReLU of a convolution."""
    name, _, goal = arm.partition("_")
    options = {**_protocol.sized("fashion5k"), "valid_size": 1000}
    if goal == "class":
        config = _protocol.lenet(arm, activation="relu", norm_conv=NORMS[name], **options)
    else:
        options |= {"goal": goal, "hidden": 32, "norm": NORMS[name], "side": 28, "steps": 600}
        config = _protocol.images(arm, **options)
        config.task = "generate"
        config.batch_size = 32
    config.optim.name = "adam"
    config.data.test_size = 5000
    config.data.contrast = float(CONTRASTS[scale])
    return config
