"""Classifies sequences: a recurrent layer, or a stack, and a softmax after its last step.

Examples are `splits.Split`, images as bytes `[batch, steps(, rows)]`, or `sequences.Sequences` with
lengths: frames as they are, words through an embedding of `config.model.embed` numbers, which
starts from the word vectors of `config.data.vectors`, if any.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config.defaults import HEADS
from experiments.config.models import build_layer, check_steps
from experiments.data import facts
from experiments.data.splits import take
from experiments.tasks.base import Batch, Call, Scores, Task, cross_entropy
from experiments.usage import UsageError, one_of


@dataclasses.dataclass(frozen=True)
class SequenceClassifier(Task):
    """A recurrent layer and a linear readout."""

    layer: Any
    classes: int
    features: int = 1
    head_init: str = "orthogonal"
    white: float = 255.0
    vocabulary: int = 0
    vectors: Any = dataclasses.field(default=None, compare=False, repr=False)
    smoothing: float = 0.0
    dtype: str = "float32"

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Initialize `(params, norm)`; the readout's bias starts at 0."""
        key_layer, key_head = jax.random.split(key)
        params, state = self.layer.init(key_layer, self.features)
        head_init = getattr(jax.nn.initializers, self.head_init)()
        head = {
            "kernel": head_init(key_head, (self.layer.features_out, self.classes), jnp.float32),
            "bias": jnp.zeros((self.classes,)),
        }
        model = {"layer": params, "head": head}
        if self.vocabulary:
            shape = (self.vocabulary, self.features)
            drawn = 0.1 * jax.random.normal(jax.random.fold_in(key, 1), shape)
            vectors = drawn if self.vectors is None else jnp.asarray(self.vectors)
            model["embed"] = jnp.where(jnp.isnan(vectors), drawn, vectors)
        return model, state

    def inputs(self, params: Any, examples: Any, weight: jax.Array | None) -> tuple[jax.Array, Any]:
        """Return `x [batch, steps, features]` and lengths; rows of weight 0 get length 0."""
        if hasattr(examples, "lengths"):
            x = params["embed"][examples.x] if self.vocabulary else examples.x
            lengths = examples.lengths
            return x, lengths if weight is None else jnp.where(weight > 0, lengths, 0)
        x = examples.pixels.astype(jnp.float32)
        x = (x[:, :, None] if x.ndim == 2 else x) / self.white
        return x, None if weight is None else jnp.where(weight > 0, x.shape[1], 0)

    def scores(self, params: Any, norm: Any, batch: Batch, call: Call) -> tuple[Scores, Any]:
        """Cross-entropy of the readout after the last step."""
        # The protocol's noise on h0 is part of the evaluation graph too.
        key = call.key if call.train or self.layer.needs_key else None
        params = self.cast_weights(params)
        x, lengths = self.inputs(params, batch.examples, batch.weight)
        (_, carry), norm = self.layer.apply(
            params["layer"],
            norm,
            x=self.cast(x),
            stats=call.stats,
            lengths=lengths,
            key=key,
            axis_name=call.axis_name,
        )
        head = params["head"]
        logits = last_hidden(carry) @ head["kernel"] + head["bias"]
        labels, smoothing = batch.examples.labels, self.smoothing * call.train
        return cross_entropy(logits, labels, batch.weight, smoothing=smoothing), norm


def last_hidden(carry: Any) -> jax.Array:
    """Return the hidden state of a layer's carry, for a stack that of its last layer."""
    carry = carry if hasattr(carry, "h") or not isinstance(carry, tuple) else carry[-1]
    return carry.h if hasattr(carry, "h") else carry


OWN = ("head_init", "embed")


def check(config: Mapping[str, Any]) -> None:
    """Check that the layer can be built, and its steps against the data's."""
    model = config["model"]
    kind = facts.of(config).kind
    if kind == facts.TEXT:
        raise UsageError(
            f"config.dataset={config['dataset']!r} has no labels; write config.task='language'."
        )
    if kind == facts.WORDS and not model.get("embed"):
        raise UsageError(
            f"{config['dataset']} is words; write config.model.embed=32, for instance."
        )
    if config["dataset"] != "imdb_reviews" and config["data"]["vectors"]:
        raise UsageError("config.data.vectors is for dataset 'imdb_reviews', whose words it knows.")
    check_steps(config)
    one_of("config.model.head_init", model["head_init"], HEADS)
    build_layer(model, OWN)


def build(config: Mapping[str, Any], dataset: Any) -> SequenceClassifier:
    """Build the classifier of a checked config."""
    model = config["model"]
    first = take(dataset.train, np.arange(1))[0]
    features = model.get("embed", 0) or (first.shape[2] if first.ndim == 3 else 1)
    layer, classes, head = build_layer(model, OWN), dataset.classes, model["head_init"]
    vectors, words = dataset.vectors, dataset.vocabulary
    if vectors is not None and vectors.shape[1] != features:
        raise UsageError(
            f"config.model.embed={features}, and the vectors of config.data.vectors have "
            f"{vectors.shape[1]} numbers; write config.model.embed={vectors.shape[1]}."
        )
    return SequenceClassifier(layer, classes, features, head, dataset.white, words, vectors)
