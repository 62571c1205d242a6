"""Trains classifiers and generators of images with instance norm and with batch norm.

The sources: a network that paints photos in the style of a picture, and ImageNet errors of instance
norm 28.4, of batch norm 23.6.

"class" is LeNet on 14 x 14 pixels, norms after its convolutions; "style" and "copy" are the
generators of `experiments.tasks.generate` on 28 x 28, which paint an image in stripes, or copy it
through a code of 32 numbers. Adam for all of them. Losses and accuracies are of the test images,
batch norm with population statistics, estimated again over the training images; instance norm has
none. The source is about style and does not speak of copies: there an image's contrast, which
instance norm removes, is part of what must be reproduced.
"""

from experiments.ledger.rules import Claim, less

from configs.mlp_cnn import _protocol

NORMS = {"bn": _protocol.NORMS["bn"], "in": {"name": "instance_norm"}}
LOSS = "test.population.loss"

CLAIM = Claim(
    number=34,
    statement="Instance norm is behind batch norm in classification and ahead in image generation",
    source="Ulyanov et al. 2016; Wu, He 2018",
    expect="lower test accuracy, lower test loss of painting in a style and of copying",
    arms=("bn_class", "in_class", "bn_style", "in_style", "bn_copy", "in_copy"),
    rules=(
        less("in_class", "bn_class", "test.population.accuracy"),
        less("in_style", "bn_style", LOSS),
        less("in_copy", "bn_copy", LOSS),
    ),
    rates=(0.003, 0.01),
    tune="valid.population.loss",
    minutes=4,
    scale="Fashion-MNIST, 5,000 training images, a small LeNet, small generators, 300 steps",
    twin="configs/mlp_cnn/full.py:34.ARM",
)


def get_config(arm):
    """The norm before every ReLU of a convolution."""
    name, _, goal = arm.partition("_")
    options = {"dataset": "fashion_mnist", "steps": 300}
    if goal == "class":
        config = _protocol.lenet(arm, activation="relu", norm_conv=NORMS[name], **options)
    else:
        config = _protocol.images(arm, goal=goal, hidden=32, norm=NORMS[name], **options)
        config.task = "generate"
        config.data.side = 28
        config.batch_size = 32
    config.optim.name = "adam"
    config.data.valid_size = 1000
    config.data.test_size = 5000
    return config
