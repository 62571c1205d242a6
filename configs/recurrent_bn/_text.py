"""Characters of the Penn Treebank: the paper's protocol, and one for two CPU cores.

Cooijmans et al. 2017, section 5.2 and the authors' `penntreebank.py`: one LSTM of 1,000 units on
one-hot characters, segments of 100 (99 predictions there, 100 here), the state starting anew for
each, batches of 64, Adam at 0.002, clipping at 1, orthogonal weights, gamma 0.1, running averages
keep 0.95. Segments overlap here by 90 characters where the authors draw a new offset every epoch.
"""

from configs.recurrent_bn import _protocol
from experiments.config.defaults import default


def ptb(variant: str, length: int = 100):
    places, gamma = _protocol.VARIANTS[variant]
    config = default()
    config.name = variant
    config.task = "language"
    config.dataset = "text"
    config.data.length = length
    config.data.stride = 10
    config.model.update(
        hidden=1000,
        embed=0,
        kernel_init="orthogonal_joint",
        recurrent_init="orthogonal_joint",
        forget_bias=1.0,
        learn_carry=True,
    )
    config.optim.update(name="adam", learning_rate=2e-3)
    config.batch_size = 64
    for place in ("norm_x", "norm_h", "norm_c"):
        if place in places:
            norm = _protocol.norm(places[place], place, gamma, length)
            config.model[place] = {**norm, "decay": 0.95}
    if "norm_c" not in places:
        config.model.norm_c = {"name": "identity", "use_bias": True}
    config.steps = 400_000
    config.log_every = 100
    config.eval_every = 8000
    config.checkpoint_every = 2000
    return config


def small(variant: str, hidden: int):
    """So many units and 5,000 updates, 6 epochs of segments that do not overlap."""
    config = ptb(variant)
    config.data.stride = 0
    config.model.hidden = hidden
    config.steps = config.checkpoint_every = 5000
    config.log_every = 50
    config.eval_every = 250
    config.steps_per_call = 50
    config.select = "loss"
    return config


def published(variant: str):
    """The paper's 50 epochs of 797 updates."""
    config = ptb(variant)
    config.steps = 40_000
    config.eval_every = config.checkpoint_every = 2000
    config.steps_per_call = 100
    config.select = "loss"
    return config
