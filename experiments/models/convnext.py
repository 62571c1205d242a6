"""Convolutional blocks in the manner of ConvNeXt (Liu et al. 2022), with any norm.

    y = x + scale * dense(norm_hidden(gelu(dense(norm(depthwise(x))))))

A patch of `patch` x `patch` pixels becomes a place; between stages a norm and a 2 x 2 convolution
of stride 2 halve the side. `norm_hidden` stands after the activation, where ConvNeXt V2 has global
response norm. With `layer_scale` the branch is multiplied by a learned vector that starts there.

References: Liu et al., "A ConvNet for the 2020s", 2022; Woo et al., "ConvNeXt V2", 2023.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import normjax
from experiments.models.base import Call, Data, Model, conv, dense, init_norm, lecun, linear
from experiments.usage import UsageError

KINDS = ("image",)
NORMS = ("norm", "norm_hidden")
DEFAULTS: dict[str, Any] = {
    "widths": (32, 64),  # channels of each stage
    "depths": (2, 2),  # blocks of each stage
    "patch": 2,  # side of a patch
    "kernel": 7,  # side of the depthwise windows
    "expand": 4,  # hidden features of a block, over its channels
    "layer_scale": 1e-6,  # 0: none
    "dropout": 0.0,  # before the readout
    "norm": {"name": "layer_norm"},
    "norm_hidden": {"name": "none"},
}


@dataclasses.dataclass(frozen=True)
class ConvNext(Model):
    """Patches, stages of blocks, the average over places and a linear readout."""

    data: Data
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    patch: int
    kernel: int
    expand: int
    layer_scale: float
    dropout: float
    norm: normjax.Norm | None
    norm_hidden: normjax.Norm | None

    def _init_block(self, key: jax.Array, width: int) -> tuple[Any, Any]:
        keys = jax.random.split(key, 5)
        hidden = self.expand * width
        own, state = init_norm(self.norm, (1, 1, 1, width), keys[3])
        inner, inner_state = init_norm(self.norm_hidden, (1, 1, 1, hidden), keys[4])
        params = {
            "depthwise": {
                "kernel": lecun(keys[0], (self.kernel, self.kernel, 1, width)),
                "bias": jnp.zeros((width,)),
            },
            "norm": own,
            "up": dense(keys[1], width, hidden),
            "norm_hidden": inner,
            "down": dense(keys[2], hidden, width),
        }
        if self.layer_scale:
            params["layer"] = {"scale": jnp.full((width,), self.layer_scale)}
        return params, {"norm": state, "norm_hidden": inner_state}

    def _block(self, params: Any, state: Any, x: jax.Array, call: Call) -> tuple[jax.Array, Any]:
        new: dict[str, Any] = {}
        width = x.shape[-1]
        y = conv(x, params["depthwise"]["kernel"], groups=width) + params["depthwise"]["bias"]
        y, new["norm"] = call.norm(self.norm, params["norm"], state["norm"], y)
        y = jax.nn.gelu(linear(params["up"], y))
        inner = self.norm_hidden
        y, new["norm_hidden"] = call.norm(inner, params["norm_hidden"], state["norm_hidden"], y)
        y = linear(params["down"], y)
        if self.layer_scale:
            y = y * params["layer"]["scale"].astype(y.dtype)
        return x + y, new

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return `(params, state)`, by stage and block."""
        params: dict[str, Any] = {}
        state: dict[str, Any] = {}
        before, side = self.data.shape[-1], self.patch
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            key, key_conv, key_norm = jax.random.split(key, 3)
            name = f"down{stage}"
            shape = (1, 1, 1, before if stage else width)  # the first norm follows its convolution
            own, state[name] = init_norm(self.norm, shape, key_norm)
            kernel = lecun(key_conv, (side, side, before, width))
            params[name] = {"kernel": kernel, "bias": jnp.zeros((width,)), "norm": own}
            for i in range(depth):
                key, own_key = jax.random.split(key)
                block = f"{stage}.{i}"
                params[block], state[block] = self._init_block(own_key, width)
            before, side = width, 2
        key_norm, key_head = jax.random.split(key)
        params["norm"], state["norm"] = init_norm(self.norm, (1, before), key_norm)
        params["head"] = dense(key_head, before, self.data.outputs)
        return params, state

    def apply(self, params: Any, state: Any, x: jax.Array, call: Call) -> tuple[jax.Array, Any]:
        """Return logits of images `[n, h, w, c]`."""
        new: dict[str, Any] = {}
        for stage, depth in enumerate(self.depths):
            name = f"down{stage}"
            own, before = params[name], state[name]
            if stage:
                x, new[name] = call.norm(self.norm, own["norm"], before, x)
                x = _patches(x, own)
            else:
                x = _patches(x, own)
                x, new[name] = call.norm(self.norm, own["norm"], before, x)
            for i in range(depth):
                block = f"{stage}.{i}"
                x, new[block] = self._block(params[block], state[block], x, call)
        x, new["norm"] = call.norm(self.norm, params["norm"], state["norm"], call.average(x))
        return linear(params["head"], call.dropout(x, self.dropout, 0)), new


def _patches(x: jax.Array, params: Any) -> jax.Array:
    """Apply a convolution whose stride is its side."""
    kernel = params["kernel"]
    return conv(x, kernel, kernel.shape[0]) + params["bias"]


def check(model: Mapping[str, Any]) -> None:
    """Check what the types of the defaults do not say."""
    widths, depths = model["widths"], model["depths"]
    if not widths or len(widths) != len(depths):
        raise UsageError(
            f"config.model.widths has {len(widths)} stages and config.model.depths {len(depths)}; "
            "write as many of both, such as widths=(32, 64) and depths=(2, 2)."
        )
    for key in ("widths", "depths"):
        if not all(isinstance(size, int) and size >= 1 for size in model[key]):
            raise UsageError(f"config.model.{key}={model[key]!r} must be integers of at least 1.")


build = ConvNext.of
