"""Trains one run in its workdir: finds where it starts, runs the loop, and writes the result.

A run starts from, in this order: (1) the newest checkpoint in the workdir; (2) the newest
checkpoint in `config.resume`, another workdir; (3) scratch.

The workdir, a local folder or a bucket (gs://…), holds config.json (resolved, with versions),
checkpoints/, metrics.jsonl, TensorBoard files and, once finished, final.json.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from experiments import tasks
from experiments.config import validate
from experiments.data import batches, datasets, splits
from experiments.runtime import distributed, exits, metrics, nonfinite, parallel
from experiments.runtime.checkpoints import Checkpoints
from experiments.runtime.exits import Diverged, Interrupted, Stop
from experiments.runtime.metrics import Metrics, Progress
from experiments.runtime.step import (
    better,
    compiled_step,
    evaluate,
    final_scores,
    optimizer,
    start,
    static,
)
from experiments.runtime.workdir import (
    check_workdir,
    hardware,
    make_workdir,
    read_json,
    removed_if_refused,
    versions,
    write_json,
    writer_lock,
)
from experiments.usage import UsageError

Tree = Any


def train(config: Mapping[str, Any], workdir: str | os.PathLike) -> dict[str, Any]:
    """Run a config in a workdir, resuming if possible, and return the contents of final.json."""
    config = validate.check(config)
    folder = epath.Path(workdir)
    config["resume"] = os.path.expanduser(config["resume"])
    if config["resume"] and not (epath.Path(config["resume"]) / "checkpoints").is_dir():
        raise UsageError(f"config.resume={config['resume']!r} holds no checkpoints folder.")
    datasets.require(config)  # before the workdir is made
    layout = parallel.DeviceLayout(config["parallel"], config["devices"], config["batch_stats"])
    if jax.process_index() == 0:
        check_workdir(folder, config, layout.count)
    if layout.processes > 1:
        multihost_utils.sync_global_devices("workdir")
        distributed.require_one_config(config)
    done = folder / "final.json"
    if done.exists():
        final = read_json(done, "steps", "name", "best_step", "seconds", "valid", "test")
        if final["steps"] == config["steps"]:
            curves = folder / "metrics.jsonl"
            metrics.check_complete(curves, metrics.read_rows(curves), final.get("metrics"))
            return final
    # What can refuse the config comes before anything is made: the data, the model, its start.
    dataset = datasets.load_config_data(config)
    task = tasks.build(config, dataset)
    jax.eval_shape(lambda key: task.init(key), jax.random.key(0))
    with removed_if_refused(folder):
        if jax.process_index() == 0:
            make_workdir(folder, config, layout.count)
        if layout.processes > 1:
            multihost_utils.sync_global_devices("made")
        with (
            writer_lock(folder),
            exits.reraise_as_broken(
                f"the newest whole checkpoint in {folder}/checkpoints is kept."
            ),
        ):
            return _Run(config, folder, layout, task, dataset.on_device()).finish()


class _Run:
    """The state of a run and the loop that trains it to its last step.

    `state` is the checkpointed pytree: "now" (the train state), "best" (the best parameters so
    far) and "seconds".
    """

    def __init__(
        self,
        config: dict,
        workdir: epath.Path,
        layout: parallel.DeviceLayout,
        task: tasks.Task,
        dataset: splits.Dataset,
    ):
        self.config, self.workdir, self.layout = config, workdir, layout
        self.finish_writing = True  # at the end, wait for what is still being written
        self.task, self.size = task, splits.size(dataset.train)
        self.dataset = dataset.each(layout.replicate)
        self.optim, self.rate = static(config["optim"])
        self.skip = config["nonfinite"] == "skip"
        self.checkpoints = Checkpoints(workdir, config["keep_checkpoints"])
        try:
            self.state, self.iterator, self.origin, logged = self.begin()
            self.step = int(self.state["now"]["step"])
            if self.step > config["steps"]:
                raise UsageError(
                    f"{self.origin} is beyond config.steps={config['steps']}; "
                    f"write --config.steps={self.step} or more."
                )
            self.metrics = Metrics(workdir, self.step, logged)
        except BaseException:
            self.checkpoints.close()
            raise
        self.progress = Progress(config["name"], config["steps"], self.step)
        self.spent, self.began = float(self.state["seconds"]), time.perf_counter()

    def begin(self) -> tuple[Tree, Any, str, dict[str, int] | None]:
        """Return where to start: state, data iterator, their origin, the digest of the metrics."""
        config, task = self.config, self.task
        state = self.layout.replicate(start(task, optimizer(config["optim"]), config))
        shuffle = config["data"]["shuffle"]
        iterator = batches.batches(self.size, config["batch_size"], config["seed"], shuffle)
        if self.checkpoints.latest() is not None:
            state, position, logged = self.checkpoints.restore(state)
            origin = f"step {int(state['now']['step'])} of {self.workdir}"
        elif config["resume"]:
            other = Checkpoints(config["resume"], write=False)
            try:
                if other.latest() is None:
                    raise UsageError(
                        f"config.resume={config['resume']!r} holds no finished checkpoint."
                    )
                state, position, _ = other.restore(state)
                logged = None  # the other run's metrics stay where they are
            finally:
                other.close()
            origin = f"step {int(state['now']['step'])} of {config['resume']}"
        else:
            return state, iterator, "scratch", None
        iterator.set_state(position)
        return state, iterator, origin, logged

    def seconds(self) -> float:
        """Time spent on this run, summed over the processes that have continued it."""
        return self.spent + time.perf_counter() - self.began

    def batch(self, iterator: Any, steps: int) -> tuple[Any, Any]:
        """Indices and weights of the next steps, split over the devices."""
        rows = [np.asarray(next(iterator), np.int32) for _ in range(steps)]
        several = self.config["steps_per_call"] > 1
        return self.layout.split(self.layout.pad(np.stack(rows) if several else rows[0]))

    def advance(self, train_state: Tree, iterator: Any, steps: int) -> Tree:
        """Take some steps from a train state, which is donated."""
        several = self.config["steps_per_call"] > 1
        step = compiled_step(self.layout, self.task, self.optim, self.skip, several)
        return step(train_state, self.dataset.train, *self.batch(iterator, steps), self.rate)

    def check_window(self, log: bool) -> None:
        """Fetch the last steps' metrics, stop if they are not finite, and log their means."""
        used = (self.step - 1) % self.config["log_every"] + 1
        window = jax.device_get(self.state["now"]["window"])
        window = {k: np.asarray(w)[:used] for k, w in window.items()}
        finite = np.isfinite(window["loss"]) & np.isfinite(window["grad_norm"])
        skipped = int(self.state["now"]["skipped"]) if self.skip else 0
        if not finite.all() and (not self.skip or skipped > self.config["nonfinite_limit"]):
            self.raise_diverged(self.step - used + 1 + int(np.argmin(finite)), skipped)
        if log:
            logged = {k: w[finite] for k, w in window.items()} if finite.any() else window
            values = {k: float(w.mean(dtype=np.float64)) for k, w in logged.items()}
            counts = {"skipped": skipped} if self.skip else {}
            self.metrics.write(self.step, "train", self.seconds(), **values, **counts)
            self.progress.loss(values["loss"])

    def raise_diverged(self, at: int, skipped: int) -> None:
        """Say at which step and in which tensors the first infinity or NaN appeared."""
        self.checkpoints.wait()
        latest = self.checkpoints.latest()
        where = "there is no checkpoint yet" if latest is None else f"step {latest} is kept"
        count = (
            f"{skipped} steps were skipped, more than config.nonfinite_limit; " if skipped else ""
        )
        # Replaying the steps since the last checkpoint gives the same numbers, this time with
        # every tensor checked: no step of a healthy run pays for the check.
        state, iterator, *_ = self.begin()
        train_state = state["now"]
        for _ in range(int(train_state["step"]), at - 1):
            train_state = self._single_step(train_state, iterator)
        index = self.layout.pad(np.asarray(next(iterator), np.int32))
        rows = self.layout.split(index)
        first = nonfinite.report(self.task, train_state, self.dataset.train, *rows)
        raise Diverged(
            f"loss or gradient is not finite at step {at}; {count}{where} in "
            f"{self.checkpoints.folder}. {first} "
            "The same command would fail again at this step: try a lower "
            "--config.optim.learning_rate, a lower --config.optim.clip_norm, "
            "--config.nonfinite=skip where single batches are to blame, or "
            "--config.model.h0_noise=0.1 where the first inputs are constant."
        )

    def _single_step(self, train_state: Tree, iterator: Any) -> Tree:
        step = compiled_step(self.layout, self.task, self.optim, self.skip, False)
        index = self.layout.pad(np.asarray(next(iterator), np.int32))
        return step(train_state, self.dataset.train, *self.layout.split(index), self.rate)

    def validate(self) -> None:
        """Score the validation set with batch statistics and keep the best parameters."""
        train_state, best = self.state["now"], self.state["best"]
        scores = evaluate(
            train_state["params"],
            train_state["norm"],
            self.dataset.valid,
            task=self.task,
            stats="batch",
            batch_size=self.config["eval_batch_size"],
            layout=self.layout,
        )
        self.metrics.write(self.step, "valid", self.seconds(), **scores)
        self.progress.valid(self.step, scores["accuracy"], self.seconds())
        if better(scores, best, self.config["select"]):
            model = {k: train_state[k] for k in ("params", "norm")}
            copied = jax.tree.map(jnp.array, model)  # the next step donates the originals
            self.state["best"] = {**copied, "step": self.step, **scores}

    def save(self) -> None:
        """Write a checkpoint in the background, after the metrics up to it are on the disk."""
        self.state["seconds"] = self.seconds()
        self.metrics.flush()
        logged = metrics.digest(self.metrics.rows)
        self.checkpoints.save(self.step, self.state, self.iterator.get_state(), logged)

    def loop(self, stop: Stop) -> None:
        """Train to the last step, or to the step after which a signal is obeyed."""
        config, call = self.config, self.config["steps_per_call"]
        while self.step < config["steps"]:
            steps = min(call - self.step % call, config["steps"] - self.step)
            self.state["now"] = self.advance(self.state["now"], self.iterator, steps)
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

    def finish(self) -> dict[str, Any]:
        """Run to the end and return the contents of final.json."""
        config = self.config
        count = sum(x.size for x in jax.tree.leaves(self.state["now"]["params"]))
        if jax.process_index() == 0:
            print(
                f"{config['name']}: {count:,} parameters, from {self.origin}, "
                f"workdir {self.workdir}",
                flush=True,
            )
        try:
            with Stop() as stop:
                self.loop(stop)
            self.checkpoints.wait()
            self.progress.close()
            best, rows = self.state["best"], self.metrics.rows
            final = {
                "name": config["name"],
                "dataset": config["dataset"],
                "seed": config["seed"],
                "steps": self.step,
                "best_step": int(best["step"]),
                "parameters": int(count),
                "target_accuracy": config["target_accuracy"],
                "steps_to_target": metrics.steps_to(rows, config["target_accuracy"]),
                "metrics": metrics.digest(rows),
                "seconds": round(float(self.state["seconds"]), 2),
                **final_scores(best, self.dataset, self.task, config, self.layout),
                "config": config,
                "versions": versions(),
                "hardware": hardware(self.layout.count),
            }
            if jax.process_index() == 0:
                write_json(self.workdir / "final.json", final)
            return final
        except KeyboardInterrupt:
            self.finish_writing = False  # a second signal
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Close the progress bar, the metrics and the checkpoints."""
        self.progress.close()
        if not self.finish_writing:
            return
        self.metrics.close()
        self.checkpoints.close()
