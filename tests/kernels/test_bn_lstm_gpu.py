"""The BN-LSTM's kernel for a GPU, interpreted: one program a model, beside NumPy and its twin."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.kernels import _bn_lstm, _bn_lstm_gpu, _pallas, _registry
from tests._support import properties, reference
from tests._support.few import few

MODELS, STEPS, BATCH, UNITS = 3, 3, 5, 18  # rows and units beyond the end of every tile
EPS = 1e-5


@pytest.fixture
def grids(monkeypatch):
    """Have the kernel for a GPU interpreted, in several small tiles; return the kernels' grids."""
    operation = _registry.OPERATIONS["bn_lstm"]
    kernels = {"tpu": "_bn_lstm_gpu"}
    monkeypatch.setitem(
        _registry.OPERATIONS, "bn_lstm", dataclasses.replace(operation, kernels=kernels)
    )
    for name in ("FORWARD", "BACKWARD", "PRODUCT"):
        monkeypatch.setattr(_bn_lstm_gpu, name, 256)
    monkeypatch.setattr(_bn_lstm_gpu, "DEPTH", 16)
    made, call = [], _pallas.pallas_call
    monkeypatch.setattr(
        _pallas, "pallas_call", lambda *a, **k: made.append(k["grid"]) or call(*a, **k)
    )
    with _pallas.interpreted():
        yield made


def arguments(models=MODELS, mean=0.0):
    """Those of `_bn_lstm.run` without eps, in NumPy: of each model its own."""
    rng = np.random.default_rng(0)
    draw = lambda size, *shape: size * rng.normal(size=(models, *shape))  # noqa: E731
    args = (
        draw(1.0, STEPS, BATCH, 4 * UNITS),
        draw(0.3, UNITS, 4 * UNITS),
        1 + draw(0.2, 4 * UNITS),
        1 + draw(0.2, UNITS),
        draw(0.2, UNITS),
        draw(1.0, BATCH, UNITS),
        draw(1.0, BATCH, UNITS) + mean,
    )
    return tuple(v.astype(np.float32) for v in args)


def loss(np, h, c, stats_h, stats_c):
    """A number that all that `run` returns has a part in; of c, the last step's."""
    stats = sum(np.sum(np.sin(m)) + np.sum(np.log(v + 1)) for m, v in (stats_h, stats_c))
    return np.sum(np.sin(h)) + np.sum(c[-1] * h[-1]) + stats


def by_numpy(term, w, scale_h, scale_c, bias_c, c, h):
    """What `run` returns, of one model in float64."""
    norms = {
        "h": reference.StepNorm(scale_h, eps=EPS),
        "c": reference.StepNorm(scale_c, bias_c, eps=EPS),
    }
    params = {"w_x": np.eye(4 * UNITS), "w_h": w, "bias": np.zeros(4 * UNITS)}
    y, _, last = reference.lstm(params, term.swapaxes(0, 1), norms=norms, h=h, c=c)
    stats = [tuple(map(np.stack, list(zip(*norms[k].seen, strict=True))[:2])) for k in "hc"]
    return y.swapaxes(0, 1), last[None], *stats


def slope(function, args, way, step=2e-5):
    """The derivative along a way, from five points."""
    at = lambda s: function(*(a + s * d for a, d in zip(args, way, strict=True)))  # noqa: E731
    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


SHARED = (0, None, None, None, None, 0, 0)  # between models: the weights
MAPPED = {"own": ((0,) * 7,), "shared": (SHARED,)}


@pytest.mark.parametrize("axes", few(MAPPED, "own"))
def test_values_and_gradients_of_models_side_by_side_against_float64(axes, grids):
    args = tuple(v if a == 0 else v[0] for v, a in zip(arguments(), axes, strict=True))

    def run(*args):
        found = _bn_lstm.run(*args, (EPS, EPS))
        return loss(jnp, *found), found

    grad = jax.vmap(jax.value_and_grad(run, argnums=range(7), has_aux=True), axes)
    (losses, found), gradients = jax.jit(grad)(*map(jnp.asarray, args))
    assert grids == [(1,), (1,)]  # of one model; `vmap` puts its axis in front
    rng = np.random.default_rng(1)
    total = lambda *args: loss(np, *by_numpy(*args))  # noqa: E731
    for m in range(MODELS):
        exact = [
            np.asarray(v if a is None else v[m], np.float64)
            for v, a in zip(args, axes, strict=True)
        ]
        h, c, *stats = jax.tree.map(lambda v: v[m], found)  # noqa: B023
        want = by_numpy(*exact)
        properties.same((h, c[-1:], stats), (*want[:2], want[2:]), rtol=2e-5, atol=5e-6)
        np.testing.assert_allclose(losses[m], total(*exact), rtol=1e-5)
        for k, gradient in enumerate(gradients):  # each argument by itself
            way = [rng.normal(size=v.shape) * (j == k) for j, v in enumerate(exact)]
            size = np.linalg.norm(gradient[m])  # of a slope along a random way
            got = np.sum(np.asarray(gradient[m], np.float64) * way[k])
            np.testing.assert_allclose(got / size, slope(total, exact, way) / size, atol=2e-5)


@pytest.mark.slow
def test_everything_is_the_twins_with_means_far_from_zero(grids):
    """The gradient of c and of the statistics of every step too."""
    args = tuple(map(jnp.asarray, arguments(mean=30.0)))
    rng = np.random.default_rng(2)

    def told(run, args, cotangents):
        outputs, pull = jax.vjp(run, *args)
        return outputs, pull(cotangents)

    def run(*args):
        found = jax.tree.leaves(_bn_lstm.run(*args, (EPS, EPS)))
        return tuple(found)

    shapes = jax.eval_shape(jax.vmap(run), *args)
    cotangents = tuple(jnp.asarray(rng.normal(size=s.shape), jnp.float32) for s in shapes)
    mapped = jax.vmap(functools.partial(told, run))
    fast = jax.jit(lambda *a: mapped(*a))(args, cotangents)
    with _pallas.interpreted(False):
        plain = jax.jit(lambda *a: mapped(*a))(args, cotangents)
    assert len(grids) == 2
    for got, want in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        size = float(jnp.abs(want).max())
        np.testing.assert_allclose(got / size, want / size, atol=5e-5)


def test_what_does_not_fit_has_the_twin():
    """More rows than a tile has, or more work than one multiprocessor should do."""
    for batch, units, fits in (
        (100, 100, True),
        (64, 128, True),
        (129, 8, False),
        (64, 256, False),
    ):
        assert _bn_lstm_gpu.fits(batch, units) == fits
