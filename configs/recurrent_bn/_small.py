"""The protocol of `_protocol.py` at a size for two CPU cores: digits, or rows of MNIST.

Digits: 8 x 8 images, a pixel a step, 64 steps; 50 units, batches of 50, 800 steps (28 epochs), the
validation set scored every 40. Rows: MNIST, a row of 28 pixels a step, 28 steps, 10,000 of the
images, 600 steps. All else as published: initializations, forget bias, clipping, RMSProp, gamma,
learned initial states, best validation accuracy with batch statistics, population statistics over
the training set at test.
"""

from configs.recurrent_bn import _protocol

RATES = (1e-3, 3e-3, 1e-2)


def digits(variant: str, gamma: float | None = None):
    config = _protocol.sequential_images("digits", variant)
    config.model.hidden = 50
    config.batch_size = 50
    config.steps = 800
    config.log_every = 20
    config.eval_every = 40
    return _finish(config, gamma)


def rows(variant: str, gamma: float | None = None):
    config = _protocol.sequential_images("mnist", variant)
    config.data.layout = "rows"
    config.data.train_size = 10_000
    config.data.valid_size = 2000
    for place in ("norm_x", "norm_h", "norm_sum", "norm_c"):
        if "max_steps" in config.model.get(place, {}):
            config.model[place].max_steps = 28
    config.model.hidden = 50
    config.batch_size = 50
    config.eval_batch_size = 200
    config.steps = 600
    config.log_every = 20
    config.eval_every = 60
    return _finish(config, gamma)


def _finish(config, gamma):
    config.checkpoint_every = config.steps
    config.steps_per_call = 20
    if gamma is not None:
        config.gamma = gamma
    return config
