"""Residual networks for small images: three stages, 6n + 2 layers (He et al. 2016).

    post:  y = relu(x + norm(conv(relu(norm(conv(x))))))
    pre:   y = x + conv(relu(norm(conv(relu(norm(x))))))

Stages have 16, 32 and 64 channels times `width`; the second and third start with stride 2. The
shortcut of such a block takes every second pixel and appends channels of 0 ("pad", no
parameters), or is a 1 x 1 convolution with a norm ("conv"). With `zero_last` every block starts as
its shortcut: the last scale of a "post" block, and the last kernel of a "pre" block, start at 0.

References: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016, section 4.2;
"Identity Mappings in Deep Residual Networks", 2016; Goyal et al., "Accurate, Large Minibatch SGD",
2017 (zero scale).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import normjax
from experiments.models.base import (
    Call,
    Data,
    Model,
    conv,
    dense,
    he,
    init_norm,
    linear,
    starts_at_zero,
)
from experiments.usage import UsageError, one_of

KINDS = ("image",)
NORMS = ("norm",)
DEFAULTS: dict[str, Any] = {
    "depth": 20,  # layers: 6n + 2
    "width": 1,  # times 16, 32 and 64 channels
    "position": "post",  # post- or pre-activation
    "shortcut": "pad",  # where the size changes: "pad" or "conv"
    "zero_last": False,  # start every block as its shortcut
    "norm": {"name": "batch_norm"},
}
POSITIONS = ("post", "pre")
SHORTCUTS = ("pad", "conv")


@dataclasses.dataclass(frozen=True)
class Block:
    """Two 3 x 3 convolutions and a shortcut."""

    inputs: int
    features: int
    stride: int
    position: str
    shortcut: str
    norms: tuple[normjax.Norm | None, normjax.Norm | None]
    zero_kernel: bool

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return `(params, state)`."""
        keys = jax.random.split(key, 6)
        shapes = ((3, 3, self.inputs, self.features), (3, 3, self.features, self.features))
        kernels = [he(k, shape) for k, shape in zip(keys, shapes, strict=False)]
        if self.zero_kernel:
            kernels[1] = jnp.zeros_like(kernels[1])
        before = (self.inputs, self.features) if self.position == "pre" else (self.features,) * 2
        params: dict[str, Any] = {}
        state: dict[str, Any] = {}
        for i, (name, kernel) in enumerate(zip(("first", "second"), kernels, strict=True)):
            own, state[name] = init_norm(self.norms[i], (1, 1, 1, before[i]), keys[2 + i])
            params[name] = {"kernel": kernel, "norm": own}
        if self.shortcut == "conv":
            own, state["shortcut"] = self._init_shortcut_norm(keys[5])
            kernel = he(keys[4], (1, 1, self.inputs, self.features))
            params["shortcut"] = {"kernel": kernel, "norm": own}
        return params, state

    def _init_shortcut_norm(self, key: jax.Array) -> tuple:
        # a pre-activation block normalizes before all of its convolutions
        norm = self.norms[0] if self.position == "post" else None
        return init_norm(norm, (1, 1, 1, self.features), key)

    def apply(self, params: Any, state: Any, x: jax.Array, call: Call) -> tuple[jax.Array, Any]:
        """Apply the block to `[n, h, w, inputs]`."""
        new: dict[str, Any] = {}

        def norm(name: str, i: int, x: jax.Array) -> jax.Array:
            y, new[name] = call.norm(self.norms[i], params[name]["norm"], state[name], x)
            return y

        first, second = params["first"]["kernel"], params["second"]["kernel"]
        if self.position == "pre":
            y = jax.nn.relu(norm("first", 0, x))
            short = self._shortcut(params, state, new, y if self.shortcut == "conv" else x, call)
            y = jax.nn.relu(norm("second", 1, conv(y, first, self.stride)))
            return short + conv(y, second), new
        short = self._shortcut(params, state, new, x, call)
        y = jax.nn.relu(norm("first", 0, conv(x, first, self.stride)))
        return jax.nn.relu(short + norm("second", 1, conv(y, second))), new

    def _shortcut(self, params: Any, state: Any, new: dict, x: jax.Array, call: Call) -> jax.Array:
        if self.shortcut == "conv":
            own = params["shortcut"]
            norm = self.norms[0] if self.position == "post" else None
            y = conv(x, own["kernel"], self.stride)
            y, new["shortcut"] = call.norm(norm, own["norm"], state["shortcut"], y)
            return y
        if self.stride > 1:
            x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0),) * 3 + ((0, self.features - self.inputs),))


