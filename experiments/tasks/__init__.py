"""Builds what is trained: a `Task` with model and loss, for the splits of a data set.

`config.task` names one of `TASKS`, a module here with two functions: `check(config)` refuses what
it cannot do, before any data is read, and `build(config, dataset)` makes the `Task`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from experiments.data import augment
from experiments.tasks.augmented import Augmented
from experiments.tasks.base import Batch, Scores, Task, cross_entropy
from experiments.usage import one_of

TASKS = ("sequence", "language", "image", "generate")

__all__ = ["TASKS", "Batch", "Scores", "Task", "build", "check", "cross_entropy"]


def _module(name: str) -> Any:
    one_of("config.task", name, TASKS)
    return importlib.import_module(f"experiments.tasks.{name}")


def check(config: Mapping[str, Any]) -> None:
    """Refuse a config whose model or data its task cannot take."""
    _module(config["task"]).check(config)


def build(config: Mapping[str, Any], dataset: Any) -> Task:
    """Build the task of a checked config."""
    task: Task = _module(config["task"]).build(config, dataset)
    steps = augment.parse(config["data"]["augment"])
    return Augmented(task, steps, dataset.classes) if steps else task
