"""The generic NNX modules: names, modes, and the same numbers as the pure functions."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as fnn

import normjax as nj
from normjax import nnx, recurrent
from normjax.testing import SAMPLES
from tests._support import check
from tests._support.few import few
from tests.conftest import unchecked

pytestmark = pytest.mark.standard_numerics

X = jax.random.normal(jax.random.key(3), (6, 5, 3))


def tree(module, kind):
    return fnn.to_pure_dict(fnn.state(module, kind))


@pytest.mark.parametrize(
    "sample",
    few(
        {sample.name: sample for sample, again in check.with_repeats(SAMPLES) if not again},
        *check.REPRESENTATIVES,
    ),
)
def test_any_norm_gives_the_numbers_of_the_pure_functions(sample):
    x = jax.random.normal(jax.random.key(0), sample.shape)
    layer = nnx.Normalize(sample.norm, sample.shape, rngs=fnn.Rngs(params=7))
    params, state = sample.norm.init(sample.shape, key=fnn.Rngs(params=7).params())
    assert len(jax.tree.leaves(tree(layer, fnn.Param))) == len(jax.tree.leaves(params))
    for mode in ("batch", "running"):
        want, state = sample.norm.apply(params, state, x, stats=mode)
        got = fnn.jit(lambda m, x, mode=mode: m(x, stats=mode))(layer, x)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    kept = dict(fnn.to_flat_state(fnn.state(layer, fnn.BatchStat)))
    assert len(kept) == len(jax.tree.leaves(state))


def test_same_names_and_numbers_as_flax_batch_norm():
    ours = nnx.Normalize(nj.batch_norm(), 3, rngs=fnn.Rngs(0), stats="batch")
    flax = fnn.BatchNorm(3, rngs=fnn.Rngs(0))
    assert jax.tree.map(jnp.shape, tree(ours, ...)) == jax.tree.map(jnp.shape, tree(flax, ...))
    np.testing.assert_allclose(ours(X), flax(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.var[...], flax.var[...], rtol=1e-5)
    np.testing.assert_array_equal(ours.mean.get_raw_value(), ours.mean[...])


@pytest.mark.parametrize("static", [{"static_argnums": (2,)}, {"static_argnames": ("stats",)}])
def test_a_mode_given_at_the_call_reaches_the_module_under_jit(static):
    for stats in ("batch", "running"):
        plain, compiled = (nnx.Normalize(nj.batch_norm(), 3, rngs=fnn.Rngs(0)) for _ in range(2))
        call = fnn.jit(nnx.Normalize.__call__, **static)
        got = (
            call(compiled, X, stats)
            if "static_argnums" in static
            else call(compiled, X, stats=stats)
        )
        np.testing.assert_allclose(got, plain(X, stats=stats), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(compiled.var[...], plain.var[...], rtol=1e-5)


def test_a_mode_given_by_position_reaches_the_module_under_remat():
    class Block(fnn.Module):
        def __init__(self):
            self.norm = nnx.Normalize(nj.batch_norm(), 3, rngs=fnn.Rngs(0))

        @fnn.remat(static_argnums=(2,))
        def __call__(self, x, stats):
            return self.norm(x, stats)

    block, plain = Block(), nnx.Normalize(nj.batch_norm(), 3, rngs=fnn.Rngs(0))
    for stats in ("batch", "running"):
        np.testing.assert_allclose(block(X, stats), plain(X, stats), rtol=1e-5, atol=1e-5)


def test_modes():
    layer = nnx.Normalize(nj.batch_norm(), 3, rngs=fnn.Rngs(0))
    with pytest.raises(ValueError, match=r"train\(\)"):
        layer(X)
    layer.eval()
    layer(X)
    np.testing.assert_array_equal(layer.mean[...], 0)
    layer(X, stats="batch")
    moved = np.asarray(layer.mean[...])
    assert np.abs(moved).max() > 0
    fnn.view(layer, use_running_average=True)(X)
    np.testing.assert_array_equal(layer.mean[...], moved)
    layer.train()
    layer(X)
    assert np.abs(layer.mean[...] - moved).max() > 0
    nnx.Normalize(nj.layer_norm(), 3, rngs=fnn.Rngs(0))(X)  # no state, no mode


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_recurrent_is_the_pure_layer(noise):
    layer = recurrent.bn_lstm(7, max_steps=5, learn_carry=True, h0_noise=noise)
    module = nnx.Recurrent(layer, 3, rngs=fnn.Rngs(params=1, noise=2))
    streams = fnn.Rngs(params=1, noise=2)
    params, state = layer.init(streams.params(), 3)
    key = streams.noise.fork()() if noise else None
    lengths = jnp.array([5, 4, 3, 2, 1, 0])
    (want, carry), state = layer.apply(params, state, X, stats="batch", lengths=lengths, key=key)
    run = fnn.jit(lambda m, x, n: m(x, stats="batch", lengths=n, return_carry=True))
    last, got = run(module, X, lengths)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), last, carry)
    np.testing.assert_allclose(module.norm_h["var"][...], state["norm_h"].var, rtol=1e-5, atol=1e-8)
    module.eval()
    before = tree(module, fnn.BatchStat)
    module(X)
    jax.tree.map(np.testing.assert_array_equal, tree(module, fnn.BatchStat), before)


def test_zoneout_and_dropout_that_were_asked_for_act():
    layer = recurrent.lstm(4, dropout_h=0.5, zoneout_h=0.3)
    for rngs in (fnn.Rngs(0), fnn.Rngs(params=0, noise=1)):
        module = nnx.Recurrent(layer, 3, rngs=rngs)
        with pytest.raises(ValueError, match=r"write module.train\(\) or module.eval\(\)"):
            module(X)
        module.eval()
        rest = np.asarray(module(X))
        np.testing.assert_array_equal(module(X), rest)
        module.train()
        drawn = np.asarray(module(X))
        assert np.abs(drawn - rest).max() > 1e-3
        assert np.abs(drawn - module(X)).max() > 1e-3
        np.testing.assert_array_equal(module(X, noise=False), module(X, noise=False))
        frozen = np.asarray(module(X, stats="running", noise=True))
        assert np.abs(frozen - rest).max() > 1e-3
    still = nnx.Recurrent(layer, 3, rngs=fnn.Rngs(params=0), stats="running")
    np.testing.assert_array_equal(still(X), still(X, stats="batch", noise=False))
    with pytest.raises(ValueError, match="draw with noise=True"):
        still(X, noise=True)
    with pytest.raises(ValueError, match=r"rngs=nnx.Rngs\(params=0, noise=1\)"):
        still(X, stats="batch")


def test_statistics_over_devices():
    def step(x):
        layer = nnx.Normalize(
            nj.batch_norm(decay=0.0), 3, axis_name="d", stats="batch", rngs=fnn.Rngs(0)
        )
        return layer(x), layer.mean[...]

    y, mean = jax.vmap(step, axis_name="d")(X)
    np.testing.assert_allclose(mean[0], np.asarray(X).mean((0, 1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.asarray(y).std((0, 1)), 1, rtol=1e-3)


def test_equal_modules_share_one_trace_and_transforms_work():
    for make in (
        lambda: nnx.Normalize(nj.batch_norm(), 3, stats="batch", rngs=fnn.Rngs(0)),
        lambda: nnx.Recurrent(
            recurrent.bn_lstm(4, max_steps=5), 3, stats="batch", rngs=fnn.Rngs(0)
        ),
    ):
        traces = []

        def run(module, x, traces=traces):
            traces.append(1)
            return module(x)

        run = fnn.jit(run)
        assert fnn.graphdef(make()) == fnn.graphdef(make())
        y = run(make(), X)
        run(make(), X)
        assert len(traces) == 1
        grads = fnn.grad(lambda m, x: jnp.sum(m(x) ** 2))(make(), X)
        assert jax.tree.structure(grads) == jax.tree.structure(fnn.state(make(), fnn.Param))
        graph, params, rest = fnn.split(make(), fnn.Param, ...)
        np.testing.assert_allclose(fnn.merge(graph, params, rest)(X), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [nj.batch_norm, "batch_norm"])
def test_a_factory_is_no_norm(norm):
    say = "Normalize(batch_norm())" if callable(norm) else "takes a Norm such as batch_norm()"
    with pytest.raises(TypeError, match=re.escape(say)):
        unchecked(nnx.Normalize.__init__)(object.__new__(nnx.Normalize), norm, 3, rngs=fnn.Rngs(0))


@pytest.mark.parametrize(
    "layer", [nj.batch_norm(), recurrent.lstm, recurrent.Recurrent], ids=["norm", "factory", "type"]
)
def test_what_is_no_layer_is_refused(layer):
    with pytest.raises(TypeError, match=r"Recurrent takes layers such as lstm\(100\)"):
        nnx.Recurrent(layer, 3, rngs=fnn.Rngs(0))


def test_recurrent_says_how_to_evaluate_after_few_updates():
    """As `linen.Recurrent`, where the numbers are tested; the decay reaches the norms here too."""
    layer = nnx.Recurrent(recurrent.bn_lstm(4, 5, debias=False), 3, rngs=fnn.Rngs(0))
    layer(0.01 * X, stats="batch", hyper={"decay": 0.0})
    assert float(layer.norm_x["var"][...].max()) < 1e-2
    for line in ("near chance", "`normjax.nnx.population_update`", '`debias="warmup"`'):
        assert line in nnx.Recurrent.__doc__
