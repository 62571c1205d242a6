"""Recurrent layers beside their peers: all outputs forward, and the gradients backward.

    python -m benchmarks.recurrent [--only=T784] [--rounds=15] [--quick] [--json=FILE]

A case is named by steps T, batch B, features D and units H. Flax's BatchNorm inside `nn.scan`
is what a user without this library writes for a BN-LSTM.
"""

from __future__ import annotations

import jax.numpy as jnp

from benchmarks import _layers, _measure
from benchmarks.norms import draw


def contender(
    library: str, steps: int, batch: int, features: int, hidden: int
) -> _measure.Contender:
    """One JAX layer, forward and backward."""
    x = jnp.asarray(draw((batch, steps, features), 0))
    dy = jnp.asarray(draw((batch, steps, hidden), 1))
    apply, params, state = _layers.LAYERS[library](x, hidden)
    return _measure.of_jax(library, _measure.forward_backward(apply), (params, state, x, dy))


MODULE = "benchmarks.recurrent"

if __name__ == "__main__":
    _layers.launch(MODULE, "forward+backward")
