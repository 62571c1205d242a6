"""Classifies images: an MLP, or two convolutions and two dense layers after LeNet, with norms.

`config.model.order` says what follows a linear map, in order: "norm", "act", "dropout", and
"response", a second norm. Every hidden layer is linear map, order, and after a convolution a
2 x 2 max pool; a linear readout ends it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import normjax
from experiments import usage
from experiments.config.models import NormConfig
from experiments.data import facts
from experiments.data.splits import take
from experiments.tasks.base import Batch, Call, Scores, Task, cross_entropy, without_padding
from experiments.usage import UsageError, one_of

ARCHITECTURES = ("mlp", "lenet")
ACTIVATIONS = ("tanh", "relu", "sigmoid")
STEPS = ("norm", "act", "dropout", "response")
PLACES = ("norm_conv", "norm_dense", "response")
DEFAULTS: dict[str, Any] = {
    "arch": "mlp",
    "hidden": 100,  # units of a dense layer; LeNet's second has 0.7 of them, as 84 of 120
    "depth": 2,  # mlp: hidden layers
    "channels": 6,  # lenet: of the first convolution; the second has 8/3 of them, as 16 of 6
    "kernel": 3,  # lenet: side of its windows, no padding; 5 on images of 28 x 28
    "activation": "tanh",
    "order": ("norm", "act", "dropout"),
    "bias": True,  # of linear maps that a norm follows at once; all others have one
    "dropout": 0.0,
    "dropout_last": False,  # in the last hidden layer alone
    "raw": False,  # bytes 0 to 255 as they are, rather than scaled to [0, 1]
    "init_scale": 1.0,  # times LeCun's initialization, for hidden layers
    "weight": {"name": "none"},  # weight_norm, weight_standardization, or cosine_dense
    "data_init": False,  # weight_norm: gains and biases from 500 training images
    "frozen": False,  # train with running statistics
    **{place: {"name": "none"} for place in PLACES},
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A hidden layer: features, window and input shape of its linear map, and what follows it."""

    features: int
    window: int  # 0: dense
    shape: tuple[int, ...]  # of one input
    norm: normjax.Norm | None
    response: normjax.Norm | None
    weight: Any
    bias: bool

    @property
    def out(self) -> tuple[int, ...]:
        """Shape of one output, before the pool."""
        if not self.window:
            return (self.features,)
        return (self.shape[0] - self.window + 1, self.shape[1] - self.window + 1, self.features)

    def init(self, key: jax.Array, scale: float) -> tuple[dict, dict]:
        """Return `(params, state)`, by part."""
        fan = self.shape[-1] * self.window**2 if self.window else int(np.prod(self.shape))
        shape = (self.window,) * 2 + (self.shape[-1],) if self.window else (fan,)
        kernel: Any = scale / np.sqrt(fan) * jax.random.normal(key, (*shape, self.features))
        params: dict[str, Any] = {"kernel": kernel}
        state: dict[str, Any] = {}
        if isinstance(self.weight, normjax.Reparam):
            params["kernel"], state["kernel"] = self.weight.init(kernel)
        elif self.weight is not None:
            params, _ = self.weight.init(key, fan)
        if self.bias:
            params["bias"] = jnp.zeros((self.features,))
        for name in ("norm", "response"):
            norm = getattr(self, name)
            if norm is not None:
                params[name], state[name] = norm.init((1, *self.out))
        return params, state

    def matmul(self, kernel: jax.Array, x: jax.Array) -> jax.Array:
        """Apply the linear map without its bias."""
        if not self.window:
            return x.reshape(x.shape[0], -1) @ kernel
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def linear(self, params: dict, state: dict, x: jax.Array, stats: Any) -> jax.Array:
        """Apply the linear map to a batch."""
        if isinstance(self.weight, normjax.Reparam):
            kernel, _ = self.weight.apply(params["kernel"], state["kernel"], stats=stats)
            y = self.matmul(kernel, x)
        elif self.weight is not None:
            y, _ = self.weight.apply(params, (), x.reshape(x.shape[0], -1), stats=stats)
        else:
            y = self.matmul(params["kernel"], x)
        return y + params["bias"] if self.bias else y


