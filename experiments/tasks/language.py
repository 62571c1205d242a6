"""Predicts the next character or word of a text: a recurrent layer or stack, read out each step.

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
from experiments.data import facts
from experiments.tasks.base import Batch, Call, Scores, Task, cross_entropy
from experiments.usage import UsageError, one_of

OWN = ("head_init", "embed")


@dataclasses.dataclass(frozen=True)
class LanguageModel(Task):
    """An embedding, a layer and a softmax; each segment starts from the layer's initial state."""

    layer: Any
    vocabulary: int
    embed: int = 0
    head_init: str = "orthogonal"
    smoothing: float = 0.0
    dtype: str = "float32"

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Initialize `(params, norm)`; embeddings are unit Gaussians, the readout's bias is 0."""
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

    def scores(self, params: Any, norm: Any, batch: Batch, call: Call) -> tuple[Scores, Any]:
        """Cross-entropy of every token but the first, which has nothing before it."""
        tokens, weight, params = batch.examples.tokens, batch.weight, self.cast_weights(params)
        before, after = tokens[:, :-1], tokens[:, 1:]
        one_hot = jax.nn.one_hot(before, self.vocabulary)
        x = params["embed"][before] if self.embed else one_hot
        lengths = None if weight is None else jnp.where(weight > 0, before.shape[1], 0)
        (y, _), norm = self.layer.apply(
            params["layer"],
            norm,
            self.cast(x),
            stats=call.stats,
            lengths=lengths,
            key=call.key if call.train or self.layer.needs_key else None,
            axis_name=call.axis_name,
        )
        logits = y @ params["head"]["kernel"] + params["head"]["bias"]
        per_token = None if weight is None else jnp.broadcast_to(weight[:, None], after.shape)
        return cross_entropy(logits, after, per_token, smoothing=self.smoothing * call.train), norm


def check(config: Mapping[str, Any]) -> None:
    """Check that the data are a text and that the layer can be built for it."""
    if facts.of(config).kind != facts.TEXT:
        raise UsageError(
            f"config.task='language' reads config.dataset='text', not {config['dataset']!r}."
        )
    check_steps(config)
    one_of("config.model.head_init", config["model"]["head_init"], HEADS)
    build_layer(config["model"], OWN)


def build(config: Mapping[str, Any], dataset: Any) -> LanguageModel:
    """Build the language model of a checked config."""
    model = config["model"]
    layer = build_layer(model, OWN)
    return LanguageModel(layer, dataset.vocabulary, model.get("embed", 0), model["head_init"])
