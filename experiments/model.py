"""The model of the study: a recurrent layer read out, after its last step, by a linear softmax."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.config import build_layer


class Scores(NamedTuple):
    """Sums over examples, so that batches add up: loss (nats), right answers, examples."""

    loss: jax.Array
    correct: jax.Array
    examples: jax.Array


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Layer and linear readout: pure functions, hashable, so `jit` caches on the value."""

    layer: Any
    classes: int
    head_init: str = "orthogonal"
    white: float = 255.0

    def init(self, key: jax.Array, hidden: int) -> tuple[Any, Any]:
        """Return `(params, norm_state)`; the readout's bias starts at 0."""
        key_layer, key_head = jax.random.split(key)
        params, state = self.layer.init(key_layer, 1)
        head_init = getattr(jax.nn.initializers, self.head_init)()
        head = {
            "kernel": head_init(key_head, (hidden, self.classes), jnp.float32),
            "bias": jnp.zeros((self.classes,)),
        }
        return {"layer": params, "head": head}, state

    def inputs(
        self, pixels: jax.Array, weight: jax.Array | None, key: jax.Array | None
    ) -> dict[str, Any]:
        """Keywords of the layer for bytes ``[batch, steps]``: one pixel in [0, 1] a step.

        Rows of weight 0 get length 0, so they enter no statistic.
        """
        x = pixels.astype(jnp.float32)[:, :, None] / self.white
        lengths = None if weight is None else jnp.where(weight > 0, x.shape[1], 0)
        return {"x": x, "lengths": lengths, "key": key}

    def apply(
        self,
        params: Any,
        state: Any,
        pixels: jax.Array,
        *,
        stats: str,
        weight: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return logits ``[batch, classes]`` and the next norm state."""
        inputs = self.inputs(pixels, weight, key)
        (_, carry), state = self.layer.apply(params["layer"], state, stats=stats, **inputs)
        hidden = carry.h if hasattr(carry, "h") else carry
        return hidden @ params["head"]["kernel"] + params["head"]["bias"], state


def build(config: Mapping[str, Any], classes: int, white: float) -> Classifier:
    """The classifier of a checked config."""
    return Classifier(build_layer(config["model"]), classes, config["model"]["head_init"], white)


def score(logits: jax.Array, labels: jax.Array, weight: jax.Array | None = None) -> Scores:
    """Cross-entropy and right answers, summed with the examples' weights."""
    weight = jnp.ones(labels.shape) if weight is None else weight
    log_p = jax.nn.log_softmax(logits)
    loss = -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    correct = (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32)
    # where, not a product: a padded row may hold anything, and 0 times infinity is not 0
    loss = jnp.where(weight > 0, weight * loss, 0.0)
    return Scores(loss.sum(), (weight * correct).sum(), weight.sum())
