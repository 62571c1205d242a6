"""Measures gradients through 20 layers of small and large weights, with and without batch norm.

BN(a W u) = BN(W u), so the gradient for u does not depend on the weights' scale a, and that for W
is proportional to 1/a. Without batch norm a layer's gradient changes by the scale to the power of
the layers above: weights times 1/2 against times 2 are 4^19, 11 decades.

MNIST of 14 x 14, 20 x 100 ReLU units, batches of 128, variance 2 / fan in before the scale.
`depth_decades` is the gradient at the first hidden layer over that at the last: batch norm at
initialization is free of the scale, and still makes gradients grow toward the input (Yang et al.,
2019).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from experiments.ledger.rules import Claim, contrast

import normjax
from configs.mechanism import _nets

CLAIM = Claim(
    number=36,
    statement="Batch norm keeps gradients independent of the weights' scale through 20 layers, "
    "and a weight's own gradient goes with one over its scale",
    source="Ioffe, Szegedy 2015, section 3.3",
    expect="under 0.1 decades of change with batch norm, over 5 without",
    arms=("none", "bn"),
    rules=(
        contrast("minus scale_decades, bn", (-1.0, "bn", "scale_decades"), by=-0.1),
        contrast("minus weight_decades, bn", (-1.0, "bn", "weight_decades"), by=-0.1),
        contrast("scale_decades, none", (1.0, "none", "scale_decades"), by=5.0),
    ),
    minutes=0.5,
)


def measure(arm, seed):
    """Largest change over the layers of log10 |gradient|, from weights / 2 to weights times 2."""
    depth, width = 20, 100
    norm = {"none": None, "bn": normjax.batch_norm()}[arm]
    x, labels = _nets.batch(seed, 128)
    params = _nets.init(jax.random.key(seed), (196, *[width] * depth, 10), norm, gain=2.0)

    @jax.jit
    def gradients(scale):
        hidden = [{**p, "kernel": scale * p["kernel"]} for p in params[:-1]]

        def loss(layers, nudges):
            logits, _ = _nets.forward([*layers, params[-1]], x, norm, jax.nn.relu, nudges)
            return _nets.loss_of(logits, labels)

        zero = [jnp.zeros((len(x), width))] * depth
        of_weights, of_units = jax.grad(loss, (0, 1))(hidden, zero)
        weights = jnp.stack([jnp.linalg.norm(p["kernel"]) for p in of_weights])
        return weights, jnp.stack([jnp.linalg.norm(u) for u in of_units])

    measured = {s: [np.asarray(v, np.float64) for v in gradients(s)] for s in (0.5, 1.0, 2.0)}
    log = {s: [np.log10(np.maximum(v, 1e-45)) for v in measured[s]] for s in measured}
    return {
        "scale_decades": np.abs(log[2.0][1] - log[0.5][1]).max(),
        # under invariance the gradient of weights times 4 is a quarter
        "weight_decades": np.abs(log[2.0][0] - log[0.5][0] + np.log10(4.0)).max(),
        "depth_decades": log[1.0][1][0] - log[1.0][1][-1],
    }
