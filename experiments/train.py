"""Train one config into one workdir.

    python -m experiments.train --config=configs/recurrent_bn/digits.py:bn_lstm --workdir=DIR

Where a run starts, in this order: (1) the newest checkpoint in the workdir; (2) the newest
checkpoint in `config.resume`, another workdir; (3) from scratch. A run that was killed and is
started again with the same command gives the same metrics, to the bit, as one that never stopped.

The workdir, a local folder or a bucket (gs://…), holds config.json (resolved, with versions),
checkpoints/, metrics.jsonl, TensorBoard files and, once finished, final.json. Exit statuses are
those of `experiments.stops`; many devices are `experiments.parallel`'s, many processes
`experiments.distributed`'s.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import config_flags

from experiments import tasks
from experiments.config import command_line, validate
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
from experiments.runtime.workdir import hardware, open_workdir, versions, write_json
from experiments.usage import UsageError

_CONFIG = config_flags.DEFINE_config_file("config", help_string="FILE.py:VARIANT")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.", allow_override=True)

Tree = Any


def train(config: Mapping[str, Any], workdir: str | os.PathLike) -> dict[str, Any]:
    """Run a config in a workdir, from wherever it stands, and return what final.json says."""
    config = validate.check(config)
    folder = epath.Path(workdir)
    if config["resume"] and not (epath.Path(config["resume"]) / "checkpoints").is_dir():
        raise UsageError(f"config.resume={config['resume']!r} holds no checkpoints folder.")
    datasets.require(config)  # before the workdir is made
    spread = parallel.DeviceLayout(config["parallel"], config["devices"], config["batch_stats"])
    if jax.process_index() == 0:
        open_workdir(folder, config, spread.count)
    if spread.processes > 1:
        multihost_utils.sync_global_devices("workdir")
    done = folder / "final.json"
    if done.exists():
        final = json.loads(done.read_text())
        if final["steps"] == config["steps"]:
            return final
    with exits.reraise_as_broken(f"the newest whole checkpoint in {folder}/checkpoints is kept."):
        return _Run(config, folder, spread).finish()


class _Run:
    """A run in its workdir: where it stands, and the loop that ends it."""

    def __init__(self, config: dict, workdir: epath.Path, spread: parallel.DeviceLayout):
        self.config, self.workdir, self.spread = config, workdir, spread
        self.waits = True  # for what is being written, when it ends
        dataset = datasets.load_config_data(config).on_device()
        self.size = splits.size(dataset.train)
        self.task = tasks.build(config, dataset)
        self.dataset = dataset.each(spread.replicate)
        self.optim, self.rate = static(config["optim"])
        self.skip = config["nonfinite"] == "skip"
        self.checkpoints = Checkpoints(workdir, config["keep_checkpoints"])
        try:
            self.run, self.iterator, self.origin = self.begin()
            self.step = int(self.run["now"]["step"])
            if self.step > config["steps"]:
                raise UsageError(
                    f"{self.origin} is beyond config.steps={config['steps']}; "
                    f"write --config.steps={self.step} or more."
                )
            self.metrics = Metrics(workdir, self.step)
        except BaseException:
            self.checkpoints.close()
            raise
        self.show = Progress(config["name"], config["steps"], self.step)
        self.spent, self.began = float(self.run["seconds"]), time.perf_counter()

    def begin(self) -> tuple[Tree, Any, str]:
        """The state to start from, the data's iterator at its place, and whence they come."""
        config, task = self.config, self.task
        run = self.spread.replicate(start(task, optimizer(config["optim"]), config))
        shuffle = config["data"]["shuffle"]
        iterator = batches.batches(self.size, config["batch_size"], config["seed"], shuffle)
        if self.checkpoints.latest() is not None:
            run, place = self.checkpoints.restore(run)
            origin = f"step {int(run['now']['step'])} of {self.workdir}"
        elif config["resume"]:
            other = Checkpoints(config["resume"])
            try:
                if other.latest() is None:
                    raise UsageError(
                        f"config.resume={config['resume']!r} holds no finished checkpoint."
                    )
                run, place = other.restore(run)
            finally:
                other.close()
            origin = f"step {int(run['now']['step'])} of {config['resume']}"
        else:
            return run, iterator, "scratch"
        iterator.set_state(place)
        return run, iterator, origin

    def seconds(self) -> float:
        """Time spent on this run, in all its processes one after the other."""
        return self.spent + time.perf_counter() - self.began

    def batch(self, iterator: Any, steps: int) -> tuple[Any, Any]:
        """Indices and weights of the next steps, dealt to the devices."""
        rows = [np.asarray(next(iterator), np.int32) for _ in range(steps)]
        several = self.config["steps_per_call"] > 1
        return self.spread.split(self.spread.pad(np.stack(rows) if several else rows[0]))

    def advance(self, now: Tree, iterator: Any, steps: int) -> Tree:
        """Take steps from a state, which is donated."""
        several = self.config["steps_per_call"] > 1
        step = compiled_step(self.spread, self.task, self.optim, self.skip, several)
        return step(now, self.dataset.train, *self.batch(iterator, steps), self.rate)

    def look(self, log: bool) -> None:
        """Fetch the window, stop if it is not finite, and log it as the mean over its steps."""
        used = (self.step - 1) % self.config["log_every"] + 1
        window = jax.device_get(self.run["now"]["window"])
        window = {k: np.asarray(w)[:used] for k, w in window.items()}
        good = np.isfinite(window["loss"]) & np.isfinite(window["grad_norm"])
        skipped = int(self.run["now"]["skipped"]) if self.skip else 0
        if not good.all() and (not self.skip or skipped > self.config["nonfinite_limit"]):
            self.diverged(self.step - used + 1 + int(np.argmin(good)), skipped)
        if log:
            few = {k: w[good] for k, w in window.items()} if good.any() else window
            values = {k: float(w.mean(dtype=np.float64)) for k, w in few.items()}
            told = {"skipped": skipped} if self.skip else {}
            self.metrics.write(self.step, "train", self.seconds(), **values, **told)
            self.show.loss(values["loss"])

    def diverged(self, at: int, skipped: int) -> None:
        """Say at which step and in which tensors the first infinity or NaN came up."""
        self.checkpoints.wait()
        kept = self.checkpoints.latest()
        where = "there is no checkpoint yet" if kept is None else f"step {kept} is kept"
        told = (
            f"{skipped} steps were skipped, more than config.nonfinite_limit; " if skipped else ""
        )
        # The steps from the last checkpoint give the same numbers again, and this time with a
        # look inside: no step of a healthy run pays for it.
        run, iterator, _ = self.begin()
        now = run["now"]
        for _ in range(int(now["step"]), at - 1):
            now = self._single(now, iterator)
        index = self.spread.pad(np.asarray(next(iterator), np.int32))
        first = nonfinite.report(self.task, now, self.dataset.train, *self.spread.split(index))
        raise Diverged(
            f"loss or gradient is not finite at step {at}; {told}{where} in "
            f"{self.checkpoints.folder}. {first} "
            "The same command would meet it again: try a lower --config.optim.learning_rate, "
            "a lower --config.optim.clip_norm, --config.nonfinite=skip where single batches are "
            "to blame, or --config.model.h0_noise=0.1 where the first inputs are constant."
        )

    def _single(self, now: Tree, iterator: Any) -> Tree:
        step = compiled_step(self.spread, self.task, self.optim, self.skip, False)
        index = self.spread.pad(np.asarray(next(iterator), np.int32))
        return step(now, self.dataset.train, *self.spread.split(index), self.rate)

    def validate(self) -> None:
        """Score the validation set with batch statistics and keep the best parameters."""
        now, best = self.run["now"], self.run["best"]
        scores = evaluate(
            now["params"],
            now["norm"],
            self.dataset.valid,
            task=self.task,
            stats="batch",
            batch_size=self.config["eval_batch_size"],
            spread=self.spread,
        )
        self.metrics.write(self.step, "valid", self.seconds(), **scores)
        self.show.valid(self.step, scores["accuracy"], self.seconds())
        if better(scores, best, self.config["select"]):
            keep = jax.tree.map(jnp.array, {"params": now["params"], "norm": now["norm"]})
            self.run["best"] = {**keep, "step": self.step, **scores}

    def save(self) -> None:
        """Write a checkpoint in the background; rows up to it are on the disk before."""
        self.run["seconds"] = self.seconds()
        self.metrics.flush()
        self.checkpoints.save(self.step, self.run, self.iterator.get_state())

    def loop(self, stop: Stop) -> None:
        """Train to the last step, or to the step at which a signal is obeyed."""
        config, call = self.config, self.config["steps_per_call"]
        while self.step < config["steps"]:
            few = min(call - self.step % call, config["steps"] - self.step)
            self.run["now"] = self.advance(self.run["now"], self.iterator, few)
            self.step += few
            self.show.step(few)
            number = stop.agreed(self.run["now"], self.spread.devices)
            last = self.step == config["steps"]
            log = last or self.step % config["log_every"] == 0
            check = last or self.step % config["eval_every"] == 0
            keep = last or self.step % config["checkpoint_every"] == 0 or number
            if log or check or keep:
                self.look(log)
            if check:
                self.validate()
            if keep:
                self.save()
            if number and not last:
                self.checkpoints.wait()
                raise Interrupted(
                    f"stopped at step {self.step}, checkpoint written; the same command goes on "
                    "from there.",
                    number,
                )

    def finish(self) -> dict[str, Any]:
        """Run to the end; what final.json says."""
        config = self.config
        count = sum(x.size for x in jax.tree.leaves(self.run["now"]["params"]))
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
            self.show.close()
            run, steps = self.run, metrics.steps_to(self.metrics.rows, config["target_accuracy"])
            final = {
                "name": config["name"],
                "dataset": config["dataset"],
                "seed": config["seed"],
                "steps": self.step,
                "best_step": int(run["best"]["step"]),
                "parameters": int(count),
                "target_accuracy": config["target_accuracy"],
                "steps_to_target": steps,
                "seconds": round(float(run["seconds"]), 2),
                **final_scores(run["best"], self.dataset, self.task, config, self.spread),
                "config": config,
                "versions": versions(),
                "hardware": hardware(self.spread.count),
            }
            if jax.process_index() == 0:
                write_json(self.workdir / "final.json", final)
            return final
        except KeyboardInterrupt:
            self.waits = False  # a second signal
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Finish the files."""
        self.show.close()
        if not self.waits:
            return
        self.metrics.close()
        self.checkpoints.close()


def summary(final: Mapping[str, Any]) -> str:
    """The finished run in two lines."""
    lines = [
        f"{final['name']}: best step {final['best_step']} of {final['steps']}, {final['seconds']} s"
    ]
    for split in ("valid", "test"):
        numbers = ", ".join(f"{final[split][k]['accuracy']:.4f} {k}" for k in final[split])
        lines.append(f"  {split} accuracy by statistics: {numbers}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Entry point of ``python -m experiments.train``."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells its life at level INFO
    with exits.statuses():
        command_line.no_arguments(argv)
        if _CONFIG.value is None:
            raise UsageError("write --config=configs/recurrent_bn/digits.py:bn_lstm, for instance.")
        if not _WORKDIR.value:
            raise UsageError("write --workdir=DIR, the folder that this run is to live in.")
        distributed.main()
        with exits.reraise_as_broken("nothing was changed."):
            final = train(_CONFIG.value, _WORKDIR.value)
        if jax.process_index() == 0:
            print(summary(final))


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
