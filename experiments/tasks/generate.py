"""Makes images of images: copies through a narrow code, or paintings in the style of a picture.

Two convolutions of stride 2, for `goal="copy"` a code of `config.model.hidden` numbers, and two
convolutions after enlarging by 2; norm and ReLU after all but the last, which ends in a sigmoid.

The loss of a copy is its mean squared error. That of `goal="style"`, after Ulyanov et al. 2016, is

    |f2(y) - f2(x)|^2 / |f2(s)|^2 + style * sum over l of |G(fl(y)) - G(fl(s))|^2 / |G(fl(s))|^2

with stripes s, two layers f1, f2 of a fixed random convolutional network, and G its products of
features averaged over places.
"""

from __future__ import annotations

import dataclasses
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
from experiments.tasks.base import Batch, Call, Scores, Task, without_padding
from experiments.usage import UsageError, one_of

GOALS = ("copy", "style")
DEFAULTS: dict[str, Any] = {
    "goal": "copy",
    "hidden": 32,  # copy: numbers of the code
    "channels": 8,  # of the outer convolutions; the inner ones have twice as many
    "style": 1.0,  # style: weight of its term beside the content's
    "norm": {"name": "none"},
}


def conv(x: jax.Array, kernel: Any, stride: int = 1) -> jax.Array:
    """Convolve; the side of the output is that of the input over the stride."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=layout)


def enlarge(x: jax.Array) -> jax.Array:
    """Repeat each pixel along both sides."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def features(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Apply two layers of a convolutional network with fixed random weights."""
    draw = np.random.RandomState(0)
    first = np.float32(draw.normal(0, np.sqrt(2 / 25), (5, 5, 1, 16)))
    second = np.float32(draw.normal(0, np.sqrt(2 / 144), (3, 3, 16, 32)))
    low = jax.nn.relu(conv(x, first))
    n, h, w, c = low.shape
    pooled = low.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
    return low, jax.nn.relu(conv(pooled, second))


def gram(f: jax.Array) -> jax.Array:
    """Average products of features over places: `[examples, features, features]`."""
    return jnp.einsum("nhwi,nhwj->nij", f, f) / (f.shape[1] * f.shape[2])


def stripes(side: int) -> np.ndarray:
    """Draw the picture whose style is used: diagonal waves of 7 pixels."""
    at = np.arange(side)
    waves = 0.5 + 0.5 * np.sin(2 * np.pi * (at[:, None] + at) / 7)
    return waves.astype(np.float32)[None, :, :, None]


def _relative(a: jax.Array, b: jax.Array, unit: jax.Array) -> jax.Array:
    axes = tuple(range(1, a.ndim))
    return jnp.square(a - b).sum(axes) / jnp.square(unit).sum()


def style_loss(y: jax.Array, x: jax.Array, weight: float) -> jax.Array:
    """Return the loss of content and style, a number for each image."""
    of_y, of_x, of_style = features(y), features(x), features(jnp.asarray(stripes(x.shape[1])))
    loss = _relative(of_y[1], of_x[1], of_style[1])
    for own, want in zip(of_y, of_style, strict=True):
        loss = loss + weight * _relative(gram(own), gram(want), gram(want))
    return loss


