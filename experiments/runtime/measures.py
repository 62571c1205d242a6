"""Names the scores of a run in the words of its task: accuracy, perplexity, bits per character.

Runs keep loss (nats) and accuracy; here these become what a reader of the task expects. A text is
read in bits per character (loss / log 2) or, of words, in perplexity (exp of the loss); images and
sequences in accuracy, with top-5 accuracy beside it where there are more than ten classes; a task
without right answers in its loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

TOP_FIVE = "top5"  # where it stands among a run's scores


def log_error(accuracy: Any) -> np.ndarray:
    """Return the logarithm of 1 - accuracy; no error at all counts as one in 10,000."""
    return np.log(np.maximum(1 - np.asarray(accuracy, np.float64), 1e-4))


class Measure(NamedTuple):
    """A score in a task's words: how it is named, computed from a run's scores, and written."""

    name: str
    key: str  # of the run's scores
    of: Callable[[float], float]
    write: Callable[[float], str]
    unit: str = ""

    def value(self, scores: Mapping[str, float]) -> float:
        """Compute it from a run's scores."""
        return self.of(float(scores[self.key]))

    def text(self, scores: Mapping[str, float]) -> str:
        """Write it for a table; "-" where the run has no such score."""
        return self.write(self.value(scores)) if self.key in scores else "-"

    @property
    def label(self) -> str:
        """Its name, with the unit if it has one."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


def _same(value: float) -> float:
    return value


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _bits(value: float) -> float:
    return value / math.log(2)


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _digits(value: float) -> str:
    return f"{value:.4g}"


ACCURACY = Measure("accuracy", "accuracy", _same, _percent)
TOP5 = Measure("top-5 accuracy", TOP_FIVE, _same, _percent)
BITS = Measure("bits per character", "loss", _bits, lambda value: f"{value:.4f}")
PERPLEXITY = Measure("perplexity", "loss", _exp, lambda v: f"{v:.2f}" if v < 1e9 else f"{v:.3g}")
LOSS = Measure("loss", "loss", _same, _digits)


def main(config: Mapping[str, Any]) -> Measure:
    """Return the measure that a run of a config is judged by."""
    if config["task"] == "language":
        return BITS if config["data"]["unit"] == "chars" else PERPLEXITY
    return LOSS if config["task"] == "generate" else ACCURACY


def training(config: Mapping[str, Any]) -> Measure:
    """Return the measure of the training loss, which is on a logarithmic axis."""
    measure = main(config)
    if measure.key == "loss":
        return measure
    return LOSS._replace(unit="nats")


def lines(final: Mapping[str, Any]) -> list[str]:
    """Describe the scores of a finished run, a line for each split."""
    measure, found = main(final["config"]), []
    for split in ("valid", "test"):
        scores = final[split]
        numbers = ", ".join(f"{measure.text(scores[kind])} {kind}" for kind in scores)
        found.append(f"  {split} {measure.name} by statistics: {numbers}")
        if measure is ACCURACY and all(TOP_FIVE in scores[kind] for kind in scores):
            numbers = ", ".join(f"{TOP5.text(scores[kind])} {kind}" for kind in scores)
            found.append(f"  {split} {TOP5.name}: {numbers}")
    return found
