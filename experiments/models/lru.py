"""A stack of linear recurrent units, computed for all steps at once by an associative scan.

Each unit is a diagonal linear recurrence with complex states, read out as a real number:

    h[t] = lambda h[t-1] + exp(log_gamma) B x[t],    y[t] = Re(C h[t]) + D x[t],
    lambda = exp(-exp(nu) + i exp(theta)),

so that |lambda| < 1 whatever the parameters are. A block is

    pre:   y = x + glu(gelu(lru(norm(x)))), and a last norm before the readout
    post:  y = norm(x + glu(gelu(lru(x))))

It sees the past alone, so that it both predicts text and classifies sequences.

Reference: Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences", 2023 (batch
norm, pre).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import normjax
from experiments.models.base import Call, Data, Model, dense, init_norm, linear
from experiments.usage import UsageError, one_of

KINDS = ("text", "sequence")
NORMS = ("norm",)
DEFAULTS: dict[str, Any] = {
    "width": 64,
    "states": 64,  # complex states of a unit
    "depth": 2,  # blocks
    "position": "pre",
    "r_min": 0.9,  # |lambda| starts between these
    "r_max": 0.999,
    "max_phase": 6.28,  # and its angle between 0 and this
    "dropout": 0.0,
    "norm": {"name": "layer_norm"},
}
POSITIONS = ("pre", "post")


def scan(decay: jax.Array, inputs: jax.Array) -> jax.Array:
    """Compute `h[t] = decay h[t-1] + inputs[t]` from 0 along the second axis, in parallel.

    `decay [states]`, `inputs [n, t, states]`.
    """

    def compose(first: tuple, second: tuple) -> tuple:
        a, x = first
        b, y = second
        return b * a, b * x + y

    decays = jnp.broadcast_to(decay, inputs.shape)
    return jax.lax.associative_scan(compose, (decays, inputs), axis=1)[1]


@dataclasses.dataclass(frozen=True)
class Lru(Model):
    """An embedding, blocks, and a readout of each step or of their average."""

    data: Data
    width: int
    states: int
    depth: int
    position: str
    r_min: float
    r_max: float
    max_phase: float
    dropout: float
    norm: normjax.Norm | None

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return `(params, state)`, by block."""
        keys = jax.random.split(key, 3 + self.depth)
        data, width = self.data, self.width
        params: dict[str, Any] = {"head": dense(keys[1], width, data.outputs)}
        state: dict[str, Any] = {}
        if data.vocabulary:
            params["embed"] = {"kernel": jax.random.normal(keys[0], (data.vocabulary, width))}
        else:
            params["embed"] = dense(keys[0], data.shape[-1], width)
        if self.position == "pre":
            params["norm"], state["norm"] = init_norm(self.norm, (1, 1, width), keys[2])
        for i in range(self.depth):
            params[str(i)], state[str(i)] = self._init_block(keys[3 + i])
        return params, state

    def _init_block(self, key: jax.Array) -> tuple[Any, Any]:
        keys = jax.random.split(key, 9)
        width, states = self.width, self.states
        low, high = self.r_min, self.r_max
        u, v = jax.random.uniform(keys[0], (states,)), jax.random.uniform(keys[1], (states,))
        # uniform on the ring: |lambda|^2 is uniform between low^2 and high^2
        squared = u * (high**2 - low**2) + low**2
        nu = jnp.log(-0.5 * jnp.log(squared))
        b, c = (2 * width) ** -0.5, states**-0.5
        params: dict[str, Any] = {
            "recurrence": {
                "nu": nu,
                "theta": jnp.log(self.max_phase * v + 1e-7),
                "log_gamma": 0.5 * jnp.log(1 - squared),  # inputs of variance 1: so have states
                "skip": jax.random.normal(keys[2], (width,)),
            },
            "b_re": {"kernel": b * jax.random.normal(keys[3], (width, states))},
            "b_im": {"kernel": b * jax.random.normal(keys[4], (width, states))},
            "c_re": {"kernel": c * jax.random.normal(keys[5], (states, width))},
            "c_im": {"kernel": c * jax.random.normal(keys[6], (states, width))},
            "glu": dense(keys[7], width, 2 * width),
        }
        params["norm"], state = init_norm(self.norm, (1, 1, width), keys[8])
        return params, {"norm": state}

    def apply(self, params: Any, state: Any, x: jax.Array, call: Call) -> tuple[jax.Array, Any]:
        """Return logits of tokens `[n, t]`, or of frames `[n, t, features]`."""
        new: dict[str, Any] = {}
        if self.data.vocabulary:
            h = params["embed"]["kernel"][x]
        else:
            h = linear(params["embed"], x)
        for i in range(self.depth):
            own, before = params[str(i)], state[str(i)]
            if self.position == "pre":
                y, after = call.norm(self.norm, own["norm"], before["norm"], h)
                h = h + call.dropout(_unit(own, y), self.dropout, i)
            else:
                h = h + call.dropout(_unit(own, h), self.dropout, i)
                h, after = call.norm(self.norm, own["norm"], before["norm"], h)
            new[str(i)] = {"norm": after}
        if self.position == "pre":
            h, new["norm"] = call.norm(self.norm, params["norm"], state["norm"], h)
        h = h if self.data.kind == "text" else call.average(h)
        return linear(params["head"], h), new


def _unit(params: Any, x: jax.Array) -> jax.Array:
    """Apply the recurrence in complex64, GELU and a gated linear unit to `[n, t, width]`."""
    own = jax.tree.map(lambda p: p.astype(jnp.float32), params["recurrence"])
    decay = jnp.exp(jax.lax.complex(-jnp.exp(own["nu"]), jnp.exp(own["theta"])))
    gain = jnp.exp(own["log_gamma"])

    def product(name: str) -> jax.Array:
        return (x @ params[name]["kernel"]).astype(jnp.float32)

    h = scan(decay, jax.lax.complex(gain * product("b_re"), gain * product("b_im")))
    re, im = jnp.real(h).astype(x.dtype), jnp.imag(h).astype(x.dtype)
    y = re @ params["c_re"]["kernel"] - im @ params["c_im"]["kernel"]
    y = jax.nn.gelu(y + own["skip"].astype(x.dtype) * x)
    value, gate = jnp.split(linear(params["glu"], y), 2, axis=-1)
    return value * jax.nn.sigmoid(gate)


def check(model: Mapping[str, Any]) -> None:
    """Check what the types of the defaults do not say."""
    one_of("config.model.position", model["position"], POSITIONS)
    if not 0 <= model["r_min"] < model["r_max"] < 1:
        raise UsageError(
            f"config.model.r_min={model['r_min']} and r_max={model['r_max']} must be in [0, 1), "
            "r_min first."
        )
    if not 0 < model["max_phase"] <= 2 * np.pi:
        raise UsageError(f"config.model.max_phase={model['max_phase']} must be in (0, 2 pi].")


build = Lru.of
