"""ResNet-20 on Fashion-MNIST with any norm, and a ConvNeXt-like network.

Paper:     He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
           section 4.2, whose network and recipe these are, but for the schedule and the data.
Numbers:   none published for this recipe; bn: 93.0 % (results/fashion_mnist_resnet20, one seed).
Cost:      4,680 updates, 12 passes; 71 minutes on one CPU core.
Command:   python -m experiments.train --config=configs/image_classification/fashion_mnist.py:bn \
               --workdir=runs/fashion_mnist/bn

Variants: bn, gn, ln, brn (batch renorm), none; pre_bn (pre-activation); convnext_ln, convnext_bn.
SGD with Nesterov momentum 0.9, batches of 128, L2 of 5e-4 on weights alone, images flipped at
random, and a rate that rises to 0.1 in 500 steps and falls to 0 as a cosine. The ConvNeXt-like
networks have AdamW. Another depth: --config.model.depth=56. Fewer updates, with a cosine
as short: --config.steps=2000.
"""

import ml_collections

from experiments.config.defaults import default

NORMS = {
    "bn": {"name": "batch_norm", "decay": 0.9},
    "gn": {"name": "group_norm", "groups": 8},
    "ln": {"name": "layer_norm"},
    "brn": {"name": "batch_renorm", "decay": 0.99},
    "none": {"name": "none"},
}
VARIANTS = (*NORMS, "pre_bn", "convnext_ln", "convnext_bn")
PASS = 50_000 // 128  # steps


def get_config(variant: str = "bn"):
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; variants: {', '.join(VARIANTS)}.")
    config = default()
    config.name = variant
    config.task, config.dataset, config.data.layout = "image", "fashion_mnist", "images"
    config.data.augment = "flip"
    config.batch_size = 128
    config.steps = 12 * PASS
    config.log_every, config.eval_every, config.checkpoint_every = 50, PASS, PASS
    config.eval_batch_size = 500
    config.optim.update(schedule="cosine", warmup=500, clip_norm=0.0, eps=1e-8)
    if variant.startswith("convnext"):
        model = {"arch": "convnext", "norm": NORMS[variant.rpartition("_")[2]]}
        config.optim.update(name="adamw", learning_rate=4e-3, weight_decay=0.05)
        config.optim.label_smoothing = 0.1
    else:
        kind = variant.rpartition("_")[2]
        model = {"arch": "resnet", "depth": 20, "zero_last": True, "norm": NORMS[kind]}
        model["position"] = "pre" if variant.startswith("pre") else "post"
        config.optim.update(name="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, l2=5e-4)
    config.model = ml_collections.ConfigDict(model)
    config.lock()
    return config
