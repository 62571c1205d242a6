"""Builds what is trained: a `Task` with model and loss, for the splits of a data set.

`config.task` names one of `TASKS`, a module here with two functions: `check(config)` refuses what
it cannot do, before any data is read, and `build(config, dataset)` makes the `Task`. A model of
`experiments.models`, or the user's own, is trained by the module `network`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from experiments import models
from experiments.config import defaults
from experiments.data import augment
from experiments.tasks.augmented import Augmented
from experiments.tasks.base import Batch, Scores, Task, cross_entropy
from experiments.usage import UsageError, one_of

TASKS = ("sequence", "language", "image", "generate")
NETWORKS = ("sequence", "language", "image")  # these take the networks of experiments.models

__all__ = ["TASKS", "Batch", "Scores", "Task", "build", "check", "cross_entropy"]


def _module(config: Mapping[str, Any]) -> Any:
    name = config["task"]
    one_of("config.task", name, TASKS)
    if name in NETWORKS and "arch" in config["model"]:
        own = importlib.import_module("experiments.tasks.image").ARCHITECTURES
        known = (*(own if name == "image" else ()), *models.MODELS)
        one_of("config.model.arch", config["model"]["arch"], known)
    if models.is_named(config["model"]) and name in NETWORKS:
        name = "network"
    return importlib.import_module(f"experiments.tasks.{name}")


def check(config: Mapping[str, Any]) -> None:
    """Refuse a config whose model or data its task cannot take."""
    _module(config).check(config)
    if config["task"] == "generate":
        for key, value in (("optim.label_smoothing", 0.0), ("dtype", "float32")):
            if defaults.flatten(config)[key] != value:
                raise UsageError(
                    f"config.{key} is for tasks with labels, and config.task='generate' has none; "
                    f"write config.{key}={value}."
                )


def build(config: Mapping[str, Any], dataset: Any) -> Task:
    """Build the task of a checked config."""
    task: Task = _module(config).build(config, dataset)
    changes = {"smoothing": config["optim"]["label_smoothing"], "dtype": config["dtype"]}
    names = {field.name for field in dataclasses.fields(task)}  # type: ignore[arg-type]
    changes = {k: v for k, v in changes.items() if k in names}
    if changes:
        task = dataclasses.replace(task, **changes)  # type: ignore[type-var]
    steps = augment.parse(config["data"]["augment"])
    return Augmented(task, steps, dataset.classes) if steps else task
