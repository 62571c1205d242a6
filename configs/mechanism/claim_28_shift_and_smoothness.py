"""Measures internal covariate shift and the smoothness of the loss, with and without batch norm.

The shift of gradients is how much they depend on the layers below (Santurkar et al., definition
2.1): its cosine before and after these moved should be larger by at most 0.05. Loss, gradient and
effective beta are compared over steps of 1/2 to 4 times the learning rate.

SGD at 0.1, the papers' rate, for both arms, batches of 128; everything is measured at every fifth
step, on the batch of that step.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

import normjax
from configs.mechanism import _nets
from experiments.ledger.claims import Claim, Group, Scale, contrast, less
from normjax import analysis

SANTURKAR = "Santurkar et al. 2018, arXiv:1805.11604"


def claim(letter, title, statement, rule, delta, why, expect, source=SANTURKAR, published=None):
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=rule,
        delta=delta,
        why=why,
        expect=expect,
        published=published,
        controls=(),  # measured along the first 100 steps of training, not at its end
        source=source,
        change="the same measures through all of training, at each network's best rate",
        methods=("batch norm",),
    )


GROUP = Group(
    number=28,
    title="Batch norm, covariate shift and smoothness",
    topic="mechanism",
    source="Ioffe, Szegedy 2015, section 2; Santurkar et al. 2018, figures 2 and 4",
    axis="steps of SGD",
    scales=(
        Scale(
            "mlp100",
            100,
            "MLP of 5 x 100 tanh units, MNIST 14 x 14, 100 steps of SGD at 0.1 (the papers: VGG "
            "and a deep linear network, CIFAR-10, all of training)",
            minutes=0.05,
        ),
    ),
    arms=("none", "bn"),
    claims=(
        claim(
            "a",
            "Batch norm holds the statistics of layers' inputs still",
            "A step of training moves the means of the layers' inputs less with batch norm",
            less("bn", "none", "input_shift"),
            0.01,
            "the source gives no number; a tenth of the shift without batch norm in a pilot (0.1)",
            "stable distributions of inputs",
            "Ioffe, Szegedy 2015, section 2 and figure 1b, arXiv:1502.03167",
        ),
        claim(
            "b",
            "Batch norm does not reduce the shift of gradients",
            "The gradient of a layer changes no less under batch norm when the layers below it "
            "are updated: its cosine before and after is not larger by what matters",
            contrast(
                "none − bn, gradient_cosine",
                (1.0, "none", "gradient_cosine"),
                (-1.0, "bn", "gradient_cosine"),
                kind="not_worse",
            ),
            0.05,
            "the source's curves differ by more than 0.1 where they differ; half of that",
            "cosine with batch norm at or below that without, figure 2",
        ),
        claim(
            "c",
            "The gradient changes less along itself with batch norm",
            "Along the gradient, over steps of half to four times the rate, the gradient changes "
            "less with batch norm",
            less("bn", "none", "gradient_change"),
            0.2,
            "the source shows bands and no number; a tenth of the change without batch norm in a "
            "pilot (2.2)",
            "a narrower band of gradient distances, figure 4b",
        ),
        claim(
            "d",
            "The effective smoothness beta is smaller with batch norm",
            "The largest ratio of gradient change to distance along the gradient is smaller with "
            "batch norm",
            less("bn", "none", "beta"),
            0.6,
            "the source shows curves and no number; a tenth of beta without batch norm in a pilot "
            "(6.3)",
            "a smaller effective beta, figure 4c",
        ),
    ),
)


RATE = 0.1


@functools.cache
def programs(arm):
    """The norm, a step of SGD, and what is measured before it; compiled once for all seeds."""
    norm = {"none": None, "bn": normjax.batch_norm()}[arm]

    def loss_on(x, labels):
        return lambda p: _nets.loss_of(_nets.forward(p, x, norm, jnp.tanh)[0], labels)

    def step(params, x, labels):
        return jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(loss_on(x, labels))(params))

    def measure_batch(params, x, labels):
        loss, new = loss_on(x, labels), step(params, x, labels)
        before, after = (_nets.forward(p, x, norm, jnp.tanh)[1] for p in (params, new))
        inputs = analysis.covariate_shift(before, after)
        gradients = analysis.gradient_shift(loss, params, new)
        path = analysis.gradient_predictiveness(loss, params, RATE * jnp.linspace(0.5, 4.0, 8))
        return {
            "input_shift": inputs.mean.mean(),
            "input_spread": inputs.spread.mean(),
            "gradient_cosine": gradients.cosine[1:].mean(),
            "gradient_shift": gradients.relative[1:].mean(),
            "loss_range": path.loss.max() - path.loss.min(),
            "gradient_change": path.gradient_change.max(),
            "beta": path.beta,
            "loss": path.start_loss,
            "gradient_norm": path.gradient_norm,
        }

    return norm, jax.jit(step), jax.jit(measure_batch)


def measure(arm, seed, scale="mlp100"):
    """Means over the layers and over every fifth of 100 steps of SGD, from a start of its own."""
    steps, every, size = 100, 5, 128
    norm, step, measure_batch = programs(arm)
    train = _nets.digits().train
    key, key_data = jax.random.split(jax.random.key(seed))
    params = _nets.init(key, (196, *[100] * 5, 10), norm)
    order = np.asarray(jax.random.permutation(key_data, len(train.labels)))
    rows = []
    for i in range(steps):
        index = np.take(order, np.arange(i * size, (i + 1) * size), mode="wrap")
        x, labels = train.pixels[index], train.labels[index]
        if i % every == 0:
            rows.append(jax.device_get(measure_batch(params, x, labels)))
        params = step(params, x, labels)
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {**means, "last_loss": float(rows[-1]["loss"])}
