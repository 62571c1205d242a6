"""The folder of a run: its config, checkpoints, metrics, and what is shown meanwhile.

config.json holds the resolved config with versions and hardware, checkpoints/ the newest two,
metrics.jsonl and tensorboard/ the curves, final.json the result.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp
from tensorboardX import SummaryWriter
from tqdm import tqdm

import normjax
from experiments import config as configs
from experiments import report
from experiments.config import UsageError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
Tree = Any


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    found = {"python": platform.python_version(), "normjax": normjax.__version__}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def hardware() -> dict[str, Any]:
    """What the numbers were computed on."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cpus": os.cpu_count(),
    }


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def open_workdir(workdir: pathlib.Path, config: dict) -> None:
    """Make the workdir, or check that what is in it belongs to this config."""
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file; name a folder.")
    if path.exists():
        there = json.loads(path.read_text())
        if lines := configs.differences(there["config"], config):
            raise UsageError(
                f"{workdir} holds a run of another config:\n" + "\n".join(lines) + "\n"
                "Choose another --workdir, or remove that one to start over."
            )
        if there["versions"] != versions():
            print(f"note: {workdir} was begun with other versions; bits may differ", flush=True)
    elif workdir.is_dir() and any(workdir.iterdir()):
        raise UsageError(
            f"{workdir} is not empty and holds no run (no config.json); choose another --workdir."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, {"config": config, "versions": versions(), "hardware": hardware()})


class Checkpoints:
    """The checkpoints of one workdir: the run's pytree and the data iterator's place, together."""

    def __init__(self, workdir: pathlib.Path):
        folder = (workdir / "checkpoints").resolve()
        # Small states: writing before going on costs milliseconds and leaves nothing half done.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, create=False
        )
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.manager = ocp.CheckpointManager(folder, item_names=("run", "data"), options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self.manager.latest_step()

    def save(self, step: int, run: Tree, iterator: Any) -> None:
        """Write a checkpoint, unless the same step is there."""
        if step == self.latest():
            return
        place = iterator if isinstance(iterator, dict) else iterator.get_state()
        items = ocp.args.Composite(run=ocp.args.StandardSave(run), data=ocp.args.JsonSave(place))
        self.manager.save(step, args=items)

    def restore(self, like: Tree) -> tuple[Tree, dict]:
        """The newest checkpoint, in the structure of `like`, and the data iterator's place."""
        step = self.latest()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(
            run=ocp.args.StandardRestore(shapes), data=ocp.args.JsonRestore()
        )
        try:
            found = self.manager.restore(step, args=items)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"the checkpoint in {self.folder} does not fit this config's model or optimizer: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
        return found["run"], found["data"]

    def close(self) -> None:
        """Let go of the folder."""
        self.manager.close()


class Metrics:
    """Rows for people and tools: metrics.jsonl and TensorBoard event files."""

    def __init__(self, workdir: pathlib.Path, step: int):
        self.path = workdir / "metrics.jsonl"
        self.rows = report.read_rows(self.path, upto=step)
        # A killed run may have logged past its last checkpoint; those rows come again.
        partial = self.path.with_name("metrics.jsonl.partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        partial.replace(self.path)
        self.file = self.path.open("a")
        purge = step + 1 if step else None
        self.board = SummaryWriter(logdir=str(workdir / "tensorboard"), purge_step=purge)

    def write(self, step: int, split: str, seconds: float, **values: float) -> None:
        """Add a row."""
        row = {"step": step, "split": split, **values, "seconds": round(seconds, 3)}
        self.rows.append(row)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Close both files."""
        self.file.close()
        self.board.close()


class Progress:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, steps: int, step: int):
        self.name, self.steps = name, steps
        on = sys.stderr.isatty()
        self.bar = (
            tqdm(total=steps, initial=step, desc=name, unit="step", leave=True) if on else None
        )
        self.fields: dict[str, str] = {}

    def step(self) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update()

    def loss(self, loss: float) -> None:
        """Put the newest training loss on the bar."""
        self.fields["loss"] = f"{loss:.4f}"
        if self.bar is not None:
            self.bar.set_postfix(self.fields, refresh=False)

    def valid(self, step: int, accuracy: float, seconds: float) -> None:
        """Report a validation."""
        self.fields["valid"] = f"{accuracy:.2%}"
        if self.bar is not None:
            self.bar.set_postfix(self.fields)
        else:
            print(
                f"{self.name}: step {step:>6}/{self.steps}  train loss {self.fields['loss']}  "
                f"valid accuracy {accuracy:.4f}  {seconds:7.1f} s",
                flush=True,
            )

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
