"""Singular values of Jacobians against closed forms and finite differences."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import analysis, recurrent

B, T, F, H = 3, 5, 2, 4


@functools.partial(jax.jit, static_argnames=("layer", "stats"))
def measure(layer, params, state, x, **how):
    return analysis.jacobian_through_time(layer, params, state, x, **how)


def _started(layer):
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    return params, state, jax.random.normal(jax.random.key(1), (B, T, F), jnp.float64)


def _rnn_states(params, x):
    """h_t = tanh(W_x x_t + W_h h_{t-1} + b), by hand."""
    w_x, w_h, b = (np.asarray(params[k]) for k in ("w_x", "w_h", "bias"))
    h, out = np.zeros((B, H)), []
    for t in range(T):
        h = np.tanh(np.asarray(x)[:, t] @ w_x + h @ w_h + b)
        out.append(h)
    return np.stack(out, 1), w_h


def test_tanh_rnn_has_the_jacobian_of_its_equation(x64):
    layer = recurrent.rnn(H, recurrent_init="lecun_normal")
    params, state, x = _started(layer)
    out = measure(layer, params, state, x)
    h, w_h = _rnn_states(params, x)
    assert out.step.shape == out.product.shape == (B, T - 1, H)
    for b in range(B):
        steps = [(1 - h[b, t + 1] ** 2)[:, None] * w_h.T for t in range(T - 1)]
        product = np.eye(H)
        for t in reversed(range(T - 1)):
            product = product @ steps[t]
            singular = [np.linalg.svd(m, compute_uv=False) for m in (steps[t], product)]
            np.testing.assert_allclose(out.step[b, t], singular[0], rtol=1e-9)
            np.testing.assert_allclose(out.product[b, t], singular[1], rtol=1e-7, atol=1e-12)


def test_lstm_total_derivative_is_that_of_finite_differences(x64):
    layer = recurrent.ln_lstm(H)
    params, state, x = _started(layer)
    lengths = jnp.array([5, 3, 5])
    out = measure(layer, params, state, x, lengths=lengths)
    eps, t, b = 1e-6, 1, 1

    @jax.jit
    def last(u, sign):
        hidden_perturbation = jnp.zeros((B, T, H), x.dtype).at[b, t, u].set(sign * eps)
        (y, carry), _ = layer.apply(
            params,
            state,
            x,
            stats="running",
            lengths=lengths,
            hidden_perturbation=hidden_perturbation,
        )
        return y[b, t + 1], carry.h[b]

    pairs = [(last(u, 1), last(u, -1)) for u in range(H)]
    for which, at in ((out.step, 0), (out.product, 1)):
        matrix = np.stack([np.asarray(p[at] - m[at]) / (2 * eps) for p, m in pairs])
        np.testing.assert_allclose(
            which[b, t], np.linalg.svd(matrix, compute_uv=False), rtol=1e-6, atol=1e-9
        )
    np.testing.assert_array_equal(out.product[b, 3], 0)  # what is past the end reaches nothing


def test_batch_statistics_tie_the_batch_into_one_system(x64):
    layer = recurrent.rnn(2, norm_sum=recurrent.per_step(nj.batch_norm(scale_init=0.5), 3))
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    x = jax.random.normal(jax.random.key(1), (B, 3, F), jnp.float64)
    out = measure(layer, params, state, x, stats="batch")
    assert out.step.shape == (1, 2, B * 2)
    alone = measure(layer, params, state, x, stats="running")
    assert alone.step.shape == (B, 2, 2)

    # By hand: z = W_x x + W_h h + b, h = tanh(gamma (z - mean) / sqrt(var + eps)).
    def follow(h, x_t):
        p = {k: np.asarray(params[k]) for k in ("w_x", "w_h", "bias")}
        z = x_t @ p["w_x"] + h @ p["w_h"]
        z = 0.5 * (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
        return np.tanh(z + p["bias"])

    xs = np.asarray(x)
    h1 = follow(np.zeros((B, 2)), xs[:, 0])
    matrix = np.zeros((B * 2, B * 2))
    for i in range(B * 2):
        d = np.zeros(B * 2)
        d[i] = 1e-6
        d = d.reshape(B, 2)
        matrix[i] = ((follow(h1 + d, xs[:, 1]) - follow(h1 - d, xs[:, 1])) / 2e-6).ravel()
    np.testing.assert_allclose(
        out.step[0, 0], np.linalg.svd(matrix, compute_uv=False), rtol=1e-5, atol=1e-8
    )


def test_errors_say_what_to_write():
    layer = recurrent.rnn(H, time_major=True)
    params, state = layer.init(jax.random.key(0), F)
    with pytest.raises(ValueError, match="time_major=False"):
        analysis.jacobian_through_time(layer, params, state, jnp.ones((B, T, F)))
    layer = recurrent.rnn(H)
    with pytest.raises(ValueError, match="one step"):
        analysis.jacobian_through_time(layer, params, state, jnp.ones((B, 1, F)))
