"""Computes what changes when weights and data are rescaled and recentred, by method."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import normjax
from experiments.ledger.computed_facts import Fact
from normjax import analysis

ROWS = (
    *("weight_rescale", "weight_vector_rescale", "weight_recentre"),
    *("data_rescale", "feature_shift", "sample_rescale"),
)
EPS = 1e-30  # none in float64, but norms want a positive one
#             weights: all, vector, recentred; data: all, shifted by feature, one sample
TABLE = {"bn": "yynyyn", "wn": "yynnnn", "ln": "ynyyny", "cosine": "yynyny", "none": "nnnnnn"}


def invariances():
    """The largest change where the table says yes, the smallest where it says no."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(0.3, 1.0, (100, 40)))
    w = jnp.asarray(rng.normal(size=(40, 20)) / 40**0.5)
    cosine = normjax.cosine_dense(20)
    methods: dict[str, Any] = {
        "bn": normjax.batch_norm(eps=EPS),
        "wn": normjax.weight_norm(),
        "ln": normjax.layer_norm(eps=EPS),
        "cosine": lambda x, w: cosine.apply({"kernel": w}, (), x, stats="batch")[0],
        "none": normjax.identity(),
    }
    found: dict[str, Any] = {}
    for name, method in methods.items():
        report = analysis.invariance(method, x, w)
        changes = [
            (getattr(report, row), word) for row, word in zip(ROWS, TABLE[name], strict=True)
        ]
        yes = [max(c.output, c.gradient) for c, word in changes if word == "y"]
        found |= {f"{name}, largest yes": max(yes)} if yes else {}
        found[f"{name}, smallest no"] = min(c.output for c, word in changes if word == "n")
    return found


def table_holds(found):
    """Every yes is 0 up to rounding, every no more than 5 %."""
    return all(v < 1e-9 if name.endswith("yes") else v > 0.05 for name, v in found.items())


def depth(norm, scale):
    """Norms of the gradients by layer, of weights and of units, through 20 layers of ReLU."""
    layers, width, batch = 20, 100, 128
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, width)))
    target = jnp.asarray(rng.normal(size=(batch, width)))
    kernels = [
        jnp.asarray(scale * (2 / width) ** 0.5 * rng.normal(size=(width, width)))
        for _ in range(layers)
    ]

    @jax.jit
    def loss(kernels, nudges):
        h = x
        for kernel, nudge in zip(kernels, nudges, strict=True):
            y = h @ kernel
            if norm is not None:
                params, state = norm.init(y.shape, y.dtype)
                y, _ = norm.apply(params, state, y, stats="batch")
            h = jax.nn.relu(y) + nudge
        return jnp.vdot(target, h) / batch

    zero = [jnp.zeros((batch, width))] * layers
    of_kernels, of_units = jax.grad(loss, (0, 1))(kernels, zero)
    logs = [[np.log10(np.linalg.norm(g)) for g in grads] for grads in (of_kernels, of_units)]
    return np.array(logs)  # [weights or units, layers]


def through_layers():
    """Changes in decades from weights times 1/2 to weights times 2, and growth with depth."""
    norm = normjax.batch_norm(eps=EPS)
    bn = {scale: depth(norm, scale) for scale in (0.5, 1.0, 2.0)}
    none = {scale: depth(None, scale) for scale in (0.5, 2.0)}
    return {
        "units, batch norm": np.abs(bn[2.0][1] - bn[0.5][1]).max(),
        # BN(a W u) = BN(W u): the gradient of weights times 4 is a quarter
        "weights, batch norm": np.abs(bn[2.0][0] - bn[0.5][0] + np.log10(4.0)).max(),
        "units, none": np.abs(none[2.0][1] - none[0.5][1]).max(),
        "first layer over last, batch norm": bn[1.0][1][0] - bn[1.0][1][-1],
    }


def scale_holds(found):
    """0 with batch norm up to rounding, over 5 decades without."""
    with_it = found["units, batch norm"], found["weights, batch norm"]
    return max(with_it) < 1e-9 and found["units, none"] > 5


def growth_holds(found):
    """A decade or more through 20 layers."""
    return found["first layer over last, batch norm"] > 1


def online():
    """What a batch of one example gets, and how its output and gradient depend on it."""
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=(1, 30))) for _ in range(2))
    found = {}
    for name, norm in (
        ("batch", normjax.batch_norm(allow_single=True)),
        ("layer", normjax.layer_norm()),
    ):
        params, state = norm.init(x.shape, x.dtype)

        def out(x, norm=norm, params=params, state=state):
            return norm.apply(params, state, x, stats="batch")[0]

        gradient = jax.grad(lambda x, out=out: jnp.vdot(weight, out(x)))(x)
        found[f"largest output, {name} norm"] = jnp.abs(out(x)).max()
        found[f"largest gradient, {name} norm"] = jnp.abs(gradient).max()
    return found


def online_holds(found):
    """Exactly 0 with batch norm, not with layer norm."""
    zero = [v for name, v in found.items() if "batch" in name]
    other = [v for name, v in found.items() if "layer" in name]
    return max(zero) == 0 and min(other) > 0.1


IOFFE = "Ioffe, Szegedy 2015, section 3.3, arXiv:1502.03167"
FACTS = (
    Fact(
        name="batch_of_one",
        number=21,
        title="At batch size 1 batch norm outputs its bias, layer norm does not",
        statement="Batch norm of one example outputs its bias whatever the input, so that nothing "
        "below it can learn; layer norm is not limited so",
        source="Ba, Kiros, Hinton 2016, section 1, arXiv:1607.06450",
        expect="output and gradient exactly 0 with batch norm, above 0.1 with layer norm",
        compute=online,
        holds=online_holds,
        note="After a convolution, batch norm of one example still has its places.",
    ),
    Fact(
        name="invariances",
        number=27,
        title="What each norm is invariant to: 14 cases of yes, 16 of no",
        statement="Batch norm is invariant to rescaling all weights or one unit's, rescaling all "
        "data and shifting a feature; weight norm to rescaling all weights or one unit's; layer "
        "norm to rescaling and recentring all weights, and to rescaling all data or one sample; "
        "cosine norm to all rescaling of weights, of data and of one sample; a plain layer to "
        "nothing",
        source="Ba, Kiros, Hinton 2016, table 1; cosine norm from its formula, Luo et al. 2017",
        expect="every yes, of output and gradient, below 1e-9; every no above 0.05",
        compute=invariances,
        holds=table_holds,
        note="With eps 1e-30; with the usual one, invariance to rescaling holds up to eps / var.",
    ),
    Fact(
        name="gradient_by_weight_scale",
        number=36,
        title="Batch norm's gradients do not depend on the weights' scale",
        statement="BN(a W u) = BN(W u): gradients through 20 layers do not depend on the scale of "
        "the weights, and a weight's own gradient goes with one over it; without batch norm they "
        "go with its power of the depth",
        source=IOFFE,
        expect="from weights times 1/2 to weights times 2: under 1e-9 decades with batch norm, "
        "over 5 without",
        compute=through_layers,
        holds=scale_holds,
    ),
    Fact(
        name="gradient_by_depth",
        title="At initialization batch norm makes gradients grow toward the input",
        statement="In a deep ReLU network at initialization batch norm makes gradients grow with "
        "the distance from the output, by about pi / (pi - 1) a layer in the square",
        source="Yang et al. 2019, arXiv:1902.08129",
        expect="over 1 decade from the last to the first of 20 layers (the formula: 1.6)",
        compute=through_layers,
        holds=growth_holds,
        note="A very wide network with large batches is the formula's; here 100 units, batch 128.",
    ),
)
