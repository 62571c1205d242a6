"""Recurrent layers beside their peers: all outputs forward, and the gradients backward.

    python -m benchmarks.recurrent [--only=T784] [--rounds=15] [--quick] [--json=FILE]

A case is named by steps T, batch B, features D and units H. Flax's BatchNorm inside `nn.scan`
is what a user without this library writes for a BN-LSTM.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from benchmarks import _layers, _measure
from benchmarks.norms import draw

BARS = (
    _measure.Bar("T", "flax lstm", "normjax lstm", 1.0),
    _measure.Bar("T", "flax lstm", "normjax bn_lstm", 0.8),
    _measure.Bar("T", "flax bn in nn.scan", "normjax bn_lstm", 1 / 0.75),
    _measure.Bar("T", "normjax lstm", "normjax ln_lstm", 1 / 1.2),
)


def contender(
    library: str, steps: int, batch: int, features: int, hidden: int
) -> _measure.Contender:
    """One JAX layer, forward and backward."""
    x = jnp.asarray(draw((batch, steps, features), 0))
    dy = jnp.asarray(draw((batch, steps, hidden), 1))
    apply, params, state = _layers.LAYERS[library](x, hidden)
    return _measure.of_jax(library, _measure.forward_backward(apply), (params, state, x, dy))


def makers(steps: int, batch: int, features: int, hidden: int) -> list[_measure.Maker]:
    """Every library's way to build a case."""
    size = {"steps": steps, "batch": batch, "features": features, "hidden": hidden}
    module = "benchmarks.recurrent"
    found = [(lib, module, "contender", {"library": lib, **size}) for lib in _layers.LAYERS]
    return [*found, ("torch", "benchmarks._torch", "lstm", {"train": False, **size})]


def measure(asked: Any) -> list[dict[str, Any]]:
    """Every case that is asked for."""
    records = []
    for size in _layers.sizes(asked.quick):
        name = f"{_layers.named(size)} forward+backward"
        if _measure.wanted(name, asked.only):
            found = makers(*size)
            records += _measure.gather(name, found, asked.libraries, asked.rounds, asked.contenders)
    return records


if __name__ == "__main__":
    _measure.launch("benchmarks.recurrent", measure, BARS)
