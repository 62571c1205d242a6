"""Predict the next character or word of a text: a recurrent layer, or a stack, read out each step.

`config.model.embed` is the size of the embedding; 0 feeds one-hot vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.config.defaults import HEADS
from experiments.config.models import build_layer, check_steps
from experiments.tasks.base import Scores, Task, cross_entropy
from experiments.usage import UsageError, one_of

OWN = ("head_init", "embed")


@dataclasses.dataclass(frozen=True)
class LanguageModel(Task):
    """Embedding, layer, softmax; every segment starts from the layer's initial state."""

    layer: Any
    vocabulary: int
    embed: int = 0
    head_init: str = "orthogonal"

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return `(params, norm)`; embeddings are unit Gaussians, the readout's bias 0."""
        key_layer, key_head, key_embed = jax.random.split(key, 3)
        layer, norm = self.layer.init(key_layer, self.embed or self.vocabulary)
        head_init = getattr(jax.nn.initializers, self.head_init)()
        kernel = head_init(key_head, (self.layer.features_out, self.vocabulary), jnp.float32)
        params = {
            "layer": layer,
            "head": {"kernel": kernel, "bias": jnp.zeros((self.vocabulary,))},
        }
        if self.embed:
            params["embed"] = jax.random.normal(key_embed, (self.vocabulary, self.embed))
        return params, norm

    def scores(
        self,
        params: Any,
        norm: Any,
        batch: Any,
        *,
        stats: str,
        train: bool,
        weight: jax.Array | None = None,
        key: jax.Array | None = None,
        axis_name: str | None = None,
    ) -> tuple[Scores, Any]:
        """Cross-entropy of every step but the first, whose token nothing precedes."""
        before, after = batch.tokens[:, :-1], batch.tokens[:, 1:]
        one_hot = jax.nn.one_hot(before, self.vocabulary)
        x = params["embed"][before] if self.embed else one_hot
        lengths = None if weight is None else jnp.where(weight > 0, before.shape[1], 0)
        how: dict[str, Any] = {"lengths": lengths, "axis_name": axis_name}
        how["key"] = key if train or self.layer.needs_key else None
        (y, _), norm = self.layer.apply(params["layer"], norm, x, stats=stats, **how)
        logits = y @ params["head"]["kernel"] + params["head"]["bias"]
        each = None if weight is None else jnp.broadcast_to(weight[:, None], after.shape)
        return cross_entropy(logits, after, each), norm


def check(config: Mapping[str, Any]) -> None:
    """A text, and a layer that fits it."""
    if config["dataset"] != "text":
        raise UsageError(
            f"config.task='language' reads config.dataset='text', not {config['dataset']!r}."
        )
    one_of("config.model.head_init", config["model"]["head_init"], HEADS)
    check_steps(config)
    build_layer(config["model"], OWN)


def build(config: Mapping[str, Any], dataset: Any) -> LanguageModel:
    """The language model of a checked config."""
    model = config["model"]
    layer = build_layer(model, OWN)
    return LanguageModel(layer, dataset.vocabulary, model.get("embed", 0), model["head_init"])
