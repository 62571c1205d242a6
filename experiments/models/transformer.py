"""Transformers: a causal one that predicts the next token, and one that classifies sequences.

With F the attention or the two dense layers of a block, the norm stands

    pre:       y = x + F(norm(x)), and a last norm before the readout
    post:      y = norm(x + F(x))
    sandwich:  y = x + norm(F(norm(x))), and a last norm before the readout

`norm_qk` normalizes the queries and the keys of each head (Henry et al. 2020; with rms_norm as in
Dehghani et al. 2023). Every norm of the block is `norm`: layer_norm, rms_norm, dynamic_tanh, or
batch_norm over examples and time. Positions are learned vectors.

References: Vaswani et al. 2017 (post); Xiong et al., "On Layer Normalization in the Transformer
Architecture", 2020 (pre); Ding et al., "CogView", 2021 (sandwich).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import normjax
from experiments.models.base import Call, Data, Model, dense, init_norm, linear
from experiments.usage import UsageError, one_of

KINDS = ("text", "sequence")
NORMS = ("norm", "norm_qk")
DEFAULTS: dict[str, Any] = {
    "width": 64,
    "depth": 2,  # blocks
    "heads": 4,
    "expand": 4,  # hidden features of the dense layers, over the width
    "position": "pre",
    "dropout": 0.0,
    "embed_std": 0.02,  # deviation that embeddings start from, of tokens and of positions
    "norm": {"name": "layer_norm"},
    "norm_qk": {"name": "none"},
}
POSITIONS = ("pre", "post", "sandwich")


@dataclasses.dataclass(frozen=True)
class Transformer(Model):
    """An embedding with positions, blocks, and a readout of each step or of their average."""

    data: Data
    width: int
    depth: int
    heads: int
    expand: int
    position: str
    dropout: float
    embed_std: float
    norm: normjax.Norm | None
    norm_qk: normjax.Norm | None

    @property
    def causal(self) -> bool:
        """Whether a step sees those before it alone: in a model of text."""
        return self.data.kind == "text"

    @property
    def places(self) -> tuple[str, ...]:
        """Where a block has a norm over the features."""
        before, after = ("before_attention", "before_dense"), ("after_attention", "after_dense")
        return {"pre": before, "post": after, "sandwich": before + after}[self.position]

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return `(params, state)`, by block."""
        keys = jax.random.split(key, 4 + self.depth)
        width, data = self.width, self.data
        params: dict[str, Any] = {}
        state: dict[str, Any] = {}
        if data.vocabulary:
            tokens = self.embed_std * jax.random.normal(keys[0], (data.vocabulary, width))
            params["embed"] = {"kernel": tokens}
        else:
            params["embed"] = dense(keys[0], data.shape[-1], width)
        places = self.embed_std * jax.random.normal(keys[1], (data.shape[0], width))
        params["place"] = {"kernel": places}
        params["head"] = dense(keys[2], width, data.outputs)
        if self.position != "post":
            params["norm"], state["norm"] = init_norm(self.norm, (1, 1, width), keys[3])
        for i in range(self.depth):
            params[str(i)], state[str(i)] = self._init_block(keys[4 + i])
        return params, state

    def _init_block(self, key: jax.Array) -> tuple[Any, Any]:
        width = self.width
        keys = jax.random.split(key, 6 + len(self.places))
        params: dict[str, Any] = {
            name: dense(k, width, width) for name, k in zip("qkvo", keys, strict=False)
        }
        params["up"] = dense(keys[4], width, self.expand * width)
        params["down"] = dense(keys[5], self.expand * width, width)
        for name in "o", "down":  # as GPT-2: the sum of all branches keeps its size
            params[name]["kernel"] /= (2 * self.depth) ** 0.5
        state: dict[str, Any] = {}
        for name, k in zip(self.places, keys[6:], strict=True):
            params[name], state[name] = init_norm(self.norm, (1, 1, width), k)
        head = (1, 1, self.heads, width // self.heads)
        for name in ("norm_q", "norm_k"):
            params[name], state[name] = init_norm(self.norm_qk, head, key)
        return params, state

    def apply(self, params: Any, state: Any, x: jax.Array, call: Call) -> tuple[jax.Array, Any]:
        """Return logits of tokens `[n, t]`, or of frames `[n, t, features]`."""
        new: dict[str, Any] = {}
        steps = x.shape[1]
        if self.data.vocabulary:
            h = params["embed"]["kernel"][x]
        else:
            h = linear(params["embed"], x)
        h = h + params["place"]["kernel"][:steps]
        h = call.dropout(h, self.dropout, 0)
        for i in range(self.depth):
            h, new[str(i)] = self._block(params[str(i)], state[str(i)], h, call, 1 + 2 * i)
        if self.position != "post":
            h, new["norm"] = call.norm(self.norm, params["norm"], state["norm"], h)
        h = h if self.causal else call.average(h)
        return linear(params["head"], h), new

    def _block(
        self, params: Any, state: Any, x: jax.Array, call: Call, number: int
    ) -> tuple[jax.Array, Any]:
        new: dict[str, Any] = {}

        def norm(name: str, x: jax.Array) -> jax.Array:
            if name not in self.places:
                return x
            y, new[name] = call.norm(self.norm, params[name], state[name], x)
            return y

        def add(x: jax.Array, y: jax.Array, name: str, number: int) -> jax.Array:
            y = call.dropout(y, self.dropout, number)
            return norm(name, x + y) if self.position == "post" else x + norm(name, y)

        y, qk = self._attention(params, state, norm("before_attention", x), call)
        x = add(x, y, "after_attention", number)
        hidden = jax.nn.gelu(linear(params["up"], norm("before_dense", x)))
        x = add(x, linear(params["down"], hidden), "after_dense", number + 1)
        return x, new | qk

    def _attention(
        self, params: Any, state: Any, x: jax.Array, call: Call
    ) -> tuple[jax.Array, Any]:
        """Attend over time: `[n, t, width]`."""
        n, t, width = x.shape
        new: dict[str, Any] = {}

        def heads(name: str) -> jax.Array:
            return linear(params[name], x).reshape(n, t, self.heads, width // self.heads)

        q, k, v = heads("q"), heads("k"), heads("v")
        q, new["norm_q"] = call.norm(self.norm_qk, params["norm_q"], state["norm_q"], q)
        k, new["norm_k"] = call.norm(self.norm_qk, params["norm_k"], state["norm_k"], k)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k).astype(jnp.float32)
        scores = scores / (width // self.heads) ** 0.5
        seen = jnp.ones((1, 1, t, t), bool)
        if self.causal:
            seen = jnp.tril(seen[0, 0])[None, None]
        if call.mask is not None:
            seen = seen & call.mask[:, None, None, :]
        # the most negative finite number: a row that sees nothing gives an average, and no NaN
        scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores).astype(x.dtype)
        y = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, t, width)
        return linear(params["o"], y), new


def check(model: Mapping[str, Any]) -> None:
    """Check what the types of the defaults do not say."""
    one_of("config.model.position", model["position"], POSITIONS)
    if model["width"] % model["heads"]:
        raise UsageError(
            f"config.model.heads={model['heads']} must divide config.model.width={model['width']}."
        )
    if not 0 < model["embed_std"] < float("inf"):
        raise UsageError(f"config.model.embed_std={model['embed_std']} must be above 0.")


build = Transformer.of
