"""Writes and reads the metrics of a run: metrics.jsonl, TensorBoard files, the progress bar."""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from experiments.runtime.checkpoints import local
from experiments.runtime.measures import ACCURACY, Measure
from experiments.usage import UsageError

REPAIR = "restore it from a copy, or remove the workdir to start over."


def read_rows(path: epath.PathLike, upto: float = float("inf")) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl up to a step; a last line without an end is no row yet."""
    path, rows = epath.Path(path), []
    try:
        lines = path.read_text().split("\n") if path.exists() else [""]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); {REPAIR}") from error
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
            step = row["step"]
            row["split"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UsageError(
                f"line {number} of {path} is damaged: {line[:60]!r}; {REPAIR}"
            ) from error
        if step <= upto:
            rows.append(row)
    return rows


def digest(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Count rows and compute their CRC-32, as checkpoints and results keep them."""
    return {"rows": len(rows), "crc": zlib.crc32(_text(rows).encode())}


def check_complete(
    path: epath.PathLike, rows: Sequence[dict[str, Any]], expected: Mapping[str, int] | None
) -> None:
    """Refuse rows that are not those which a checkpoint or a result was written with."""
    if expected is None or digest(rows) == dict(expected):
        return
    there, wanted = len(rows), expected["rows"]
    what = f"has {there} rows of {wanted}" if there != wanted else f"has {there} rows, some changed"
    raise UsageError(f"{path} {what}: its curves would be wrong; {REPAIR}")


def _text(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


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
    partial.unlink(missing_ok=True)  # a link of that name is removed, and never followed
    with open(partial, "x") as file:
        file.write(text)
    partial.replace(path)


class Metrics:
    """Writes rows to metrics.jsonl and TensorBoard event files.

    On a local disk each row is written at once. A bucket's objects cannot grow: there `flush`
    rewrites both, with each checkpoint. Only the first process writes anything.
    """

    def __init__(
        self, workdir: epath.PathLike, step: int, expected: Mapping[str, int] | None = None
    ):
        self.path = epath.Path(workdir) / "metrics.jsonl"
        self.rows = read_rows(self.path, upto=step)
        check_complete(self.path, self.rows, expected)
        self.writes, self.local = jax.process_index() == 0, local(self.path)
        if not self.writes:
            return
        # A killed run may have logged past its last checkpoint; those rows will be written again.
        write_text(self.path, _text(self.rows))
        self.file = open(self.path, "a") if self.local else None  # noqa: SIM115
        self.events = self.path.parent / "tensorboard"
        self.local_events = str(self.events) if self.local else tempfile.mkdtemp(prefix="normjax")
        self.board = SummaryWriter(logdir=self.local_events, purge_step=step + 1 if step else None)

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
        write_text(self.path, _text(self.rows))
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


def _range(values: Sequence[float], form: str) -> str:
    low, high = (format(end(values), form) for end in (min, max))
    return low if low == high else f"{low} to {high}"


class Progress:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, steps: int, step: int, measure: Measure = ACCURACY):
        self.name, self.steps, self.measure = name, steps, measure
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

    def loss(self, *losses: float) -> None:
        """Put the newest training loss on the bar, of several runs the least and the greatest."""
        self.fields["loss"] = _range(losses, ".4f")
        if self.bar is not None:
            self.bar.set_postfix(self.fields, refresh=False)

    def valid(self, step: int, scores: Sequence[Mapping[str, float]], seconds: float) -> None:
        """Report a validation, of one run or several."""
        values = [self.measure.value(own) for own in scores]
        self.fields["valid"] = _range(values, ".2%" if self.measure is ACCURACY else ".4f")
        if self.bar is not None:
            self.bar.set_postfix(self.fields)
        elif self.shows:
            loss = self.fields.get("loss", "-")  # nothing is logged before the first log_every
            print(
                f"{self.name}: step {step:>6}/{self.steps}  train loss {loss}  "
                f"valid {self.measure.name} {_range(values, '.4f')}  {seconds:7.1f} s",
                flush=True,
            )

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
