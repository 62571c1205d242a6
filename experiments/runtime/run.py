"""Trains one run in its workdir: finds where it starts, runs the loop, and writes the result.

A run starts from, in this order: (1) the newest checkpoint in the workdir; (2) the newest
checkpoint in `config.resume`, another workdir; (3) scratch.

The workdir, a local folder or a bucket (gs://…), holds config.json (resolved, with versions),
checkpoints/, metrics.jsonl, TensorBoard files and, once finished, final.json.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils

from experiments import tasks
from experiments.config import validate
from experiments.data import batches, datasets, splits
from experiments.runtime import distributed, exits, measures, metrics, nonfinite, optim, parallel
from experiments.runtime.checkpoints import Checkpoints
from experiments.runtime.exits import Diverged, Stop
from experiments.runtime.loop import Loop, Window, divergence, parameters, result
from experiments.runtime.metrics import Metrics, Progress
from experiments.runtime.step import (
    better,
    compiled_step,
    evaluate,
    final_scores,
    optimizer,
    scored,
    start,
    static,
)
from experiments.runtime.workdir import (
    check_workdir,
    leave_group,
    make_workdir,
    read_json,
    removed_if_refused,
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
    if (final := finished(folder, config["steps"])) is not None:
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
            if jax.process_index() == 0:
                leave_group(folder)
            return _Run(config, folder, layout, task, dataset.on_device()).finish()


def finished(folder: epath.Path, steps: int) -> dict[str, Any] | None:
    """Return the final.json of a run that has taken so many steps, None if it has not."""
    done = folder / "final.json"
    if not done.exists():
        return None
    final = read_json(done, "steps", "name", "best_step", "seconds", "valid", "test")
    if final["steps"] != steps:
        return None
    curves = folder / "metrics.jsonl"
    metrics.check_complete(curves, metrics.read_rows(curves), final.get("metrics"))
    return final


class _Run(Loop):
    """The state of a run alone."""

    def __init__(
        self,
        config: dict,
        workdir: epath.Path,
        layout: parallel.DeviceLayout,
        task: tasks.Task,
        dataset: splits.Dataset,
    ):
        self.config, self.workdir, self.layout = config, workdir, layout
        self.task = task
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
        self.progress = Progress(config["name"], config["steps"], self.step, measures.main(config))
        self.start_clock()

    def begin(self) -> tuple[Tree, Any, str, dict[str, int] | None]:
        """Return where to start: state, data iterator, their origin, the digest of the metrics."""
        config, task = self.config, self.task
        state = self.layout.replicate(start(task, optimizer(config["optim"]), config))
        shuffle = config["data"]["shuffle"]
        train = self.dataset.train
        iterator = batches.training(train, config["batch_size"], config["seed"], shuffle)
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

    def batch(self, iterator: Any, steps: int = 0) -> tuple[Any, Any, Any]:
        """Return a split, and the indices and weights of the next steps, split over the devices.

        With `steps` these have an axis of steps.
        """
        split, index = batches.next_rows(self.dataset.train, iterator, max(steps, 1))
        if split is not self.dataset.train:
            split = self.layout.replicate(split)
        return split, *self.layout.split(self.layout.pad(index if steps else index[0]))

    def advance(self, steps: int) -> None:
        """Take some steps."""
        several = self.config["steps_per_call"] > 1
        step = compiled_step(self.layout, self.task, self.optim, self.skip, several)
        batch = self.batch(self.iterator, steps if several else 0)
        self.state["now"] = step(self.state["now"], *batch, self.rate)

    def check_window(self, log: bool) -> None:
        """Fetch the last steps' metrics, stop if they are not finite, and log their means."""
        fetched = jax.device_get(self.state["now"]["window"])
        window = Window(fetched, self.step, self.config["log_every"])
        skipped = int(self.state["now"]["skipped"]) if self.skip else 0
        at = window.diverged_at(self.config, skipped)
        if at is not None:
            self.raise_diverged(at, skipped)
        if log:
            values = window.means()
            counts = {"skipped": skipped} if self.skip else {}
            self.metrics.write(self.step, "train", self.seconds(), **values, **counts)
            self.progress.loss(values["loss"])

    def raise_diverged(self, at: int, skipped: int) -> None:
        """Say at which step and in which tensors the first infinity or NaN appeared."""
        self.checkpoints.wait()
        latest = self.checkpoints.latest()
        where = "there is no checkpoint yet" if latest is None else f"step {latest} is kept"
        # Replaying the steps since the last checkpoint gives the same numbers, this time with
        # every tensor checked: no step of a healthy run pays for the check.
        state, iterator, *_ = self.begin()
        train_state = state["now"]
        for _ in range(int(train_state["step"]), at - 1):
            train_state = self._single_step(train_state, iterator)
        first = nonfinite.report(self.task, train_state, *self.batch(iterator))
        where = f"{where} in {self.checkpoints.folder}"
        raise Diverged(divergence(at, skipped, where, first))

    def _single_step(self, train_state: Tree, iterator: Any) -> Tree:
        step = compiled_step(self.layout, self.task, self.optim, self.skip, False)
        return step(train_state, *self.batch(iterator), self.rate)

    def validate(self) -> None:
        """Score the validation set with batch statistics and keep the best parameters."""
        train_state, best = self.state["now"], self.state["best"]
        model = scored(train_state)
        scores = evaluate(
            model["params"],
            model["norm"],
            self.dataset.valid,
            task=self.task,
            stats="batch",
            batch_size=self.config["eval_batch_size"],
            layout=self.layout,
        )
        self.metrics.write(self.step, "valid", self.seconds(), **scores)
        self.progress.valid(self.step, [scores], self.seconds())
        if better(scores, best, self.config["select"]):
            copied = jax.tree.map(jnp.array, model)  # the next step donates the originals
            chosen = {k: scores[k] for k in ("accuracy", "loss")}
            self.state["best"] = {**copied, "step": self.step, **chosen}

    def save(self) -> None:
        """Write a checkpoint in the background, after the metrics up to it are on the disk."""
        self.state["seconds"] = self.seconds()
        self.metrics.flush()
        logged = metrics.digest(self.metrics.rows)
        self.checkpoints.save(self.step, self.state, self.iterator.get_state(), logged)

    def finish(self) -> dict[str, Any]:
        """Run to the end and return the contents of final.json."""
        config = self.config
        if jax.process_index() == 0:
            print(
                f"{config['name']}: {parameters(self.state['now']):,} parameters, from "
                f"{self.origin}, workdir {self.workdir}",
                flush=True,
            )
            if line := optim.describe_decay(config["optim"], self.state["now"]["params"]):
                print(f"{config['name']}: {line}", flush=True)
        try:
            with Stop() as stop:
                self.loop(stop)
            self.checkpoints.wait()
            self.progress.close()
            scores = final_scores(self.state["best"], self.dataset, self.task, config, self.layout)
            rows = self.metrics.rows
            final = result(config, self.state, rows, scores, self.layout.count)
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
