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


def small(variant: str):
    """100 units, the first 5,000 segments of 50 characters, 600 updates of 32."""
    config = ptb(variant, 50)
    config.data.update(stride=0, train_size=5000, valid_size=400, test_size=800)
    config.model.hidden = 100
    config.batch_size = 32
    config.eval_batch_size = 100
    config.steps = config.checkpoint_every = 600
    config.log_every = 20
    config.eval_every = 60
    config.steps_per_call = 20
    config.target_accuracy = 0.4
    return config
