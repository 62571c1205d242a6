"""Trains an MLP with batch norm at rates and weight decays of one product, and of others.

Two hidden layers of 100 ReLU units on Fashion-MNIST 14 x 14, plain SGD, batches of 100. As in the
source, all that is trained is scale-invariant: norms have no scale and no bias, and the readout
stays as it is drawn, with orthonormal columns. The three pairs of rate and decay with the product
0.001 start with effective rates, rate / |w|^2, that are 16-fold apart. Without batch norm the same
network has no bias either. An arm is a network, its rate and its decay. The effective rate is the
mean of its logarithm over the two layers, in decades; accuracies are those of the test set, with
the statistics of all training images. Before registration one seed was seen, 101, which is no
replicate: effective rates of -1.94, -1.95 and -1.95 decades for the three pairs, -1.71 with twice
the decay, -3.36 without; accuracies of 83.4 to 84.3 % with batch norm, 67.7 and 81.1 % without.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import normjax
from configs.mechanism import _nets
from experiments.data import datasets
from experiments.ledger.claims import Claim, Group, Scale, less, more, same

LI = "Li, Lyu, Arora 2020, arXiv:2010.02916"
SIZES, BATCH = (196, 100, 100, 10), 100
NORMS = {"bn": normjax.batch_norm(use_scale=False, use_bias=False, decay=0.0), "none": None}
STEPS = {"fashion5k": 10_000, "fashion50k": 20_000}
EFFECTIVE, ACCURACY = "effective_rate", "accuracy"
SLOW, MIDDLE, FAST = "0.025,0.04", "0.1,0.01", "0.4,0.0025"


def scale(name, images, minutes, **more):
    text = (
        f"MLP of 2 x 100 units, Fashion-MNIST 14 x 14, {images:,} training images drawn anew, "
        f"{STEPS[name]:,} updates of {BATCH} (the source: ResNet-32, CIFAR-10)"
    )
    return Scale(name, images, text, minutes=minutes, **more)


def claim(letter, title, statement, rule, delta, why, expect, source=""):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=delta,
        why=why,
        expect=expect,
        controls=(),
        source=source,
        change="networks with momentum, trained scales and a trained readout",
        methods=("batch norm", "weight decay"),
    )


DECADE = (
    "the source shows curves that meet and no number; a twelfth of the 1.2 decades at the start"
)
POINT = "the source shows curves that meet and no number; one point"
GROUP = Group(
    number=47,
    title="Weight decay and the effective rate under batch norm",
    topic="regularization",
    source=LI,
    axis="training images",
    scales=(
        scale("fashion5k", 5000, 0.7, replicates=16),
        scale("fashion50k", 50_000, 1.5, replicates=16),
    ),
    arms=(
        *(f"bn,{pair}" for pair in (SLOW, MIDDLE, FAST, "0.1,0.02", "0.1,0")),
        *(f"none,{pair}" for pair in (SLOW, FAST)),
    ),
    claims=(
        claim(
            "a",
            "One product of rate and decay, one effective rate",
            "With batch norm the effective rate ends the same for rate 0.025 and decay 0.04 as for "
            "rate 0.4 and decay 0.0025",
            same(f"bn,{FAST}", f"bn,{SLOW}", EFFECTIVE),
            0.1,
            DECADE,
            "the equilibrium depends on the intrinsic rate alone, the product, section 3 and 4",
        ),
        claim(
            "b",
            "One product of rate and decay, one test accuracy",
            "With batch norm the test accuracy ends the same for rate 0.025 and decay 0.04 as for "
            "rate 0.4 and decay 0.0025",
            same(f"bn,{FAST}", f"bn,{SLOW}", ACCURACY),
            0.01,
            POINT,
            "the same final accuracy for one product, section 4",
        ),
        claim(
            "c",
            "Without batch norm the product does not decide",
            "Without batch norm the test accuracy is higher with rate 0.4 and decay 0.0025 than "
            "with rate 0.025 and decay 0.04",
            more(f"none,{FAST}", f"none,{SLOW}", ACCURACY),
            0.01,
            POINT,
            "nothing; the source is about scale-invariant networks",
        ),
        claim(
            "d",
            "Another product, another effective rate",
            "With batch norm twice the decay at one rate ends with a higher effective rate",
            more("bn,0.1,0.02", f"bn,{MIDDLE}", EFFECTIVE),
            0.075,
            "half of 0.15 decades, the square root of 2 that the formula of the equilibrium gives "
            "for one size of gradients",
            "the effective rate goes with the root of the product, section 3",
        ),
        claim(
            "e",
            "Without decay the effective rate falls",
            "With batch norm the effective rate at the end is lower without weight decay than with",
            less("bn,0.1,0", f"bn,{MIDDLE}", EFFECTIVE),
            0.3,
            "the source gives no number; half as high",
            "without decay |w| grows with every step, section 2",
            "van Laarhoven 2017, arXiv:1706.05350",
        ),
        claim(
            "f",
            "With batch norm weight decay helps",
            "With batch norm the test accuracy is higher with weight decay than without, at one "
            "rate",
            more(f"bn,{MIDDLE}", "bn,0.1,0", ACCURACY),
            0.005,
            "the source gives no number for such a network; half a point",
            "decay has no regularizing effect of its own with batch norm, but keeps the effective "
            "rate up",
            "van Laarhoven 2017, arXiv:1706.05350",
        ),
    ),
)


@functools.lru_cache(maxsize=1)
def images(n, size):
    """Training images of a replicate and the test set, on the device, flat and in [0, 1]."""
    options = {"side": 14, "layout": "pixels", "draw": n}
    options["train_size"] = size if size < 50_000 else 0
    dataset = datasets.load("fashion_mnist", options=options)
    found = [dataset.train, dataset.test]
    return [(jnp.asarray(s.pixels) / dataset.white, jnp.asarray(s.labels)) for s in found]


def start(key):
    """Draw the kernels of the hidden layers, and the readout."""
    *keys, last = jax.random.split(key, len(SIZES) - 1)
    kernels = [
        jnp.sqrt(2 / n) * jax.random.normal(k, (n, m))
        for k, (n, m) in zip(keys, itertools.pairwise(SIZES[:-1]), strict=True)
    ]
    return kernels, jax.nn.initializers.orthogonal()(last, SIZES[-2:])


def forward(kernels, readout, x, norm, states=None):
    """Logits, and the statistics of each layer: measured, or those of `states`."""
    h, found = x, []
    for i, kernel in enumerate(kernels):
        h = h @ kernel
        if norm is not None:
            params, state = norm.init(h.shape)
            state = state if states is None else states[i]
            stats = "batch" if states is None else "running"
            h, state = norm.apply(params, state, h, stats=stats)
            found.append(state)
        h = jax.nn.relu(h)
    return h @ readout, found


@functools.partial(jax.jit, static_argnames="norm")
def train(kernels, readout, x, labels, keys, rate, decay, norm):
    """SGD on random batches, a step a key."""

    def step(kernels, key):
        index = jax.random.randint(key, (BATCH,), 0, len(x))

        def loss(kernels):
            return _nets.loss_of(forward(kernels, readout, x[index], norm)[0], labels[index])

        grads = jax.grad(loss)(kernels)
        return [w - rate * (g + decay * w) for w, g in zip(kernels, grads, strict=True)], None

    return jax.lax.scan(step, kernels, keys)[0]


def measure(arm, n, scale="fashion5k"):
    """The effective rate in decades, the size of the weights, and the test accuracy."""
    net, rate, decay = arm.split(",")
    norm, rate = NORMS[net], float(rate)
    (x, labels), (test, truth) = images(n, int(GROUP.scale(scale).at))
    key, key_run = jax.random.split(jax.random.key(n))
    kernels, readout = start(key)
    keys = jax.random.split(key_run, STEPS[scale])
    kernels = train(kernels, readout, x, labels, keys, rate, float(decay), norm)
    logits, states = forward(kernels, readout, x, norm)
    right = jnp.argmax(forward(kernels, readout, test, norm, states)[0], 1) == truth
    squares = np.array([float(jnp.sum(w * w)) for w in kernels])
    return {
        EFFECTIVE: float(np.log10(rate / squares).mean()),
        "weight_size": float(np.sqrt(squares).mean()),
        ACCURACY: float(right.mean()),
        "train_loss": float(_nets.loss_of(logits, labels)),
    }
