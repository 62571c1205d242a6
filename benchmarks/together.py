"""Whether training runs side by side in one program pays: a member's step, and a run's alone.

    python -m benchmarks.together [--rounds=40] [--members=4]

Three models on digits, 64 pixels each, in batches of 100. A round takes one step of a run alone and
one of a group of members, for each model; the table has medians over the rounds, of the time on the
clock and of the processor time of all threads, divided by the members. Compilation, data and
evaluation are left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from configs.recurrent_bn import digits
from experiments import tasks
from experiments.config import validate
from experiments.config.defaults import default
from experiments.data import datasets
from experiments.runtime import group, parallel, step

MODELS = ("lstm", "bn_lstm", "mlp")


def settings(model: str) -> dict[str, Any]:
    """A config of 50 units, or of two hidden layers of 100."""
    if model == "mlp":
        config = default()
        config.task, config.data.layout, config.name = "image", "images", "mlp"
        config.model = {"hidden": 100, "norm_dense": {"name": "batch_norm"}}
    else:
        config = digits.get_config(model)
        config.model.hidden = 50
    config.batch_size, config.devices = 100, 1
    return validate.check(config)


def stepper(config: dict[str, Any], members: int) -> Callable[[], tuple[float, float]]:
    """A function that takes a step: milliseconds on the clock, and of processor, of a member."""
    layout = parallel.DeviceLayout(config["parallel"], config["devices"])
    dataset = datasets.load_config_data(config).on_device()
    task = tasks.build(config, dataset)
    optim, rate = step.static(config["optim"])
    tx = step.optimizer(config["optim"])
    states = [step.start(task, tx, {**config, "seed": seed}) for seed in range(members)]
    index = np.arange(members * config["batch_size"], dtype=np.int32).reshape(members, -1)
    if members == 1:
        now, rows, rates = states[0]["now"], index[0], rate
    else:
        now, rows, rates = group.stacked(states)["now"], index, np.full(members, rate)
    side = parallel.Members() if members > 1 else None
    take = step.compiled_step(layout, task, optim, False, False, side)

    def timed() -> tuple[float, float]:
        nonlocal now
        began = time.perf_counter(), time.process_time()
        now = jax.block_until_ready(take(now, dataset.train, rows, None, rates))
        ended = time.perf_counter(), time.process_time()
        return tuple(1e3 * (b - a) / members for a, b in zip(began, ended, strict=True))

    timed()  # compiles
    return timed


def main(argv: Sequence[str]) -> None:
    """Entry point of ``python -m benchmarks.together``."""
    del argv
    members = flags.FLAGS.members
    print(f"| | alone, ms | {members} together, ms | alone, CPU ms | {members} together, CPU ms |")
    print("| :--- | ---: | ---: | ---: | ---: |")
    for model in MODELS:
        pair = [stepper(settings(model), n) for n in (1, members)]
        rounds = [[one() for one in pair] for _ in range(flags.FLAGS.rounds)]
        alone, side = (
            [statistics.median(r[i][kind] for r in rounds) for kind in (0, 1)] for i in (0, 1)
        )
        numbers = (alone[0], side[0], alone[1], side[1])
        print(f"| {model} | {' | '.join(f'{ms:.2f}' for ms in numbers)} |", flush=True)


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 40, "Steps of each.", lower_bound=1)
    flags.DEFINE_integer("members", 4, "Runs in a group.", lower_bound=2)
    app.run(main)
