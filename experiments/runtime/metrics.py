"""Writes and reads the metrics of a run: metrics.jsonl, TensorBoard files, the progress bar."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from experiments.runtime.checkpoints import local


def read_rows(path: epath.PathLike, upto: float = float("inf")) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl up to a step, without a torn last line."""
    path, rows = epath.Path(path), []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] <= upto:
            rows.append(row)
    return rows


def steps_to(rows: Sequence[dict[str, Any]], accuracy: float) -> int | None:
    """Return the first step whose validation accuracy reaches a value, or None."""
    return next(
        (r["step"] for r in rows if r["split"] == "valid" and r["accuracy"] >= accuracy), None
    )


def write_text(path: epath.Path, text: str) -> None:
    """Write a file so that it appears whole or not at all."""
    if not local(path):  # objects of a bucket appear whole
        path.write_text(text)
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


class Metrics:
    """Writes rows to metrics.jsonl and TensorBoard event files.

    On a local disk each row is written at once. A bucket's objects cannot grow: there `flush`
    rewrites both, with each checkpoint. Only the first process writes anything.
    """

    def __init__(self, workdir: epath.PathLike, step: int):
        self.path = epath.Path(workdir) / "metrics.jsonl"
        self.rows = read_rows(self.path, upto=step)
        self.writes, self.local = jax.process_index() == 0, local(self.path)
        if not self.writes:
            return
        # A killed run may have logged past its last checkpoint; those rows will be written again.
        write_text(self.path, self._text())
        self.file = open(self.path, "a") if self.local else None  # noqa: SIM115
        self.events = self.path.parent / "tensorboard"
        self.local_events = str(self.events) if self.local else tempfile.mkdtemp(prefix="normjax")
        self.board = SummaryWriter(logdir=self.local_events, purge_step=step + 1 if step else None)

    def _text(self) -> str:
        return "".join(json.dumps(row) + "\n" for row in self.rows)

    def write(self, step: int, split: str, seconds: float, **values: float) -> None:
        """Add a row."""
        row = {"step": step, "split": split, **values, "seconds": round(seconds, 3)}
        self.rows.append(row)
        if not self.writes:
            return
        if self.file is not None:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        """Upload to a bucket what was written since the last call."""
        if not self.writes or self.local:
            return
        write_text(self.path, self._text())
        self.board.flush()
        self.events.mkdir(parents=True, exist_ok=True)
        for file in epath.Path(self.local_events).iterdir():
            file.copy(self.events / file.name, overwrite=True)

    def close(self) -> None:
        """Close both files."""
        if not self.writes:
            return
        self.flush()
        if self.file is not None:
            self.file.close()
        self.board.close()


class Progress:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, steps: int, step: int):
        self.name, self.steps = name, steps
        self.shows = jax.process_index() == 0
        on = sys.stderr.isatty() and self.shows
        self.bar = (
            tqdm(total=steps, initial=step, desc=name, unit="step", leave=True) if on else None
        )
        self.fields: dict[str, str] = {}

    def step(self, steps: int = 1) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(steps)

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
        elif self.shows:
            print(
                f"{self.name}: step {step:>6}/{self.steps}  train loss {self.fields['loss']}  "
                f"valid accuracy {accuracy:.4f}  {seconds:7.1f} s",
                flush=True,
            )

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
