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
from experiments.ledger.rules import Claim, contrast, less
from normjax import analysis

CLAIM = Claim(
    number=28,
    statement="Batch norm holds the statistics of layers' inputs still, does not reduce the shift "
    "of gradients, and makes the loss smoother along the gradient",
    source="Ioffe, Szegedy 2015, section 2; Santurkar et al. 2018, figures 2 and 4",
    expect="input shift, loss range, gradient change and beta smaller; gradient cosine not larger",
    arms=("none", "bn"),
    rules=(
        less("bn", "none", "input_shift"),
        contrast(
            "none - bn, gradient_cosine",
            (1.0, "none", "gradient_cosine"),
            (-1.0, "bn", "gradient_cosine"),
            by=-0.05,
        ),
        less("bn", "none", "loss_range"),
        less("bn", "none", "gradient_change"),
        less("bn", "none", "beta"),
    ),
    minutes=1,
    scale="MLP of 5 x 100 tanh units, MNIST 14 x 14, 100 steps; the papers: VGG, CIFAR-10",
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


def measure(arm, seed):
    """Means over the layers and over every fifth of 100 steps of SGD."""
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
