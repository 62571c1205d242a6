"""The inspector: the same computation as `apply`, and what it otherwise drops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from tests._support import reference
from tests._support.few import few

B, T, F, H = 8, 6, 3, 5
LENGTHS = np.array([6, 1, 1, 2, 3, 6, 5, 4])


def _started(layer):
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    params["w_x"] = 8 * params["w_x"]  # so that some gates saturate
    return params, state, jax.random.normal(jax.random.key(1), (B, T, F), jnp.float64)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
def test_lstm_gates_and_hidden_norms(x64, lengths):
    layer = recurrent.lstm(H)
    params, state, x = _started(layer)
    seen = layer.info(params, state, x, stats="running", lengths=lengths)
    y, _, _ = reference.lstm(params, np.asarray(x), lengths=lengths)
    w_x, w_h, b = (np.asarray(params[k]) for k in ("w_x", "w_h", "bias"))
    before = np.concatenate([np.zeros((B, 1, H)), y[:, :-1]], axis=1)
    gates = reference.sigmoid(np.asarray(x) @ w_x + before @ w_h + b)
    for name, block in (("input", 0), ("forget", 1), ("output", 3)):
        value = gates[..., block * H : (block + 1) * H]
        for t in range(T):
            live = np.ones(B, bool) if lengths is None else t < lengths
            ends = (value < 0.05) | (value > 0.95)
            np.testing.assert_allclose(seen.gates[name][t], value[live, t].mean(), rtol=1e-6)
            np.testing.assert_allclose(seen.saturated[name][t], ends[live, t].mean(), rtol=1e-6)
    norms = np.linalg.norm(y, axis=-1)
    for t in range(T):
        live = np.ones(B, bool) if lengths is None else t < lengths
        np.testing.assert_allclose(seen.hidden_norm[t], norms[live, t].mean(), rtol=1e-6)
    assert 0 < float(seen.saturated["forget"].max()) < 1


@pytest.mark.parametrize("stats", ["batch", "running"])
@pytest.mark.parametrize("lengths", few({"full": None, "lengths": LENGTHS}, "lengths"))
def test_moments_are_what_the_norms_saw(x64, lengths, stats):
    layer = recurrent.bn_lstm(H, T, scale_init=0.3)
    params, state, x = _started(layer)
    seen = layer.info(params, state, x, stats=stats, lengths=lengths)
    _, gathered = layer.apply(
        params, nj.accumulate_statistics(state), x, stats=stats, lengths=lengths
    )
    for place in ("norm_x", "norm_h", "norm_c"):
        m = seen.moments[place]
        assert m.mean.shape[0] == T
        for a, b in zip(m, gathered[place].measured, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    (_, carry), _ = layer.apply(params, state, x, stats=stats)
    if lengths is None:
        np.testing.assert_allclose(
            seen.hidden_norm[-1], np.linalg.norm(carry.h, axis=-1).mean(), rtol=1e-10
        )


def test_gru_and_rnn_show_their_gates(x64):
    layer = recurrent.gru(H)
    params, state, x = _started(layer)
    assert set(layer.info(params, state, x, stats="running").gates) == {"reset", "update"}
    plain = recurrent.rnn(H, norm_x=recurrent.sequence_wise(nj.batch_norm()))
    params, state, x = _started(plain)
    seen = jax.jit(plain.info, static_argnames="stats")(params, state, x, stats="batch")
    assert seen.gates == {} and seen.moments["norm_x"].mean.shape == (H,)


@pytest.mark.parametrize(
    ("lengths", "stats"),
    [pytest.param(None, "running", marks=pytest.mark.slow), (LENGTHS, "batch")],
    ids=["running", "lengths"],
)
def test_stacks_and_directions_show_each_layer(x64, lengths, stats):
    """Each layer sees what a run of the layers by hand hands to it."""
    low = recurrent.bidirectional(recurrent.bn_lstm(H, T, scale_init=0.5))
    high = nj.reparam(recurrent.gru(H), {"w_h": nj.weight_norm()})
    between = nj.batch_norm()
    net = recurrent.stack([low, high], norm_between=recurrent.per_step(between, T))
    params, state = net.init(jax.random.key(0), F, jnp.float64)
    x = jax.random.normal(jax.random.key(1), (B, T, F), jnp.float64)
    how = {"stats": stats, "lengths": lengths}
    seen = jax.jit(lambda p, s, x: net.info(p, s, x, **how))(params, state, x)
    assert set(seen) == {"layer_0", "norm_0", "layer_1"}

    p, s = params["layer_0"], state["layer_0"]
    turned = np.array(x)
    for b, n in enumerate(np.full(B, T) if lengths is None else lengths):
        turned[b, :n] = turned[b, :n][::-1]
    for name, own in (("forward", x), ("backward", jnp.asarray(turned))):
        want = low.forward.info(p[name], s[name], own, **how)
        _same(seen["layer_0"][name], want)
    (y, _), _ = low.apply(p, s, x, **how)
    live = np.arange(T)[:, None] < (np.full(B, T) if lengths is None else lengths)[None]
    for t in range(T):
        mean, var, count = reference.moments(np.asarray(y)[:, t], (0,), live[t][:, None])
        np.testing.assert_allclose(seen["norm_0"].mean[t], mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(seen["norm_0"].var[t], var, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(seen["norm_0"].count[t], count)
    (out, _), _ = net.apply(params, state, x, **how)
    np.testing.assert_allclose(net.apply_with_info(params, state, x, **how)[0], out, rtol=1e-12)
    norms = np.linalg.norm(out, axis=-1)
    np.testing.assert_allclose(
        seen["layer_1"].hidden_norm, [norms[live[t], t].mean() for t in range(T)], rtol=1e-9
    )


def test_over_devices_it_is_that_of_the_whole_batch(x64):
    layer = recurrent.lstm(H)
    params, state, x = _started(layer)

    def look(x, n, axis_name=None):
        return layer.info(params, state, x, stats="running", lengths=n, axis_name=axis_name)

    want = jax.jit(look)(x, LENGTHS)
    over = jax.vmap(lambda x, n: look(x, n, "devices"), axis_name="devices")
    split = jax.jit(over)(x.reshape(2, 4, T, F), LENGTHS.reshape(2, 4))
    for device in range(2):
        _same(jax.tree.map(lambda leaf, d=device: leaf[d], split), want)


def _same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)
    assert jax.tree.structure(a) == jax.tree.structure(b)


def test_a_nudge_reaches_every_layer_in_the_order_of_its_outputs(x64):
    net = recurrent.stack([recurrent.bidirectional(recurrent.rnn(H)), recurrent.rnn(H)])
    params, state = net.init(jax.random.key(0), F, jnp.float64)
    x = jax.random.normal(jax.random.key(1), (B, T, F), jnp.float64)

    def first(nudges):
        (y, _), _ = net.apply(
            params, state, x, stats="running", lengths=LENGTHS, hidden_perturbation=nudges
        )
        return y[0, 0].sum()  # of the last layer's first step

    zero = jnp.zeros((B, T, H))
    at_first = jax.grad(lambda n: first((None, n)))(zero)
    assert (at_first[0, 0] != 0).all() and (at_first[0, 1:] == 0).all()
    # The backward direction reads the end first, so its last step reaches the first output.
    backward = jax.grad(lambda n: first(((None, n), None)))(zero)
    assert (np.abs(backward[0]).max(-1) > 0).all() and (backward[1:] == 0).all()
    forward = jax.grad(lambda n: first(((n, None), None)))(zero)
    assert (forward[0, 0] != 0).any() and (forward[0, 1:] == 0).all()
    with pytest.raises(
        ValueError, match="hidden_perturbation has 1 entries for 2 layers: give one each"
    ):
        first((zero,))
