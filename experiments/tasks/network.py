"""Trains any model of `experiments.models`, or the user's own, on images, sequences or text.

`config.task` says what the data are: "image" (pictures with labels), "sequence" (sequences with
labels) or "language" (text, whose next token is predicted). Bytes are scaled to [0, 1], and with
`config.model.standardize` each channel then has mean 0 and variance 1 over training images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import models
from experiments.data import facts, splits
from experiments.tasks.base import Batch, Call, Scores, Task, cross_entropy, without_padding
from experiments.usage import UsageError

KINDS = {"image": "image", "sequence": "sequence", "language": "text"}
SAMPLE = 10_000  # training images that the channels' means are taken over
NAMES = {kind: task for task, kind in KINDS.items()}
READS = {  # what kinds of data can be read as
    facts.IMAGES: ("image", "sequence"),
    facts.FRAMES: ("sequence",),
    facts.WORDS: ("sequence",),
    facts.TEXT: ("text",),
}


@dataclasses.dataclass(frozen=True)
class Network(Task):
    """A model and the cross-entropy of its logits."""

    model: models.Model
    data: models.Data
    white: float = 1.0
    center: tuple[float, ...] = (0.0,)
    spread: tuple[float, ...] = (1.0,)
    smoothing: float = 0.0
    dtype: str = "float32"

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return `(params, norm)`."""
        return self.model.init(key)

    def inputs(
        self, batch: Batch, rows: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Return the model's input, and where it counts: `[batch]` or `[batch, time]`."""
        examples = batch.examples
        if self.data.kind == "text":
            x = examples.tokens[:, :-1]
            return x, None if rows is None else jnp.broadcast_to(rows[:, None], x.shape)
        if hasattr(examples, "lengths"):
            steps = jnp.arange(examples.x.shape[1])
            lengths = examples.lengths if rows is None else jnp.where(rows, examples.lengths, 0)
            mask = steps < lengths[:, None]
            x = examples.x
            if not self.data.vocabulary:  # a padded step may hold anything
                x = jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))
            return x, mask
        x = without_padding(self.pixels(examples.pixels), rows)
        if rows is None or self.data.kind == "image":
            return x, rows
        return x, jnp.broadcast_to(rows[:, None], x.shape[:2])

    def pixels(self, pixels: jax.Array) -> jax.Array:
        """Scale pixels, and standardize the channels of pictures."""
        x = pixels.astype(jnp.float32) / self.white
        if self.data.kind != "image":  # a pixel or a row a step
            return x[:, :, None] if x.ndim == 2 else x
        x = x[..., None] if x.ndim == 3 else x
        return (x - jnp.array(self.center)) / jnp.array(self.spread)

    def scores(self, params: Any, norm: Any, batch: Batch, call: Call) -> tuple[Scores, Any]:
        """Cross-entropy of the labels, or of every token but the first."""
        x, mask = self.inputs(batch, call.mask)
        params, call = self.cast_weights(params), call._replace(mask=mask)
        logits, norm = self.model.apply(params, norm, self.cast(x), call)
        weight, text = batch.weight, self.data.kind == "text"
        labels = batch.examples.tokens[:, 1:] if text else batch.examples.labels
        if text and weight is not None:
            weight = jnp.broadcast_to(weight[:, None], labels.shape)
        return cross_entropy(logits, labels, weight, smoothing=self.smoothing * call.train), norm


def check(config: Mapping[str, Any]) -> None:
    """Check that the model takes the task's data, and its keys."""
    kind = KINDS[config["task"]]
    if kind == "image" and config["data"]["layout"] != "images":
        raise UsageError(
            f"config.task='image' reads config.data.layout='images', not "
            f"{config['data']['layout']!r}."
        )
    found = facts.of(config).kind
    if kind not in READS[found]:
        raise UsageError(
            f"config.task={config['task']!r} does not read config.dataset={config['dataset']!r}, "
            f"which is {found}; write config.task={NAMES[READS[found][0]]!r}."
        )
    models.check(_own_keys(config["model"]), kind)


def _own_keys(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's keys without those of this task."""
    if not isinstance(model.get("standardize", True), bool):
        raise UsageError("config.model.standardize must be True or False.")
    return {k: v for k, v in model.items() if k != "standardize"}


def data_of(config: Mapping[str, Any], dataset: Any) -> models.Data:
    """Describe the examples of a data set, as the model gets them."""
    kind, examples = KINDS[config["task"]], splits.take(dataset.train, np.arange(1))
    first = examples[0]
    if kind == "text":
        return models.Data(kind, (first.shape[1] - 1,), dataset.vocabulary, dataset.vocabulary)
    shape = tuple(first.shape[1:])
    if kind == "image":
        shape = shape if len(shape) == 3 else (*shape, 1)
    elif hasattr(examples, "lengths"):
        if dataset.vocabulary:
            return models.Data(kind, shape[:1], dataset.classes, dataset.vocabulary)
    else:
        shape = shape if len(shape) == 2 else (*shape, 1)
    return models.Data(kind, shape, dataset.classes)


def build(config: Mapping[str, Any], dataset: Any) -> Network:
    """Build the task of a checked config."""
    data = data_of(config, dataset)
    model = models.build(_own_keys(config["model"]), data)
    task = Network(model, data, dataset.white)
    # floats of the user's own, whose white is 1, are fed as they are
    if data.kind == "image" and dataset.white != 1 and config["model"].get("standardize", True):
        some = np.arange(min(SAMPLE, splits.size(dataset.train)))
        images = np.asarray(splits.take(dataset.train, some).pixels, np.float64) / dataset.white
        images = images.reshape(-1, data.shape[-1])
        spread = np.maximum(images.std(0), 1e-3)  # a channel that is constant stays small
        task = dataclasses.replace(
            task, center=tuple(images.mean(0).tolist()), spread=tuple(spread.tolist())
        )
    return task