@dataclasses.dataclass(frozen=True)
class Generator(Task):
    """Encoder, code or none, decoder; examples are a `splits.Split`, whose labels are unused."""

    goal: str
    code: int
    channels: int
    side: int
    white: float
    norm: normjax.Norm | None = None
    style: float = 1.0

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shape of the kernel and side of the output, by layer."""
        c, side = self.channels, self.side
        shapes: dict[str, tuple[tuple[int, ...], int]] = {
            "down": ((3, 3, 1, c), side // 2),
            "deep": ((3, 3, c, 2 * c), side // 4),
            "middle": ((3, 3, 2 * c, 2 * c), side // 4),
            "up": ((3, 3, 2 * c, c), side // 2),
            "out": ((3, 3, c, 1), side),
        }
        if self.goal == "copy":
            places = (side // 4) ** 2 * 2 * c
            shapes |= {"code": ((places, self.code), 0), "open": ((self.code, places), 0)}
        return shapes

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return `(params, norm)`; kernels of variance 2 / fan in."""
        params: dict[str, Any] = {}
        state: dict[str, Any] = {}
        for i, (name, (shape, side)) in enumerate(self.shapes.items()):
            scale = np.sqrt(2 / np.prod(shape[:-1]))
            kernel = scale * jax.random.normal(jax.random.fold_in(key, i), shape)
            params[name] = {"kernel": kernel, "bias": jnp.zeros(shape[-1:])}
            if self.norm is not None and side and name != "out":
                params[name]["norm"], state[name] = self.norm.init((1, side, side, shape[-1]))
        return params, state

    def images(self, params: Any, norm: Any, x: jax.Array, call: Call) -> tuple[jax.Array, Any]:
        """Make images of images in [0, 1]; return them and the next state of the norms."""
        new_state = dict(norm)

        def layer(name: str, x: jax.Array, stride: int = 1) -> jax.Array:
            own = params[name]
            y = conv(x, own["kernel"], stride) + own["bias"]
            if self.norm is not None:
                y, new_state[name] = call.norm(self.norm, own["norm"], norm[name], y)
            return jax.nn.relu(y)

        x = layer("deep", layer("down", x, 2), 2)
        if self.goal == "copy":
            flat = x.reshape(x.shape[0], -1)
            for name in ("code", "open"):
                flat = flat @ params[name]["kernel"] + params[name]["bias"]
            x = flat.reshape(x.shape)
        x = enlarge(layer("up", enlarge(layer("middle", x))))
        return jax.nn.sigmoid(conv(x, params["out"]["kernel"]) + params["out"]["bias"]), new_state

    def scores(self, params: Any, norm: Any, batch: Batch, call: Call) -> tuple[Scores, Any]:
        """Sum the images' losses; nothing is right or wrong."""
        x, weight = batch.examples.pixels.astype(jnp.float32) / self.white, batch.weight
        x = without_padding(x, call.mask)
        y, norm = self.images(params, norm, x, call)
        if self.goal == "copy":
            loss = jnp.square(y - x).mean((1, 2, 3))
        else:
            loss = style_loss(y, x, self.style)
        weight = jnp.ones(loss.shape) if weight is None else weight
        loss = jnp.where(weight > 0, weight * loss, 0.0)
        return Scores(loss.sum(), jnp.zeros(()), weight.sum()), norm


def check(config: Mapping[str, Any]) -> None:
    """Check the model's keys, and its norm against its factory."""
    usage.check_like("config.model", config["model"], DEFAULTS)
    model = {**DEFAULTS, **config["model"]}
    height, side, channels = facts.image_shape(config)
    if height != side or channels != 1:
        raise UsageError(
            f"config.task='generate' draws square grey images, and those of {config['dataset']} "
            f"are {height} x {side} x {channels}."
        )
    one_of("config.data.layout", config["data"]["layout"], ("images",))
    one_of("config.model.goal", model["goal"], GOALS)
    if config["select"] != "loss":
        raise UsageError("config.task='generate' has no accuracy; write config.select='loss'.")
    if side % 4:
        raise UsageError(
            f"images of {side} x {side} cannot be halved twice; write config.data.side=28, "
            "for instance."
        )
    if model["channels"] < 1 or model["style"] < 0:
        raise UsageError("config.model.channels must be at least 1, config.model.style 0.")
    NormConfig.parse(model["norm"], "config.model.norm").build()


def build(config: Mapping[str, Any], dataset: Any) -> Generator:
    """Build the generator of a checked config."""
    model = {**DEFAULTS, **config["model"]}
    norm = NormConfig.parse(model["norm"], "config.model.norm").build()
    side = take(dataset.train, np.arange(1)).pixels.shape[1]
    rest = (model["channels"], side, dataset.white, norm, model["style"])
    return Generator(model["goal"], model["hidden"], *rest)
