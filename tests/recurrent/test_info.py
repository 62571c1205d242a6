"""The inspector: the same computation as `apply`, and what it otherwise drops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from tests import reference

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
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
def test_moments_are_what_the_norms_saw(x64, lengths, stats):
    layer = recurrent.bn_lstm(H, T, scale_init=0.3)
    params, state, x = _started(layer)
    seen = layer.info(params, state, x, stats=stats, lengths=lengths)
    _, gathered = layer.apply(params, nj.collecting(state), x, stats=stats, lengths=lengths)
    for place in ("norm_x", "norm_h", "norm_c"):
        m = seen.moments[place]
        assert m.mean.shape[0] == T
        for a, b in zip(m, gathered[place].seen, strict=True):
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
