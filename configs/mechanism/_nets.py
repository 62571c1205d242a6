"""What the measurements share: real digits, and a plain MLP as pure functions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import datasets, splits


@functools.cache
def digits(side: int = 14) -> splits.Dataset:
    """MNIST, blocks of pixels averaged down to side x side, flat and in [0, 1]."""
    options = {"side": side, "layout": "pixels", "train_size": 10_000}
    dataset = datasets.load("mnist", options=options)
    return dataset.each(lambda s: s._replace(pixels=np.float32(s.pixels) / dataset.white))


def batch(seed: int, size: int, side: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Training images and labels, others for each seed."""
    pixels, labels = splits.take(digits(side).train, slice(seed * size, (seed + 1) * size))
    return pixels, labels


def init(key: jax.Array, sizes: Sequence[int], norm: Any = None, gain: float = 1.0) -> list[Any]:
    """A layer's parameters each: kernels of variance gain / fan in, biases 0, norms between."""
    layers = []
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        key, own = jax.random.split(key)
        kernel = jnp.sqrt(gain / n) * jax.random.normal(own, (n, m))
        layer: dict[str, Any] = {"kernel": kernel, "bias": jnp.zeros((m,))}
        if norm is not None and i < len(sizes) - 2:
            layer["norm"] = norm.init((1, m))[0]
        layers.append(layer)
    return layers


def forward(
    layers: Sequence[Any],
    x: jax.Array,
    norm: Any,
    activation: Callable[[jax.Array], jax.Array],
    nudges: Sequence[jax.Array] | None = None,
    change: Callable[[jax.Array, int], jax.Array] = lambda h, i: h,
) -> tuple[jax.Array, list[jax.Array]]:
    """Logits, and what each hidden layer puts out; `nudges` are added to the latter."""
    h, outputs = jnp.asarray(x), []
    for i, layer in enumerate(layers[:-1]):
        y = h @ layer["kernel"]
        if norm is None:
            y = y + layer["bias"]
        else:
            state = norm.init(y.shape)[1]
            y, _ = norm.apply(layer["norm"], state, y, stats="batch")
        h = change(activation(y), i)
        h = h if nudges is None else h + nudges[i]
        outputs.append(h)
    return h @ layers[-1]["kernel"] + layers[-1]["bias"], outputs


def loss_of(logits: jax.Array, labels: Any) -> jax.Array:
    """Mean cross-entropy."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, jnp.asarray(labels)[:, None], axis=1).mean()
