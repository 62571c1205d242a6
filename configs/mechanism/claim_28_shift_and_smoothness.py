"""Internal covariate shift and the smoothness of the loss, with and without batch norm.

Paper:     Ioffe, Szegedy, "Batch Normalization", 2015, section 2 (the shift of layers' inputs);
           Santurkar, Tsipras, Ilyas, Madry, "How Does Batch Normalization Help Optimization?",
           2018, definition 2.1 and figures 2 and 4 (gradients).
Claim:     batch norm holds the distributions of layers' inputs still (Ioffe); it does not make
           gradients depend less on the layers below, and it does make the loss smoother along the
           gradient: loss, gradient and effective beta vary less over steps of 1/2 to 4 times the
           learning rate (Santurkar).
Expected:  input shift, loss range, gradient change and beta smaller with batch norm; the cosine of
           gradients before and after the layers below moved not larger by more than 0.05.
Cost:      10 trainings of 100 steps, about 1 minute on two CPU cores.
Command:   python -m experiments.claim 28

Smaller here: an MLP of 5 layers of 100 tanh units on MNIST of 14 x 14 in the place of VGG on
CIFAR-10; SGD, the papers' rate 0.1 for both, batches of 128; everything is measured at every
fifth step, on the batch of that step.
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

    def look(params, x, labels):
        loss, new = loss_on(x, labels), step(params, x, labels)
        before, after = (_nets.forward(p, x, norm, jnp.tanh)[1] for p in (params, new))
        moved = analysis.covariate_shift(before, after)
        felt = analysis.gradient_shift(loss, params, new)
        along = analysis.gradient_predictiveness(loss, params, RATE * jnp.linspace(0.5, 4.0, 8))
        return {
            "input_shift": moved.mean.mean(),
            "input_spread": moved.spread.mean(),
            "gradient_cosine": felt.cosine[1:].mean(),
            "gradient_shift": felt.relative[1:].mean(),
            "loss_range": along.loss.max() - along.loss.min(),
            "gradient_change": along.gradient_change.max(),
            "beta": along.beta,
            "loss": along.start_loss,
            "gradient_norm": along.gradient_norm,
        }

    return norm, jax.jit(step), jax.jit(look)


def measure(arm, seed):
    """Means over the layers and over every fifth of 100 steps of SGD."""
    steps, every, size = 100, 5, 128
    norm, step, look = programs(arm)
    train = _nets.digits().train
    key, key_data = jax.random.split(jax.random.key(seed))
    params = _nets.init(key, (196, *[100] * 5, 10), norm)
    order = np.asarray(jax.random.permutation(key_data, len(train.labels)))
    rows = []
    for i in range(steps):
        index = np.take(order, np.arange(i * size, (i + 1) * size), mode="wrap")
        x, labels = train.pixels[index], train.labels[index]
        if i % every == 0:
            rows.append(jax.device_get(look(params, x, labels)))
        params = step(params, x, labels)
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {**means, "last_loss": float(rows[-1]["loss"])}
