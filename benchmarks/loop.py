"""What the training loop adds to its steps: data, metrics, progress bar, looking for signals.

    python -m benchmarks.loop [--rounds=5] [--steps=400]

Digits pixel by pixel, 100 units, batches of 100. A round trains a run of `experiments.train` from
nothing, and takes as many of the same compiled steps, on one batch, with nothing between them. The
loop's time is between two rows of its metrics, so compilation, evaluation and checkpoints are left
out. `calls` is `config.steps_per_call`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from configs.recurrent_bn import digits
from experiments import tasks, train
from experiments.config import validate
from experiments.data import datasets
from experiments.runtime import metrics, parallel, step
from experiments.runtime.step import compiled_step

LOG = 50


def settings(variant: str, calls: int, steps: int) -> dict[str, Any]:
    """The config of a run that only trains."""
    config = digits.get_config(variant)
    with config.unlocked():
        config.model.hidden = 100
    config.batch_size = 100
    config.steps, config.log_every, config.steps_per_call = steps, LOG, calls
    config.eval_every = config.checkpoint_every = steps
    return validate.check(config)


def loop(config: dict[str, Any]) -> float:
    """Milliseconds of a step in the loop, from the run's first row to the last but one."""
    with tempfile.TemporaryDirectory() as folder:
        train.train(config, folder)
        rows = [r for r in metrics.read_rows(f"{folder}/metrics.jsonl") if r["split"] == "train"]
    first, last = rows[0], rows[-2]
    return 1e3 * (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])


def steps(config: dict[str, Any]) -> float:
    """Milliseconds of a step alone."""
    spread = parallel.DeviceLayout(config["parallel"], config["devices"], config["batch_stats"])
    dataset = datasets.load_config_data(config).on_device()
    task, calls = tasks.build(config, dataset), config["steps_per_call"]
    optim, rate = step.static(config["optim"])
    now = step.start(task, step.optimizer(config["optim"]), config)["now"]
    run_step = compiled_step(spread, task, optim, False, calls > 1)
    index = np.arange(config["batch_size"], dtype=np.int32)
    index = np.broadcast_to(index, (calls, *index.shape)) if calls > 1 else index
    batch = spread.split(spread.pad(index))
    took = 0.0
    for call in range(config["steps"] // calls):
        began = time.perf_counter()
        now = jax.block_until_ready(run_step(now, dataset.train, *batch, rate))
        took += time.perf_counter() - began
        if call == 0:
            took = 0.0  # compiled
    return 1e3 * took / (config["steps"] - calls)


def main(argv: Sequence[str]) -> None:
    """Entry point of ``python -m benchmarks.loop``."""
    del argv
    print("| | calls | step ms | loop ms | loop adds |\n| :--- | ---: | ---: | ---: | ---: |")
    for variant in ("lstm", "bn_lstm"):
        for calls in (1, 10):
            config = settings(variant, calls, flags.FLAGS.steps)
            found = [(steps(config), loop(config)) for _ in range(flags.FLAGS.rounds)]
            alone, whole = (statistics.median(f) for f in zip(*found, strict=True))
            added = statistics.median(w / a - 1 for a, w in found)
            print(f"| {variant} | {calls} | {alone:.2f} | {whole:.2f} | {100 * added:.1f} % |")


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 5, "Runs of each.", lower_bound=1)
    flags.DEFINE_integer("steps", 400, "Steps of a run.", lower_bound=3 * LOG)
    app.run(main)
