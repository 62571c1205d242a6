"""Stacked recurrent layers on spoken digits, with and without batch norm on the input terms.

Laurent et al. 2016 (arXiv:1510.01378) and Amodei et al. 2016 (arXiv:1512.02595), at a size for two
CPU cores: the Free Spoken Digit Dataset, 20 log-mel bands every 20 ms, at most 40 frames (8 in 10
recordings are shorter than 30), their true lengths. Each of six speakers is held out in turn as the
test set; 2,250 recordings of the others train and 250 validate. 48,000 weights in the recurrent
layers whatever the depth; the last layer's last h read out; Adam, clipping at 1, batches of 48,
2,000 updates (43 epochs). Norms have gamma 1, as published there, running averages keep 0.95. The
rates were 0.001 to 0.01 until a record of claim 9 had single layers at their best at 0.001.
"""

from experiments.config.defaults import FOLDS, default
from experiments.ledger.claims import Scale

RATES = (3e-4, 1e-3, 3e-3)
FEATURES, STEPS, WEIGHTS = 20, 40, 48_000
DATA = (
    "Free Spoken Digit Dataset, one of six speakers held out in turn, 48,000 recurrent weights, "
    "2,000 updates of 48 (the source: 11,940 hours of speech, 38 million weights)"
)
DS2 = "Amodei et al., ICML 2016, arXiv:1512.02595"
LAURENT = "Laurent et al., ICASSP 2016, arXiv:1510.01378"
ERROR = "test.population.log_error"
# The sources count words: errors are compared by the logarithm of their rate, whatever its level.
GAIN, HALF = 0.129, 0.064  # Deep Speech 2, 7 layers: log of 10.83 / 9.52
LIKE_GAIN = (
    "the sources give no number for this; 0.064 is half of what vertical batch norm gains at 7 "
    "layers in Deep Speech 2 (word error 10.83 to 9.52 %, a log ratio of 0.129)"
)


def scale(name, at, text, **more):
    return Scale(name, at, f"{text}; {DATA}", **more)


def replicate(config, n):
    """Hold out another speaker in each replicate."""
    config.data.fold = 1 + (n - 1) % FOLDS
    return config


def width(cell: str, depth: int) -> int:
    """Units a layer that make the weights of a stack come nearest to a number."""
    gates = 4 if cell == "lstm" else 1

    def total(h: int) -> int:
        return gates * h * (FEATURES + h + (depth - 1) * 2 * h)

    return min(range(1, 400), key=lambda h: abs(total(h) - WEIGHTS))


def spoken(
    depth: int,
    statistics: str = "none",
    activation: str = "tanh",
    horizontal: float | None = None,
):
    """`statistics`: "none", "sequence" (over batch and time) or "frame" (of each step)."""
    config = default()
    config.dataset = "fsdd"
    config.data.length = STEPS
    config.data.fold = 1
    config.model.update(cell="rnn", depth=depth, hidden=width("rnn", depth), activation=activation)
    config.model.recurrent_init = "orthogonal_joint"
    usual = {"name": "batch_norm", "decay": 0.95, "use_bias": False}
    frame = {"lift": "per_step", "max_steps": STEPS}
    if statistics != "none":
        lift = frame if statistics == "frame" else {"lift": "sequence_wise"}
        config.model.norm_x = {**usual, **lift, "scale_init": 1.0}
    if horizontal is not None:
        config.model.norm_h = {**usual, **frame, "scale_init": horizontal}
    config.optim.update(name="adam", learning_rate=3e-3)
    config.batch_size = 48
    config.eval_batch_size = 50
    config.steps = config.checkpoint_every = 2000
    config.log_every = 20
    config.eval_every = 100
    config.steps_per_call = 20
    return config
