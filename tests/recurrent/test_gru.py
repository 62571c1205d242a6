"""Norms on a GRU's whole terms and on its sums, against loops written out in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from tests._support.properties import scattered

B, T, F, H = 4, 5, 3, 6
EPS = 1e-5


def made(layer, *, spread=0.5):
    """Params away from their start, in float64, as NumPy arrays too; state and x."""
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    params = scattered(params, spread, 1)
    x = jax.random.normal(jax.random.key(2), (B, T, F), jnp.float64)
    return params, jax.tree.map(np.asarray, params), state, x


def layer_norm(z, gain, bias=None):
    """Each row by itself."""
    d = z - z.mean(1, keepdims=True)
    y = d / np.sqrt((d**2).mean(1, keepdims=True) + EPS) * gain
    return y if bias is None else y + bias


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_one_norm_over_the_three_blocks_of_a_term_is_hastes_gru(x64):
    """Their blocks are z, r, h, with one bias each a term and the norms' gains beside it."""
    norm = nj.layer_norm(use_bias=False)
    layer = recurrent.gru(H, norm_x3=norm, norm_h3=norm)
    params, ours, state, x = made(layer)

    def order(blocks):
        r, z, n = np.split(blocks, 3, axis=-1)
        return np.concatenate([z, r, n], axis=-1)

    kernel, recurrent_kernel = order(ours["w_x"]), order(ours["w_h"])
    gamma_x, gamma_h = (order(ours[place].scale) for place in ("norm_x3", "norm_h3"))
    bias = order(ours["bias"])
    recurrent_bias = np.concatenate([np.zeros(2 * H), ours["bias_hn"]])

    h, want = np.zeros((B, H)), []
    for t in range(T):
        term_x = layer_norm(np.asarray(x[:, t]) @ kernel, gamma_x) + bias
        term_h = layer_norm(h @ recurrent_kernel, gamma_h) + recurrent_bias
        (x_z, x_r, x_n), (h_z, h_r, h_n) = (np.split(term, 3, 1) for term in (term_x, term_h))
        z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        h = z * h + (1 - z) * np.tanh(x_n + r * h_n)
        want.append(h)
    (y, last), _ = layer.apply(params, state, x, stats="batch")
    np.testing.assert_allclose(y, np.stack(want, 1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(last, h, rtol=1e-10, atol=1e-12)


def test_a_norm_of_each_gates_sum(x64):
    layer = recurrent.gru(
        H, norm_sum=nj.group_norm(groups=2), norm_sumn=nj.layer_norm(use_bias=False)
    )
    params, ours, state, x = made(layer)
    (x_r, x_z, x_n), (h_r, h_z, h_n) = (np.split(ours[name], 3, 1) for name in ("w_x", "w_h"))
    b_r, b_z, b_n = np.split(ours["bias"], 3)
    (g_r, g_z), (s_r, s_z) = (np.split(v, 2) for v in ours["norm_sum"])
    g_n = ours["norm_sumn"].scale

    h, want = np.zeros((B, H)), []
    for t in range(T):
        x_t = np.asarray(x[:, t])
        r = sigmoid(layer_norm(x_t @ x_r + h @ h_r, g_r, s_r) + b_r)
        z = sigmoid(layer_norm(x_t @ x_z + h @ h_z, g_z, s_z) + b_z)
        n = np.tanh(layer_norm(x_t @ x_n + r * (h @ h_n + ours["bias_hn"]), g_n) + b_n)
        h = (1 - z) * n + z * h
        want.append(h)
    (y, _), _ = layer.apply(params, state, x, stats="batch")
    np.testing.assert_allclose(y, np.stack(want, 1), rtol=1e-10, atol=1e-12)


def test_batch_statistics_of_whole_terms_and_of_sums(x64):
    """Per step over the batch, in training; the state's in evaluation."""

    def norm():
        return recurrent.per_step(nj.batch_norm(decay=0.0, use_bias=False), T)

    layer = recurrent.gru(H, norm_x3=norm(), norm_h3=norm(), norm_sum=norm(), norm_sumn=norm())
    params, ours, state, x = made(layer)
    gains = {place: ours[place].scale for place in layer.norms()}
    means, variances = {p: [] for p in gains}, {p: [] for p in gains}

    def batch(place, z):
        mean, var = z.mean(0), ((z - z.mean(0)) ** 2).mean(0)
        means[place].append(mean)
        variances[place].append(var)
        return (z - mean) / np.sqrt(var + EPS) * gains[place]

    h = np.zeros((B, H))
    for t in range(T):
        term_x = batch("norm_x3", np.asarray(x[:, t]) @ ours["w_x"])
        term_h = batch("norm_h3", h @ ours["w_h"])
        both = batch("norm_sum", term_x[:, : 2 * H] + term_h[:, : 2 * H])
        r, z = np.split(sigmoid(both + ours["bias"][: 2 * H]), 2, 1)
        inside = term_x[:, 2 * H :] + r * (term_h[:, 2 * H :] + ours["bias_hn"])
        n = np.tanh(batch("norm_sumn", inside) + ours["bias"][2 * H :])
        h = (1 - z) * n + z * h
    (y, last), state = layer.apply(params, state, x, stats="batch")
    np.testing.assert_allclose(last, h, rtol=1e-9, atol=1e-11)
    for place in gains:
        np.testing.assert_allclose(state[place].mean, means[place], rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(state[place].var, variances[place], rtol=1e-9, atol=1e-11)
    # With the first batch's statistics, evaluation on it gives what training gave.
    (again, _), _ = layer.apply(params, state, x, stats="running")
    np.testing.assert_allclose(again, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", ["per_step", "sequence_wise"])
def test_input_terms_of_three_blocks_are_the_same_in_and_before_the_loop(x64, norm, force_schedule):
    lift = {
        "per_step": lambda: recurrent.per_step(nj.batch_norm(), T),
        "sequence_wise": lambda: recurrent.sequence_wise(nj.batch_norm()),
    }[norm]
    layer = recurrent.gru(H, norm_x3=lift(), norm_h3=nj.layer_norm())
    params, _, state, x = made(layer)
    found = []
    for schedule in ("before_loop", "measure_in_loop", "in_loop"):
        force_schedule(schedule)
        (y, _), new = layer.apply(params, state, x, stats="batch", lengths=jnp.array([5, 3, 1, 4]))
        found.append([y, *jax.tree.leaves(new)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("whole", "part"), [("norm_x3", "norm_xn"), ("norm_h3", "norm_h"), ("norm_x3", "norm_x")]
)
def test_a_term_is_normalized_as_a_whole_or_in_parts(whole, part):
    norm = nj.layer_norm()
    with pytest.raises(ValueError, match=rf"{whole} .* {part} a part .* write {whole}"):
        recurrent.gru(H, **{whole: norm, part: norm})
