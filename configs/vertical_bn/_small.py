"""Stacked recurrent layers on spoken digits, with and without batch norm on the input terms.

Laurent et al. 2016 (arXiv:1510.01378) and Amodei et al. 2016 (arXiv:1512.02595), at a size for two
CPU cores: the Free Spoken Digit Dataset, 20 log-mel bands every 20 ms, at most 40 frames (8 in 10
recordings are shorter than 30), their true lengths; 2,400 recordings; 12,000 weights in the
recurrent layers whatever the depth; the last layer's last h read out; Adam, clipping at 1, batches
of 48, 400 updates (8 epochs). Norms have gamma 1, as published there, running averages keep 0.95.
"""

from experiments.config.defaults import default

RATES = (1e-3, 3e-3, 1e-2)
FEATURES, STEPS, WEIGHTS = 20, 40, 12_000


def width(cell: str, depth: int, weights: int = WEIGHTS) -> int:
    """Units a layer that make the weights of a stack come nearest to a number."""
    gates = 4 if cell == "lstm" else 1

    def total(h: int) -> int:
        return gates * h * (FEATURES + h + (depth - 1) * 2 * h)

    return min(range(1, 200), key=lambda h: abs(total(h) - weights))


def spoken(
    cell: str,
    depth: int,
    statistics: str = "none",
    gamma: float = 1.0,
    horizontal: float | None = None,
):
    """`statistics`: "none", "sequence" (over batch and time) or "frame" (of each step)."""
    config = default()
    config.name = f"{cell}_{depth}_{statistics}"
    config.dataset = "fsdd"
    config.data.length = STEPS
    config.model.update(cell=cell, depth=depth, hidden=width(cell, depth))
    config.model.recurrent_init = "orthogonal_joint"
    if cell == "lstm":
        config.model.forget_bias = 1.0
    usual = {"name": "batch_norm", "decay": 0.95, "use_bias": False}
    frame = {"lift": "per_step", "max_steps": STEPS}
    if statistics != "none":
        lift = frame if statistics == "frame" else {"lift": "sequence_wise"}
        config.model.norm_x = {**usual, **lift, "scale_init": gamma}
    if horizontal is not None:
        config.model.norm_h = {**usual, **frame, "scale_init": horizontal}
    config.optim.update(name="adam", learning_rate=3e-3)
    config.batch_size = 48
    config.steps = config.checkpoint_every = 400
    config.log_every = 20
    config.eval_every = 40
    config.steps_per_call = 20
    return config
