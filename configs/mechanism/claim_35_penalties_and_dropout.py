"""Measures weights trained with L1 and L2, and dropout's scaled weights against an ensemble.

With L1 at least 30 points more weights below 1e-3 than with L2; with L2 a root mean square below
0.7 of that without; with dropout, scaled weights and the mean of 100 sampled masks within 1 point
of accuracy and 0.05 of total variation.

MNIST of 14 x 14, 5,000 images for training and test, 2 layers of 128 ReLU units, SGD at rate 0.1,
batches of 100, 2,000 steps; L1 1e-3, L2 1e-2 (times |w|^2 / 2), on kernels; dropout 0.5 of both
hidden layers. Two hidden layers, since with one scaled weights are the geometric mean of the
subnetworks exactly.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from experiments.ledger.rules import Claim, contrast, more, same

from configs.mechanism import _nets

CLAIM = Claim(
    number=35,
    statement="L1 makes weights sparse and L2 makes them small; dropout with scaled weights "
    "predicts as the ensemble of its subnetworks",
    source="Goodfellow, Bengio, Courville 2016, 7.1 and 7.12; Srivastava et al. 2014, 7.5",
    expect="30 points more zeros with L1; 0.7 of the size with L2; within 1 point of accuracy",
    arms=("none", "l1", "l2", "dropout"),
    rules=(
        more("l1", "l2", "near_zero", by=0.3),
        contrast("0.7 none - l2, size", (0.7, "none", "size"), (-1.0, "l2", "size")),
        same("dropout", "dropout", "accuracy", other="accuracy_ensemble", within=0.01),
        contrast("minus total variation, dropout", (-1.0, "dropout", "total_variation"), by=-0.05),
    ),
    minutes=2,
)


STEPS, BATCH, RATE, MASKS = 2000, 100, 0.1, 100


def logits(params, x, key=None):
    """With a key, half of the hidden units are dropped and the rest doubled: at test nothing is."""

    def drop(h, i):
        if key is None:
            return h
        keep = jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, h.shape)
        return jnp.where(keep, 2.0 * h, 0.0)

    return _nets.forward(params, x, None, jax.nn.relu, change=drop)[0]


@functools.partial(jax.jit, static_argnames="dropout")
def train(params, x, labels, keys, l1, l2, dropout):
    """SGD on random batches, a step a key."""

    def step(params, key):
        key_batch, key_drop = jax.random.split(key)
        index = jax.random.randint(key_batch, (BATCH,), 0, len(x))
        dropped = key_drop if dropout else None

        def loss(params):
            return _nets.loss_of(logits(params, x[index], dropped), labels[index])

        def move(p, g):
            return p - RATE * (g + (l2 * p + l1 * jnp.sign(p) if p.ndim == 2 else 0.0))

        return jax.tree.map(move, params, jax.grad(loss)(params)), None

    return jax.lax.scan(step, params, keys)[0]


@jax.jit
def probabilities(params, x, key=None):
    """What the network says, or one of its subnetworks."""
    return jax.nn.softmax(logits(params, x, key))


def measure(arm, seed):
    """Sizes of the trained weights, test accuracy, and for dropout what the masks say."""
    l1, l2 = {"l1": 1e-3}.get(arm, 0.0), {"l2": 1e-2}.get(arm, 0.0)
    dataset = _nets.digits()
    x, labels = jnp.asarray(dataset.train.pixels[:5000]), jnp.asarray(dataset.train.labels[:5000])
    key, key_run, key_test = jax.random.split(jax.random.key(seed), 3)
    params = _nets.init(key, (196, 128, 128, 10), gain=2.0)
    params = train(params, x, labels, jax.random.split(key_run, STEPS), l1, l2, arm == "dropout")
    weights = np.concatenate([np.ravel(layer["kernel"]) for layer in params])
    test, truth = jnp.asarray(dataset.test.pixels[:5000]), np.asarray(dataset.test.labels[:5000])
    once = np.asarray(probabilities(params, test))

    def accuracy(p):
        return float(np.mean(np.argmax(p, 1) == truth))

    metrics = {
        "near_zero": float(np.mean(np.abs(weights) < 1e-3)),
        "size": float(np.sqrt(np.mean(weights**2))),
        "accuracy": accuracy(once),
    }
    if arm == "dropout":
        drawn = [
            np.asarray(probabilities(params, test, k)) for k in jax.random.split(key_test, MASKS)
        ]
        mean = np.mean(drawn, 0)
        metrics |= {
            "accuracy_ensemble": accuracy(mean),
            "accuracy_one_mask": float(np.mean([accuracy(p) for p in drawn])),
            "accuracy_geometric": accuracy(np.mean(np.log(np.maximum(drawn, 1e-30)), 0)),
            "total_variation": float(0.5 * np.abs(mean - once).sum(1).mean()),
        }
    return metrics
