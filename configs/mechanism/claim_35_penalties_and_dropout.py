"""Trains an MLP with L1, with L2 and with dropout, and looks at weights and subnetworks.

2 layers of 128 ReLU units, SGD at rate 0.1, batches of 100; L1 1e-3, L2 1e-2 (times |w|^2 / 2), on
kernels; dropout 0.5 of both hidden layers. Two hidden layers, since with one scaled weights are the
geometric mean of the subnetworks exactly. The ensemble is the mean of 100 sampled masks.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs.mechanism import _nets
from experiments.data import datasets, splits
from experiments.ledger.claims import Claim, Group, Scale, contrast, less, more

GOODFELLOW = "Goodfellow, Bengio, Courville 2016, section 7.1"


def claim(letter, title, statement, rule, delta, why, expect, source, methods):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=delta,
        why=why,
        expect=expect,
        source=source,
        controls=(),  # about weights and subnetworks of one training, not about its end
        change="other strengths of the penalties, and a deeper network",
        methods=methods,
    )


GROUP = Group(
    number=35,
    title="L1, L2 and dropout",
    topic="regularization",
    source="Goodfellow, Bengio, Courville 2016; Srivastava et al. 2014",
    axis="training images",
    scales=(
        Scale("mnist5k", 5000, "MLP, MNIST 14 x 14, 5,000 images drawn anew, 2,000 steps", 16, 0.2),
        Scale("mnist50k", 50_000, "MLP, MNIST 14 x 14, 50,000 images, 4,000 steps", 8, 0.3),
    ),
    arms=("none", "l1", "l2", "dropout"),
    claims=(
        claim(
            "a",
            "L1 makes weights sparse where L2 does not",
            "L1 makes weights sparse: more weights end below 1e-3 than with L2",
            more("l1", "l2", "near_zero"),
            0.3,
            "the source says sparse and gives no number; three weights in ten",
            "L1 drives weights to exactly 0, L2 only scales them",
            f"{GOODFELLOW}.2",
            ("L1", "L2"),
        ),
        claim(
            "b",
            "L2 makes weights small",
            "L2 makes weights small: their root mean square is lower than without it",
            less("l2", "none", "weight_size"),
            0.0375,
            "the source gives no number; three tenths of the size without L2 in a pilot (0.125)",
            "weights shrink by a factor in each step",
            f"{GOODFELLOW}.1",
            ("L2",),
        ),
        claim(
            "c",
            "Dropout: scaled weights predict as well as the ensemble",
            "After dropout the network with scaled weights predicts as well as the mean of its "
            "subnetworks: their test accuracies are the same",
            contrast(
                "accuracy of the ensemble − of scaled weights",
                (1.0, "dropout", "ensemble_gain"),
                kind="same",
            ),
            0.00125,
            "half of the about 0.25 points that separate one mask from the ensemble in the "
            "source's figure; not verified",
            "error of scaled weights within one standard deviation of that of 50 masks, figure 11 "
            "(about, not verified)",
            "Srivastava et al. 2014, section 7.5",
            ("dropout",),
        ),
    ),
)


STEPS = {"mnist5k": 2000, "mnist50k": 4000}
BATCH, RATE, MASKS = 100, 0.1, 100


@functools.lru_cache(maxsize=1)
def images(n, size):
    """Training and test images of a replicate, on the device, flat and in [0, 1]."""
    options = {"side": 14, "layout": "pixels", "train_size": size, "draw": n}
    dataset = datasets.load("mnist", options=options)
    found = [dataset.train, splits.take(dataset.test, slice(0, 10_000))]
    return [(jnp.asarray(s.pixels) / dataset.white, jnp.asarray(s.labels)) for s in found]


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


@functools.cache
def measure(arm, n, scale="mnist5k"):
    """Sizes of the trained weights, test accuracy, and for dropout what the masks say."""
    l1, l2 = {"l1": 1e-3}.get(arm, 0.0), {"l2": 1e-2}.get(arm, 0.0)
    (x, labels), (test, truth) = images(n, int(GROUP.scale(scale).at))
    key, key_run, key_test = jax.random.split(jax.random.key(n), 3)
    params = _nets.init(key, (196, 128, 128, 10), gain=2.0)
    keys = jax.random.split(key_run, STEPS[scale])
    params = train(params, x, labels, keys, l1, l2, arm == "dropout")
    weights = np.concatenate([np.ravel(layer["kernel"]) for layer in params])
    once = np.asarray(probabilities(params, test))

    def accuracy(p):
        return float(np.mean(np.argmax(p, 1) == np.asarray(truth)))

    metrics = {
        "near_zero": float(np.mean(np.abs(weights) < 1e-3)),
        "weight_size": float(np.sqrt(np.mean(weights**2))),
        "accuracy": accuracy(once),
    }
    if arm == "dropout":
        drawn = [
            np.asarray(probabilities(params, test, k)) for k in jax.random.split(key_test, MASKS)
        ]
        mean = np.mean(drawn, 0)
        metrics |= {
            "ensemble_gain": accuracy(mean) - accuracy(once),
            "accuracy_one_mask": float(np.mean([accuracy(p) for p in drawn])),
            "total_variation": float(0.5 * np.abs(mean - once).sum(1).mean()),
        }
    return metrics
