"""Gates, histograms and stationarity, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import analysis, recurrent
from tests.conftest import unchecked

RNG = np.random.default_rng(0)


def test_gate_saturation_is_the_inspectors(x64):
    layer = recurrent.lstm(4)
    params, state = layer.init(jax.random.key(0), 3, jnp.float64)
    x = 20 * jnp.asarray(RNG.normal(size=(5, 6, 3)))
    lengths = jnp.array([6, 5, 1, 2, 6])
    out = analysis.gate_saturation(layer, params, state, x, lengths=lengths)
    # The first step, by hand: h = 0.
    z = np.asarray(x)[:, 0] @ np.asarray(params["w_x"]) + np.asarray(params["bias"])
    gate = 1 / (1 + np.exp(-z[:, 4:8]))
    np.testing.assert_allclose(out.mean["forget"][0], gate.mean(), rtol=1e-9)
    share = ((gate < 0.05) | (gate > 0.95)).mean()
    np.testing.assert_allclose(out.saturated["forget"][0], share, rtol=1e-6)
    assert out.hidden_norm.shape == (6,) and 0 < share < 1


@pytest.mark.parametrize(
    "net",
    [
        recurrent.stack([recurrent.lstm(4)]),
        recurrent.bidirectional(recurrent.lstm(4)),
        nj.l2_norm(),
    ],
    ids=lambda n: n.factory,
)
def test_tools_of_one_layer_refuse_nets_and_cells(net):
    rest = (None, None, jnp.ones((2, 3, 3)))
    for tool, more in (
        (analysis.gate_saturation, ()),
        (analysis.jacobian_through_time, ()),
        (analysis.gradient_through_time, (lambda y, _: y.sum(),)),
    ):
        with pytest.raises(TypeError, match=f"{tool.__name__} takes .* lstm"):
            unchecked(tool)(net, *rest, *more)


def test_layer_without_gates_is_refused():
    layer = recurrent.rnn(4)
    params, state = layer.init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="activation_histogram"):
        analysis.gate_saturation(layer, params, state, jnp.ones((2, 3, 3)))


@pytest.mark.parametrize("lengths", [None, np.array([4, 0, 2, 1, 4, 3])])
def test_histogram_is_numpys(x64, lengths):
    y = RNG.normal(size=(6, 4, 5))
    y[0, 0, :3] = -1.0, 1.0, 0.5  # on the edges
    out = jax.jit(
        lambda y: analysis.activation_histogram(y, bins=8, limits=(-1.0, 1.0), lengths=lengths)
    )(jnp.asarray(y))
    for t in range(4):
        live = np.ones(6, bool) if lengths is None else t < lengths
        values = y[live, t].ravel()
        counts, edges = np.histogram(values, bins=8, range=(-1, 1))
        np.testing.assert_allclose(out.edges, edges, rtol=1e-12)
        np.testing.assert_allclose(out.share[t], counts / values.size, rtol=1e-12)
        np.testing.assert_allclose(out.below[t], (values < -1).mean(), rtol=1e-12)
        np.testing.assert_allclose(out.above[t], (values > 1).mean(), rtol=1e-12)


def test_histogram_of_half_precision_and_of_steps_that_none_reaches():
    y = jnp.full((3, 2, 4), 0.25, jnp.bfloat16)
    out = analysis.activation_histogram(y, bins=4, lengths=jnp.array([1, 1, 1]))
    assert out.share.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match="increase"):
        analysis.activation_histogram(y, limits=(1.0, -1.0))


def test_stationarity_of_a_known_decay(x64):
    steps = 40
    mean = 3 + np.exp(-np.arange(steps) / 4)[:, None] * np.array([[2.0, 0.1]])
    var = np.full((steps, 2), 4.0)
    state = nj.Running(jnp.asarray(mean), jnp.asarray(var))
    out = jax.jit(lambda s: analysis.stationarity(s, tolerance=0.05, tail=0.25, eps=1e-12))(state)
    late_mean = mean[-10:].mean(0)
    late_std = np.sqrt(var[-10:].mean(0) + mean[-10:].var(0))
    moved = np.abs(mean - late_mean) / late_std
    wider = np.abs(np.log(np.sqrt(var) / late_std))
    np.testing.assert_allclose(out.mean, np.sqrt((moved**2).mean(1)), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(out.spread, np.sqrt((wider**2).mean(1)), rtol=1e-6, atol=1e-12)
    first = [int(np.nonzero(moved[:, i] > 0.05)[0].max(initial=-1)) + 1 for i in range(2)]
    assert out.feature_steps.tolist() == first and first[0] > first[1]
    whole = np.nonzero(np.sqrt((moved**2).mean(1)) > 0.05)[0].max() + 1
    assert int(out.steps) == whole


def test_stationarity_ends():
    flat = nj.Running(jnp.ones((6, 2)), jnp.ones((6, 2)))
    assert int(analysis.stationarity(flat).steps) == 0
    rising = nj.Running(jnp.arange(6.0)[:, None], jnp.ones((6, 1)))
    assert int(analysis.stationarity(rising, tail=0.0).steps) == 5
    assert int(analysis.stationarity(rising, tail=0.5).steps) == 6
    constant = nj.Running(jnp.zeros((6, 2)), jnp.zeros((6, 2)))
    assert int(analysis.stationarity(constant).steps) == 0


@pytest.mark.slow
def test_stationarity_reads_states_and_moments_of_a_layer():
    layer = recurrent.bn_lstm(4, max_steps=6)
    params, state = layer.init(jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (8, 6, 3))
    _, state = layer.apply(params, state, x, stats="batch")
    for statistics in (
        state["norm_h"],
        layer.info(params, state, x, stats="batch").moments["norm_h"],
    ):
        out = analysis.stationarity(statistics)
        assert out.mean.shape == (6,) and out.feature_steps.shape == (16,)


@pytest.mark.parametrize("counted", [False, True], ids=["kept", "measured"])
def test_stationarity_leaves_out_steps_that_no_sequence_reached(counted):
    """Statistics of data of 6 steps, kept for 9."""
    norm = recurrent.per_step(nj.batch_norm(), 9)
    params, state = norm.init((1, 2))
    drift = 5 + np.exp(-np.arange(6))[:, None, None]
    x = jnp.asarray(drift + RNG.normal(size=(6, 32, 2)), jnp.float32)
    state = nj.population_statistics(norm, params, state, [x])
    whole = jax.tree.map(lambda v: v[:6], state)
    if counted:
        count = jnp.asarray(np.repeat([32.0, 0.0], [12, 6]).reshape(9, 2), jnp.float32)
        state = nj.Moments(state.mean, state.var, count)
    with pytest.raises(ValueError, match=r"reached 6 of 9 steps.*write max_steps=6"):
        analysis.stationarity(state)
    want, got = analysis.stationarity(whole), analysis.stationarity(state, max_steps=6)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    # Where nothing can be seen, what is asked for is done all the same.
    traced = jax.jit(lambda s: analysis.stationarity(s, max_steps=6))(state)
    np.testing.assert_allclose(traced.mean, want.mean, rtol=1e-5)


def test_stationarity_errors_say_what_to_write():
    with pytest.raises(ValueError, match="population"):
        analysis.stationarity(recurrent.per_step(nj.batch_norm(), 3).init((1, 2))[1])
    with pytest.raises(ValueError, match="max_steps=0"):
        analysis.stationarity(nj.Running(jnp.ones((3, 2)), jnp.ones((3, 2))), max_steps=0)
    with pytest.raises(ValueError, match="no axis of time"):
        analysis.stationarity(nj.Running(jnp.zeros(3), jnp.ones(3)))
    with pytest.raises(TypeError, match="norm_h"):
        analysis.stationarity(jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="tail"):
        unchecked(analysis.stationarity)(nj.Running(jnp.zeros((3, 1)), jnp.ones((3, 1))), tail=2.0)
