"""Kernels and their plain twins on the accelerator against float64, with hard inputs too."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from tests._support import accelerator, reference

pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("default")]

EPS, GROUPS = 1e-5, 8
MAKE = {
    "layer": functools.partial(nj.layer_norm, eps=EPS),
    "rms": functools.partial(nj.rms_norm, eps=EPS),
    "batch": functools.partial(nj.batch_norm, eps=EPS),
    "group": functools.partial(nj.group_norm, groups=GROUPS, eps=EPS),
    "instance": functools.partial(nj.instance_norm, eps=EPS),
}
# First one that is large enough for the ways of accelerators, cut into whole blocks: a GPU has
# kernels for these alone. The others reach beyond the end of every block: a TPU has kernels for
# them, a GPU the plain twin.
SHAPES = {
    "layer": ((1024, 512), (37, 24)),
    "rms": ((1024, 512), (37, 24)),
    "batch": ((32, 16, 16, 64), (300, 520), (6, 5, 7, 4)),
    "group": ((16, 16, 16, 64), (6, 5, 3, 8)),
    "instance": ((16, 16, 16, 64), (6, 5, 3, 8)),
}
# Mean and spread of x; how far off its output and gradient may be, in units of their size.
INPUTS = {
    "normal": (0.7, 2.0, 2e-5, 2e-5),
    "mean 1e4": (1e4, 1.0, 2e-3, 1e-3),
    "mean 100, std 0.01": (100.0, 0.01, 2e-3, 1e-3),
}
CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]
CALL = {"gpu": "xla.gpu.triton", "tpu": "@tpu_custom_call"}  # of a kernel, in a lowered program


def by_numpy(name, x, scale, bias, dy):
    """Output, and the gradients of x and scale, in two passes of float64."""
    shape, groups = x.shape, GROUPS if name == "group" else 1
    split = (*shape[:-1], groups, shape[-1] // groups)
    x, dy = (np.asarray(v, np.float64).reshape(split) for v in (x, dy))
    scale = np.asarray(scale, np.float64).reshape(split[-2:])
    rank = len(shape)
    axes = {"layer": (rank,), "rms": (rank,), "batch": tuple(range(rank - 1))}
    axes = axes.get(name, tuple(range(1, rank - 1)) + ((rank,) if name == "group" else ()))
    mean = functools.partial(np.mean, axis=axes, keepdims=True)
    centre = (lambda v: v * 0) if name == "rms" else mean
    d = x - centre(x)
    inverse = 1 / np.sqrt(mean(d * d) + EPS)
    hat, g = d * inverse, dy * scale
    dx = inverse * (g - centre(g) - hat * mean(g * hat))
    y = (hat * scale).reshape(shape) + (0 if bias is None else np.asarray(bias, np.float64))
    dscale = (dy * hat).sum(tuple(range(rank - 1))).reshape(-1)
    return y, dx.reshape(shape), dscale, inverse.max()


@pytest.mark.parametrize("impl", ["kernel", "xla"])
@pytest.mark.parametrize(("name", "shape"), CASES, ids=lambda v: str(v).replace(", ", "x"))
def test_against_float64(name, shape, impl):
    norm = MAKE[name](impl=impl)
    params, state = accelerator.made(lambda: norm.init(shape))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda v: (1 + 0.3 * rng.normal(size=v.shape)).astype(v.dtype), params)
    bias = getattr(params, "bias", None)
    noise, dy = rng.normal(size=(2, *shape))

    @jax.jit
    def told(params, state, x, dy):
        apply = lambda p, x: norm.apply(p, state, x, stats="batch")[0]  # noqa: E731
        y, pull = jax.vjp(apply, params, x)
        dparams, dx = pull(dy)
        return y, dx, dparams.scale

    backend = jax.default_backend()
    if backend in CALL:
        text = told.lower(params, state, *np.float32((noise, dy))).as_text()
        served = impl == "kernel" and (backend == "tpu" or shape == SHAPES[name][0])
        # One forward, one backward; counted first, since the text is long.
        calls = text.count(CALL[backend])
        assert calls == (2 if served else 0)
    wrong = []
    for what, (mean, std, far, far_back) in INPUTS.items():
        if name == "rms" and what != "normal":
            continue  # nothing to subtract
        x = np.float32(noise * std + mean)
        got = jax.device_get(told(params, state, x, np.float32(dy)))
        *want, inverse = by_numpy(name, x, params.scale, bias, np.float32(dy))
        sizes = np.abs(want[0]).max(), inverse * np.abs(dy).max(), np.abs(want[2]).max()
        for part, a, b, size, limit in zip(
            ("y", "dx", "dscale"), got, want, sizes, (far, far_back, far), strict=True
        ):
            error = np.abs(a - b).max() / size
            if not error <= limit:
                wrong.append(f"{part}, {what}: {error:.1e} > {limit:.0e}")
    x, half_dy = (jnp.asarray(v, jnp.bfloat16) for v in (noise, dy))
    y, dx, _ = jax.device_get(told(params, state, x, half_dy))
    want, dx_want, *_ = by_numpy(name, x, params.scale, bias, half_dy)
    for part, a, b in (("y", y, want), ("dx", dx, dx_want)):
        error = np.abs(np.float64(a) - b).max() / np.abs(b).max()
        if not error <= 1.5e-2:
            wrong.append(f"{part}, bfloat16: {error:.1e}")
    assert not wrong, "; ".join(wrong)


# ------------------------------------------------------------------------------------- the BN-LSTM


@functools.cache
def bn_lstm(batch, hidden, steps, models):
    """A layer, and of each model params, state and inputs, on one axis in front."""
    layer = recurrent.bn_lstm(hidden, steps, learn_carry=True)

    def start(key):
        params, state = layer.init(key, 3)
        leaves, tree = jax.tree.flatten(params)
        params = tree.unflatten(
            v + 0.1 * jnp.cos(jnp.arange(v.size)).reshape(v.shape) for v in leaves
        )
        return params, state, jax.random.normal(key, (batch, steps, 3))

    args = accelerator.made(lambda: jax.vmap(start)(jax.random.split(jax.random.key(0), models)))
    return layer, args


def through(layer, params, state, x):
    """Outputs, carry, state, and the gradients of params and x."""

    def loss(params, x):
        (y, carry), after = layer.apply(params, state, x, stats="batch")
        moved = sum(jnp.sum(jnp.sin(s)) for s in jax.tree.leaves(after) if s.dtype == x.dtype)
        return jnp.sum(jnp.sin(y)) + jnp.sum(carry.c * carry.h) + moved, (y, carry, after)

    (_, found), slopes = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
    return {"found": found, "slopes": slopes}


# Rows and units beyond the end of every tile, the papers' size, and as many units as fit.
SIZES = {"small": (5, 18, 3), "papers": (100, 100, 6), "large": (64, 128, 4)}
RUNS = [
    *(("kernel", size, models) for size in ("small", "papers") for models in (1, 3)),
    *(("kernel", "large", 1), ("xla", "small", 1), ("xla", "papers", 3)),
]


@pytest.mark.parametrize(("impl", "size", "models"), RUNS)
def test_bn_lstm_against_float64(impl, size, models):
    if jax.default_backend() == "cpu" and size == "large":
        pytest.skip("minutes for the interpreter")
    batch, hidden, steps = SIZES[size]
    layer, args = bn_lstm(batch, hidden, steps, models)
    run = jax.jit(jax.vmap(functools.partial(through, dataclasses.replace(layer, impl=impl))))
    if models == 1:
        alone = jax.jit(functools.partial(through, dataclasses.replace(layer, impl=impl)))
        run = lambda *args: jax.tree.map(  # noqa: E731
            lambda v: v[None], alone(*jax.tree.map(lambda v: v[0], args))
        )
    got = jax.device_get(run(*args))
    accelerator.close(
        got, accelerator.exact(jax.vmap(functools.partial(through, layer)), *args), 2e-4
    )
    params, _, x = jax.tree.map(lambda v: v[0], args)
    norms = {k: reference.StepNorm(*params[f"norm_{k}"]) for k in "xhc"}
    first = {
        k: np.broadcast_to(np.float64(v), (batch, hidden))
        for k, v in params["carry"]._asdict().items()
    }
    y, *_ = reference.lstm(params, x, norms=norms, **first)
    accelerator.close(got["found"][0][0], y, 2e-5)


def test_the_bn_lstms_program_has_the_kernel():
    if jax.default_backend() != "gpu":
        pytest.skip("of a GPU's program")
    layer, args = bn_lstm(100, 100, 6, 3)
    run = jax.vmap(functools.partial(through, dataclasses.replace(layer, impl="kernel")))
    assert jax.jit(run).lower(*args).as_text().count("triton") >= 2