@dataclasses.dataclass(frozen=True)
class ResNet(Model):
    """A convolution, blocks, the average over places and a linear readout."""

    inputs: int
    outputs: int
    channels: int
    position: str
    norm: normjax.Norm | None
    blocks: tuple[Block, ...]

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return `(params, state)`, by block."""
        stem, norm_key, head, *keys = jax.random.split(key, 3 + len(self.blocks))
        last = self.blocks[-1].features
        inits = {str(i): block.init(k) for i, (block, k) in enumerate(zip(self.blocks, keys))}  # noqa: B905
        params: dict[str, Any] = {name: init[0] for name, init in inits.items()}
        state: dict[str, Any] = {name: init[1] for name, init in inits.items()}
        # post: the stem's norm follows the first convolution; pre: the last norm is before the head
        features = self.channels if self.position == "post" else last
        own, state["norm"] = init_norm(self.norm, (1, 1, 1, features), norm_key)
        params["stem"] = {"kernel": he(stem, (3, 3, self.inputs, self.channels))}
        params["norm"] = own
        params["head"] = dense(head, last, self.outputs)
        return params, state

    def apply(self, params: Any, state: Any, x: jax.Array, call: Call) -> tuple[jax.Array, Any]:
        """Return logits of images `[n, h, w, c]`."""
        new: dict[str, Any] = {}
        x = conv(x, params["stem"]["kernel"])

        def norm(x: jax.Array) -> jax.Array:
            y, new["norm"] = call.norm(self.norm, params["norm"], state["norm"], x)
            return jax.nn.relu(y)

        x = norm(x) if self.position == "post" else x
        for i, block in enumerate(self.blocks):
            x, new[str(i)] = block.apply(params[str(i)], state[str(i)], x, call)
        x = norm(x) if self.position == "pre" else x
        return linear(params["head"], call.average(x)), new


def check(model: Mapping[str, Any]) -> None:
    """Check what the types of the defaults do not say."""
    one_of("config.model.position", model["position"], POSITIONS)
    one_of("config.model.shortcut", model["shortcut"], SHORTCUTS)
    if model["depth"] < 8 or (model["depth"] - 2) % 6:
        n = max(1, round((model["depth"] - 2) / 6))
        raise UsageError(
            f"config.model.depth={model['depth']} is not 6n + 2; write {6 * n + 2}, for instance."
        )


def build(model: Mapping[str, Any], norms: Mapping[str, Any], data: Data) -> ResNet:
    """Build the network of checked keys."""
    norm, post = norms["norm"], model["position"] == "post"
    last = starts_at_zero(norm) if model["zero_last"] and post else norm
    zero_kernel = model["zero_last"] and (not post or norm is None)
    channels = 16 * model["width"]
    blocks, features = [], channels
    for stage in range(3):
        for i in range((model["depth"] - 2) // 6):
            own = channels * 2**stage
            stride = 2 if stage and i == 0 else 1
            shortcut = model["shortcut"] if features != own else "pad"
            pair = (norm, last)
            rest = (stride, model["position"], shortcut, pair, zero_kernel)
            blocks.append(Block(features, own, *rest))
            features = own
    inputs = data.shape[-1]
    return ResNet(inputs, data.outputs, channels, model["position"], norm, tuple(blocks))
