"""Computes methods that are the same thing, and gradients that are what a formula says."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import normjax
from experiments.ledger.computed_facts import Fact
from normjax import analysis


def apply(norm, x):
    """Normalize with fresh parameters and batch statistics."""
    params, state = norm.init(x.shape, x.dtype)
    return norm.apply(params, state, x, stats="batch")[0]


def images(count, channels):
    return jnp.asarray(np.random.default_rng(0).normal(0.5, 2.0, (count, 6, 5, channels)))


def far(a, b):
    """The largest difference, over the largest value."""
    return jnp.abs(a - b).max() / jnp.abs(b).max()


def instance_is_batch():
    x = images(3, 4)
    alone = jnp.concatenate([apply(normjax.batch_norm(), x[i : i + 1]) for i in range(3)])
    return {"difference": far(apply(normjax.instance_norm(), x), alone)}


def groups():
    x = images(3, 4)
    whole = normjax.layer_norm(axes=(-3, -2, -1), feature_axes=-1)
    return {
        "one group, layer norm": far(apply(normjax.group_norm(groups=1), x), apply(whole, x)),
        "a group each, instance norm": far(
            apply(normjax.group_norm(groups=4), x), apply(normjax.instance_norm(), x)
        ),
    }


def weight_is_batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12))
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    white = jnp.asarray(x @ vectors / np.sqrt(values))
    w = jnp.asarray(rng.normal(size=(12, 7)))
    unit = w / jnp.linalg.norm(w, axis=0)  # weight norm with g = 1
    norm = normjax.batch_norm(eps=1e-30)
    return {
        "white inputs": far(apply(norm, white @ w), white @ unit),
        "other inputs": far(apply(norm, jnp.asarray(x) @ w), jnp.asarray(x) @ unit),
    }


def weight_gradient():
    rng = np.random.default_rng(0)
    w, target = (jnp.asarray(rng.normal(size=(12, 7))) for _ in range(2))
    found = analysis.weight_identities(
        normjax.weight_norm(), w, lambda w: jnp.sum(jnp.tanh(w - target) ** 2)
    )
    return {
        "largest cosine of v and its gradient": found.orthogonal.max(),
        "smallest growth of |v| in a step": found.growth.min(),
        "growth and its formula": jnp.abs(found.growth - found.predicted_growth).max(),
    }


def bias_before():
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=(30, 8))) for _ in range(2))
    bias, norm = jnp.asarray(rng.normal(size=8)), normjax.batch_norm()
    gradient = jax.grad(lambda b: jnp.vdot(weight, apply(norm, x + b)))(bias)
    return {
        "change of the output": far(apply(norm, x + bias), apply(norm, x)),
        "largest gradient": jnp.abs(gradient).max(),
    }


def rms_is_layer():
    x = images(3, 16)
    centred = x - x.mean(-1, keepdims=True)
    rms, layer = normjax.rms_norm(eps=1e-5), normjax.layer_norm(eps=1e-5)
    return {"difference": far(apply(rms, centred), apply(layer, x))}


def decay_is_rate():
    """Train with weight decay, and with none at a rate that grows; the outputs after 40 steps."""
    rate, decay, steps = 0.1, 0.2, 40
    rng = np.random.default_rng(0)
    x, target = (jnp.asarray(rng.normal(size=(64, n))) for n in (12, 3))
    start = [jnp.asarray(rng.normal(size=s) / s[0] ** 0.5) for s in ((12, 20), (20, 3))]
    kept = 1 - rate * decay

    def outputs(kernels, norm):
        """Two layers, with a norm of batches that has no parameters to learn, or none."""
        h = x
        for kernel in kernels:
            h = jnp.tanh(h @ kernel if norm is None else apply(norm, h @ kernel))
        return h

    def train(norm, decay, rates):
        @jax.jit
        def step(kernels, rate):
            def loss(kernels):
                return jnp.mean((outputs(kernels, norm) - target) ** 2)

            grads = jax.grad(loss)(kernels)
            return [w - rate * (g + decay * w) for w, g in zip(kernels, grads, strict=True)]

        kernels = start
        for now in rates:
            kernels = step(kernels, now)
        return outputs(kernels, norm)

    constant = np.full(steps, rate)
    growing = rate * kept ** -(2.0 * np.arange(steps) + 1)
    found = {}
    for name, norm in (("batch norm", normjax.batch_norm(eps=1e-30)), ("no norm", None)):
        with_decay = train(norm, decay, constant)
        found[f"growing rate, {name}"] = far(train(norm, 0.0, growing), with_decay)
        found[f"same rate, {name}"] = far(train(norm, 0.0, constant), with_decay)
    return found


def dropout_mean():
    """All masks of one hidden layer: the geometric mean of the subnetworks, made to sum to 1."""
    rng = np.random.default_rng(0)
    h, kernel, units = rng.normal(size=(20, 8)), rng.normal(size=(8, 5)), 8
    logs = np.zeros((20, 5))
    for mask in itertools.product((0.0, 1.0), repeat=units):
        logs += np.asarray(jax.nn.log_softmax((h * np.array(mask)) @ kernel)) / 2**units
    return {"difference": far(jax.nn.softmax(logs), jax.nn.softmax(h @ kernel / 2))}


def is_zero(found):
    """All numbers are 0 up to rounding in float64."""
    return all(value < 1e-12 for value in found.values())


SALIMANS = "Salimans, Kingma 2016, arXiv:1602.07868"
EXACT = "0 up to rounding, below 1e-12"
FACTS = (
    Fact(
        name="instance_is_batch_of_one",
        title="Instance norm is batch norm of one image",
        statement="Instance norm is batch norm with each image as a batch of its own",
        source="Ulyanov, Vedaldi, Lempitsky 2016, section 2, arXiv:1607.08022",
        expect=EXACT,
        compute=instance_is_batch,
        holds=is_zero,
    ),
    Fact(
        name="group_between_layer_and_instance",
        title="Group norm is layer norm with one group, instance norm with all",
        statement="Group norm of one group is layer norm over channels and places, of one group "
        "for each channel instance norm",
        source="Wu, He 2018, section 3.1, arXiv:1803.08494",
        expect=EXACT,
        compute=groups,
        holds=is_zero,
    ),
    Fact(
        name="weight_is_batch_on_white_inputs",
        title="Weight norm is batch norm, for one layer on white inputs",
        statement="For a single layer whose inputs are whitened, batch norm is weight norm; for "
        "other inputs it is not",
        source=f"{SALIMANS}, section 2.2",
        expect="below 1e-12 for white inputs, above 0.05 for others",
        compute=weight_is_batch,
        holds=lambda found: found["white inputs"] < 1e-12 and found["other inputs"] > 0.05,
        note="With eps 1e-30, and gain 1.",
    ),
    Fact(
        name="weight_norm_gradient",
        title="Weight norm's gradient is orthogonal to v, so that |v| grows",
        statement="The gradient of v is orthogonal to v, so that |v| grows with every step, by "
        "sqrt(1 + c^2) with c the length of the step over |v|",
        source=f"{SALIMANS}, section 2.1",
        expect="cosine and distance from the formula below 1e-12, growth above 1",
        compute=weight_gradient,
        holds=lambda found: (
            found["largest cosine of v and its gradient"] < 1e-12
            and found["growth and its formula"] < 1e-12
            and found["smallest growth of |v| in a step"] > 1
        ),
    ),
    Fact(
        name="bias_before_batch_norm",
        title="A bias before batch norm has no effect and no gradient",
        statement="A bias before batch norm is subtracted with the mean: it changes no output of "
        "training and has no gradient",
        source="Ioffe, Szegedy 2015, section 3.2, arXiv:1502.03167",
        expect=EXACT,
        compute=bias_before,
        holds=is_zero,
    ),
    Fact(
        name="rms_is_layer_of_centred",
        title="RMSNorm is layer norm of centred inputs",
        statement="Layer norm is RMSNorm of inputs from which their mean was subtracted",
        source="Zhang, Sennrich 2019, section 3, arXiv:1910.07467",
        expect=EXACT,
        compute=rms_is_layer,
        holds=is_zero,
    ),
    Fact(
        name="weight_decay_is_growing_rate",
        title="Under batch norm, weight decay is a learning rate that grows",
        statement="With batch norm after every weight, gradient descent with weight decay at a "
        "constant rate passes through the same functions as without decay at a rate that grows by "
        "(1 - rate decay)^-2 a step; without a norm it does not",
        source="Li, Arora 2020, arXiv:1910.07454; van Laarhoven 2017, arXiv:1706.05350",
        expect="outputs after 40 steps: with the growing rate below 1e-9 from those with decay "
        "with batch norm, above 0.05 without; with the same rate and no decay above 0.05 with "
        "batch norm",
        compute=decay_is_rate,
        holds=lambda found: (
            found["growing rate, batch norm"] < 1e-9
            and found["growing rate, no norm"] > 0.05
            and found["same rate, batch norm"] > 0.05
        ),
        note="The rate of step t, from 0, is rate (1 - rate decay)^-(2 t + 1): the weights without "
        "decay are those with it times (1 - rate decay)^-t, and their gradient is as much smaller. "
        "With eps 1e-30, and nothing to learn but weights. With the usual eps, or parameters "
        "beside the weights that share the rate, it is no identity.",
    ),
    Fact(
        name="dropout_geometric_mean",
        title="Dropout's scaled weights are the geometric mean of one layer's masks",
        statement="For a softmax on one layer of units with dropout 0.5, halved weights predict "
        "exactly the geometric mean of all subnetworks, made to sum to 1",
        source="Goodfellow, Bengio, Courville 2016, section 7.12",
        expect=EXACT,
        compute=dropout_mean,
        holds=is_zero,
        note="With two hidden layers it is an approximation: claim 35c.",
    ),
)
