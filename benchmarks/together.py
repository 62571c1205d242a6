"""Whether training runs side by side in one program pays: time of a member's step, and alone.

    python -m benchmarks.together [--rounds=5] [--steps=200] [--members=2,4,8]

Three models on digits, 64 pixels each. A round trains one run alone and then groups of members,
each by `experiments.runtime` from nothing; the time is between two rows of their metrics, so
compilation, evaluation and checkpoints are left out. Medians over the rounds.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

from configs.recurrent_bn import digits
from experiments.config import validate
from experiments.config.defaults import default
from experiments.runtime import metrics, run, together

LOG = 20
MODELS = ("lstm", "bn_lstm", "mlp")


def settings(model: str, steps: int) -> dict[str, Any]:
    """The config of a run that only trains: 50 units, or two hidden layers of 100."""
    if model == "mlp":
        config = default()
        config.task, config.data.layout, config.name = "image", "images", "mlp"
        config.model = {"hidden": 100, "norm_dense": {"name": "batch_norm"}}
    else:
        config = digits.get_config(model)
        config.model.hidden = 50
    config.batch_size, config.devices = 100, 1
    config.steps, config.log_every = steps, LOG
    config.eval_every = config.checkpoint_every = steps
    return validate.check(config)


def step_time(config: dict[str, Any], members: int) -> float:
    """Milliseconds of one member's step, from the first row to the last but one."""
    with tempfile.TemporaryDirectory() as folder:
        if members == 1:
            run.train(config, f"{folder}/0")
        else:
            configs = [{**config, "seed": seed} for seed in range(members)]
            together.train_together(configs, [f"{folder}/{seed}" for seed in range(members)])
        rows = [r for r in metrics.read_rows(f"{folder}/0/metrics.jsonl") if r["split"] == "train"]
    first, last = rows[0], rows[-2]
    return 1e3 * (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])


def main(argv: Sequence[str]) -> None:
    """Entry point of ``python -m benchmarks.together``."""
    del argv
    logging.set_verbosity(logging.WARNING)  # Orbax is verbose at INFO
    sizes = [1, *map(int, flags.FLAGS.members)]
    table = [["", *(f"{n} together" if n > 1 else "alone" for n in sizes)]]
    for model in MODELS:
        config = settings(model, flags.FLAGS.steps)
        rounds = [[step_time(config, n) for n in sizes] for _ in range(flags.FLAGS.rounds)]
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        table.append([model, *(f"{ms:.2f}" for ms in medians)])
    print("Milliseconds of a member's step:")
    for row in (table[0], [":---", *["---:"] * len(sizes)], *table[1:]):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 5, "Runs of each.", lower_bound=1)
    flags.DEFINE_integer("steps", 200, "Steps of a run.", lower_bound=3 * LOG)
    flags.DEFINE_list("members", ["2", "4", "8"], "Sizes of the groups.")
    app.run(main)
