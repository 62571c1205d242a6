"""Runs the loop of training: logs, validates, saves, and stops after a signal.

`Loop` is the same for a run alone (`experiments.runtime.run`) and for runs trained side by side
(`experiments.runtime.together`), as are the functions here: what a window of metrics says, the
words on a divergence, and the contents of final.json.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.runtime import metrics, parallel
from experiments.runtime.checkpoints import Checkpoints
from experiments.runtime.exits import Interrupted, Stop
from experiments.runtime.metrics import Progress
from experiments.runtime.workdir import hardware, versions

Tree = Any


class Loop(abc.ABC):
    """Trains from step `step` to `config["steps"]`.

    `state` is the checkpointed pytree: "now" (the train state), "best" (the best parameters so
    far) and "seconds".
    """

    config: dict[str, Any]
    layout: parallel.DeviceLayout
    checkpoints: Checkpoints
    progress: Progress
    state: Tree
    step: int
    finish_writing = True  # at the end, wait for what is still being written

    @abc.abstractmethod
    def advance(self, steps: int) -> None:
        """Take some steps."""

    @abc.abstractmethod
    def check_window(self, log: bool) -> None:
        """Fetch the last steps' metrics, act on those that are not finite, and log their means."""

    @abc.abstractmethod
    def validate(self) -> None:
        """Score the validation set with batch statistics and keep the best parameters."""

    @abc.abstractmethod
    def save(self) -> None:
        """Write a checkpoint in the background, after the metrics up to it are on the disk."""

    def ended(self) -> bool:
        """Whether there is nothing left to train."""
        return self.step >= self.config["steps"]

    def start_clock(self) -> None:
        """Count the seconds from now, on top of those in the state."""
        self.spent, self.began = float(self.state["seconds"]), time.perf_counter()

    def seconds(self) -> float:
        """Time spent on this run, summed over the processes that have continued it."""
        return self.spent + time.perf_counter() - self.began

    def loop(self, stop: Stop) -> None:
        """Train to the last step, or to the step after which a signal is obeyed."""
        config, call = self.config, self.config["steps_per_call"]
        while not self.ended():
            steps = min(call - self.step % call, config["steps"] - self.step)
            self.advance(steps)
            self.step += steps
            self.progress.step(steps)
            signal_number = stop.agreed_signal(self.state["now"], self.layout.devices)
            last = self.step == config["steps"]
            log = last or self.step % config["log_every"] == 0
            validate_now = last or self.step % config["eval_every"] == 0
            save = last or self.step % config["checkpoint_every"] == 0 or signal_number
            if log or validate_now or save:
                self.check_window(log)
            if validate_now:
                self.validate()
            if save:
                self.save()
            if signal_number and not last:
                self.checkpoints.wait()
                raise Interrupted(
                    f"stopped at step {self.step}, checkpoint written; the same command continues "
                    "from there.",
                    signal_number,
                )


class Window:
    """The metrics of the steps since the last row, `{name: [steps]}`, of one run.

    `fetched` is the train state's "window", which has room for `log_every` steps.
    """

    def __init__(self, fetched: Mapping[str, Any], step: int, log_every: int):
        used = (step - 1) % log_every + 1
        self.values = {name: np.asarray(values)[:used] for name, values in fetched.items()}
        self.finite = np.isfinite(self.values["loss"]) & np.isfinite(self.values["grad_norm"])
        self.first = step - used + 1

    def diverged_at(self, config: Mapping[str, Any], skipped: int) -> int | None:
        """Return the step that ends the run by `config.nonfinite`, None if it goes on."""
        allowed = config["nonfinite"] == "skip" and skipped <= config["nonfinite_limit"]
        return None if self.finite.all() or allowed else self.first + int(np.argmin(self.finite))

    def means(self) -> dict[str, float]:
        """Average the finite steps; all, if none is."""
        finite = self.finite if self.finite.any() else slice(None)
        return {k: float(v[finite].mean(dtype=np.float64)) for k, v in self.values.items()}


def divergence(at: int, skipped: int, where: str, first: str) -> str:
    """Say at which step a run diverged, where its last checkpoint is, and what to try."""
    count = f"{skipped} steps were skipped, more than config.nonfinite_limit; " if skipped else ""
    return (
        f"loss or gradient is not finite at step {at}; {count}{where}. {first} "
        "The same command would fail again at this step: try a lower "
        "--config.optim.learning_rate, a lower --config.optim.clip_norm, "
        "--config.nonfinite=skip where single batches are to blame, or "
        "--config.model.h0_noise=0.1 where the first inputs are constant."
    )


def parameters(train_state: Tree) -> int:
    """Count the trained numbers of one run."""
    return int(sum(x.size for x in jax.tree.leaves(train_state["params"])))


def result(
    config: dict[str, Any],
    state: Tree,
    rows: Sequence[dict[str, Any]],
    scores: Mapping[str, Any],
    devices: int,
) -> dict[str, Any]:
    """Compose the contents of final.json of a run from its last state, rows and scores."""
    best = state["best"]
    return {
        "name": config["name"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "steps": int(state["now"]["step"]),
        "best_step": int(best["step"]),
        "parameters": parameters(state["now"]),
        "target_accuracy": config["target_accuracy"],
        "steps_to_target": metrics.steps_to(rows, config["target_accuracy"]),
        "metrics": metrics.digest(rows),
        "seconds": round(float(state["seconds"]), 2),
        **scores,
        "config": config,
        "versions": versions(),
        "hardware": hardware(devices),
    }
