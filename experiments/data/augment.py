"""Changes images at random while training: flip, crop and mixup, by name.

`config.data.augment` is a list such as "flip,crop:4,mixup:0.2", in the order that it is done:

=========  ========================================================================================
flip       each image is mirrored left to right with probability 1/2
crop:N     each is moved by up to N pixels along both sides, black follows; N is 4 unless given
mixup:A    each is mixed with another of its batch, as are their labels: a share drawn from
           Beta(A, A) of the one, the rest of the other; A is 0.2 unless given (Zhang et al. 2018)
=========  ========================================================================================

What is drawn depends on the run's key and the step alone, so that a run that was stopped draws the
same again. Validation, test, and population statistics are of the images as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.data.splits import Split
from experiments.usage import UsageError, nearest, short

USUAL = {"flip": 0.0, "crop": 4.0, "mixup": 0.2}
Steps = tuple[tuple[str, float], ...]


def parse(words: str) -> Steps:
    """Read "flip,crop:4,mixup:0.2" as names and numbers."""
    steps: list[tuple[str, float]] = []
    where = f"config.data.augment={short(words)}"
    for word in filter(None, (part.strip() for part in words.split(","))):
        name, colon, number = word.partition(":")
        if name not in USUAL:
            raise UsageError(
                f"{where}: {name!r} is unknown; known: {', '.join(USUAL)}.{nearest(name, USUAL)}"
            )
        try:
            value = float(number) if colon else USUAL[name]
        except ValueError:
            value = math.nan
        whole = name == "mixup" or value == int(value) if math.isfinite(value) else False
        if (
            not whole
            or value > 100
            or (value <= 0) != (name == "flip")
            or (colon and name == "flip")
        ):
            raise UsageError(
                f"{where}: {word!r} must be flip alone, crop:N with a whole number of pixels from "
                "1 to 100, or mixup:A with a number greater than 0."
            )
        if name in dict(steps):
            raise UsageError(f"{where} names {name} twice.")
        steps.append((name, value))
    return tuple(steps)


def check(config: Mapping[str, Any], data: Any) -> None:
    """Refuse augmentation of what is no picture."""
    words = config["data"]["augment"]
    if not parse(words):
        return
    if data.kind != "images" or config["data"]["layout"] != "images":
        raise UsageError(
            f"config.data.augment={short(words)} changes pictures; write "
            "--config.data.layout=images with a data set of images, or config.data.augment=''."
        )


def apply(steps: Steps, key: jax.Array, examples: Split, classes: int) -> Split:
    """Change a batch of images `[batch, H, W, C]`; with mixup, labels become `[batch, classes]`."""
    for i, (name, value) in enumerate(steps):
        own, x = jax.random.fold_in(key, i), jnp.asarray(examples.pixels)
        if name == "flip":
            examples = examples._replace(pixels=flip(own, x))
        elif name == "crop":
            examples = examples._replace(pixels=crop(own, x, int(value)))
        else:
            examples = mixup(own, examples, value, classes)
    return examples


def flip(key: jax.Array, x: jax.Array) -> jax.Array:
    """Mirror each image left to right with probability 1/2."""
    chosen = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
    return jnp.where(chosen, x[:, :, ::-1], x)


def crop(key: jax.Array, x: jax.Array, most: int) -> jax.Array:
    """Cut each image, in a frame of `most` black pixels, to its size at a random place."""
    start = jax.random.randint(key, (x.shape[0], 2), 0, 2 * most + 1)
    padded = jnp.pad(x, ((0, 0), (most, most), (most, most), (0, 0)))

    def one(image: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (at[0], at[1], jnp.zeros_like(at[0])), x.shape[1:])

    return jax.vmap(one)(padded, start)


def mixup(key: jax.Array, examples: Split, alpha: float, classes: int) -> Split:
    """Mix each image and its label with those of another, with one share for the whole batch."""
    key_share, key_order = jax.random.split(key)
    share = jax.random.beta(key_share, alpha, alpha)
    other = jax.random.permutation(key_order, examples.pixels.shape[0])
    labels = jax.nn.one_hot(examples.labels, classes)
    x = examples.pixels.astype(jnp.float32)
    return Split(share * x + (1 - share) * x[other], share * labels + (1 - share) * labels[other])