def pool(x: jax.Array) -> jax.Array:
    """Take the max over 2 x 2 windows; an odd last row or column is left out."""
    if x.ndim == 2:
        return x
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    corners = [x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]
    return functools.reduce(_larger, corners)


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """Take the larger values, or NaN.

    The derivative of `max` asks which operand equals the result. XLA may compute the operand anew,
    rounded in another way, so that none does and the gradient is 0 / 0.
    """
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


@dataclasses.dataclass(frozen=True)
class ImageClassifier(Task):
    """Hidden layers and a linear readout; examples are a `splits.Split`."""

    layers: tuple[Layer, ...]
    classes: int
    white: float
    activation: str
    order: tuple[str, ...]
    dropout: float = 0.0
    init_scale: float = 1.0
    frozen: bool = False
    dropout_last: bool = False
    first: Any = dataclasses.field(default=None, compare=False, repr=False)
    smoothing: float = 0.0
    dtype: str = "float32"

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return `(params, norm)`."""
        key_head, *keys = jax.random.split(key, len(self.layers) + 1)
        inits = [layer.init(k, self.init_scale) for layer, k in zip(self.layers, keys, strict=True)]
        params, state = ({str(i): m[j] for i, m in enumerate(inits)} for j in (0, 1))
        if self.first is not None:
            params |= self._data_init(params)
        last = self.layers[-1].features
        kernel = jax.random.normal(key_head, (last, self.classes)) / np.sqrt(last)
        return params | {"head": {"kernel": kernel, "bias": jnp.zeros((self.classes,))}}, state

    def drops(self, layer: int) -> bool:
        """Whether a hidden layer has dropout."""
        return self.dropout > 0 and (not self.dropout_last or layer == len(self.layers) - 1)

    def _data_init(self, params: dict) -> dict:
        """Return gains and biases that standardize pre-activations on the first images."""
        act = getattr(jax.nn, self.activation)
        stack = [(layer.matmul, lambda y: pool(act(y))) for layer in self.layers]
        # data_dependent_stack normalizes plain kernels itself: v as it was drawn
        plain = [{**p, "kernel": p["kernel"].v} for p in params.values()]
        norm = self.layers[0].weight
        x = jnp.asarray(self.first, jnp.float32) / self.white
        scaled, _ = normjax.data_dependent_stack(stack, plain, x, norm=norm)
        return {str(i): own for i, own in enumerate(scaled)}

    def hidden(self, params: Any, norm: Any, x: jax.Array, call: Call) -> tuple[jax.Array, Any]:
        """Return the outputs of the last hidden layer, `[batch, features]`, and the next state."""
        new_state = {}
        for i, layer in enumerate(self.layers):
            own, state = params[str(i)], norm[str(i)]
            x = layer.linear(own, state, x, call.stats)
            new_state[str(i)] = dict(state)
            for step in self.order:
                part = getattr(layer, step, None)
                if part is not None:
                    x, new_state[str(i)][step] = call.norm(part, own[step], state[step], x)
                elif step == "act":
                    x = getattr(jax.nn, self.activation)(x)
                elif step == "dropout" and self.drops(i):
                    x = call.dropout(x, self.dropout, i)
            x = pool(x)
        return x.reshape(x.shape[0], -1), new_state

    def scores(self, params: Any, norm: Any, batch: Batch, call: Call) -> tuple[Scores, Any]:
        """Cross-entropy of the readout."""
        x = without_padding(batch.examples.pixels.astype(jnp.float32) / self.white, call.mask)
        if call.train and self.frozen:
            call = call._replace(stats="running")
        params = self.cast_weights(params)
        h, norm = self.hidden(params, norm, self.cast(x), call)
        logits = h @ params["head"]["kernel"] + params["head"]["bias"]
        smoothing = self.smoothing * call.train
        return cross_entropy(logits, batch.examples.labels, batch.weight, smoothing=smoothing), norm


def _weight(model: Mapping[str, Any], features: int) -> Any:
    """Build the reparametrization of `model.weight`, or a cosine layer."""
    arguments = dict(model["weight"])
    name = arguments.pop("name", "none")
    known: dict[str, Any] = {
        "weight_norm": normjax.weight_norm,
        "weight_standardization": normjax.weight_standardization,
        "cosine_dense": normjax.cosine_dense,
    }
    if name == "none":
        return None
    one_of("config.model.weight.name", name, [*known, "none"])
    width = (features,) if name == "cosine_dense" else ()
    try:
        return known[name](*width, **arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"config.model.weight: {error}") from error


def layers(model: Mapping[str, Any], image: tuple[int, ...]) -> tuple[Layer, ...]:
    """Build the hidden layers of a model for images of (height, width, channels)."""
    norms = {p: NormConfig.parse(model[p], f"config.model.{p}").build() for p in PLACES}
    order = model["order"]
    at_once = "norm" in order and (order.index("norm") == 0)

    def layer(features: int, shape: tuple[int, ...], window: int = 0) -> Layer:
        norm = norms["norm_conv" if window else "norm_dense"]
        weight = _weight(model, features)
        bias = model["bias"] or norm is None or not at_once
        response = norms["response"] if window and "response" in order else None
        norm = norm if "norm" in order else None
        return Layer(features, window, shape, norm, response, weight, bias)

    if model["arch"] == "mlp":
        shape = image
        hidden: list[Layer] = []
        for _ in range(model["depth"]):
            hidden.append(layer(model["hidden"], shape))
            shape = hidden[-1].out
        return tuple(hidden)
    first = layer(model["channels"], image, model["kernel"])
    halves = (first.out[0] // 2, first.out[1] // 2, first.features)
    second = layer(round(8 / 3 * model["channels"]), halves, model["kernel"])
    quarters = (second.out[0] // 2, second.out[1] // 2, second.features)
    third = layer(model["hidden"], quarters)
    return first, second, third, layer(round(0.7 * model["hidden"]), third.out)


def _model(config: Mapping[str, Any]) -> dict[str, Any]:
    model = {**DEFAULTS, **config["model"]}
    return {**model, "order": tuple(model["order"])}


def check(config: Mapping[str, Any]) -> None:
    """Check the model's keys, and its norms against their factories."""
    usage.check_like("config.model", config["model"], DEFAULTS)
    model = _model(config)
    shape = facts.image_shape(config)
    one_of("config.data.layout", config["data"]["layout"], ("images",))
    one_of("config.model.arch", model["arch"], ARCHITECTURES)
    one_of("config.model.activation", model["activation"], ACTIVATIONS)
    for step in model["order"]:  # a list's entries may be anything
        one_of("config.model.order", step, STEPS)
    if "act" not in model["order"] or len(set(model["order"])) < len(model["order"]):
        raise UsageError("config.model.order names each step once at most, and 'act'.")
    if not 0 <= model["dropout"] < 1:
        raise UsageError(f"config.model.dropout={model['dropout']!r} must be in [0, 1).")
    side = min(shape[:2])
    # two windows and two pools must leave a pixel: ((side - k + 1) // 2 - k + 1) // 2 >= 1
    if model["arch"] == "lenet" and (side - model["kernel"] + 1) // 2 < model["kernel"] + 1:
        raise UsageError(
            f"config.model.kernel={model['kernel']} leaves nothing of {shape[0]} x {shape[1]} "
            "pixels after two convolutions and pools; write a smaller one."
        )
    hidden = layers(model, shape)
    if model["arch"] == "lenet" and model["weight"].get("name") == "cosine_dense":
        raise UsageError("config.model.weight.name='cosine_dense' is a dense layer: arch='mlp'.")
    plain = all(layer.norm is None for layer in hidden)
    if model["data_init"] and (model["weight"].get("name") != "weight_norm" or not plain):
        raise UsageError("config.model.data_init=True needs weight.name='weight_norm', no norms.")


def build(config: Mapping[str, Any], dataset: Any) -> ImageClassifier:
    """Build the classifier of a checked config."""
    model = _model(config)
    return ImageClassifier(
        layers(model, take(dataset.train, np.arange(1)).pixels.shape[1:]),
        dataset.classes,
        1.0 if model["raw"] else dataset.white,
        model["activation"],
        model["order"],
        model["dropout"],
        model["init_scale"],
        model["frozen"],
        model["dropout_last"],
        np.asarray(take(dataset.train, np.arange(500)).pixels) if model["data_init"] else None,
    )
