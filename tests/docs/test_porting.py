"""Each row of porting's table "theirs, ours": the other library's formula in float64, or itself."""

from __future__ import annotations

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent

pytestmark = pytest.mark.standard_numerics

B, T, F, H = 4, 5, 3, 4
RNG = np.random.default_rng(0)
PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "porting.md").read_text()


def draw(*shape):
    return RNG.normal(size=shape)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def row_norm(z, eps, gain=1.0, bias=0.0):
    d = z - z.mean(-1, keepdims=True)
    return d / np.sqrt((d**2).mean(-1, keepdims=True) + eps) * gain + bias


def ours(layer, x, **weights):
    """Outputs of a layer with these weights; `x` is `[batch, time, features]`."""
    params, state = layer.init(jax.random.key(0), x.shape[-1], jnp.float64)
    assert set(weights) <= set(params)
    params |= {name: jax.tree.map(jnp.asarray, value) for name, value in weights.items()}
    (y, _), _ = layer.apply(params, state, jnp.asarray(x), stats="running")
    return y


def lstm_loop(x, terms, carried):
    """i, f, g, o from `terms(x_t, h)`; `carried(c)` is the cell that goes on and comes out."""
    h, c, y = np.zeros((B, H)), np.zeros((B, H)), []
    for t in range(T):
        i, f, g, o = np.split(terms(x[:, t], h), 4, axis=1)
        c = carried(sigmoid(f) * c + sigmoid(i) * np.tanh(g))
        h = sigmoid(o) * np.tanh(c)
        y.append(h)
    return np.stack(y, 1)


def affine(features):
    return nj.Affine(scale=1 + draw(features) / 2, bias=draw(features))


# One function a row, in the order of the table.


def keras_batch_normalization():
    x, mean, var, eps, momentum = 2 + draw(6, F), draw(F), np.exp(draw(F)), 1e-3, 0.99
    norm = nj.batch_norm(eps=1e-3)
    params, _ = norm.init(x.shape, jnp.float64)
    state = nj.Running(jnp.asarray(mean), jnp.asarray(var))
    y, new = norm.apply(params, state, x, stats="batch")
    close(y, (x - x.mean(0)) / np.sqrt(x.var(0) + eps))
    close(new.var, momentum * var + (1 - momentum) * x.var(0))


def keras_layer_normalization():
    x = draw(6, 8)
    for norm, groups in ((nj.layer_norm(eps=1e-3), 1), (nj.group_norm(groups=2, eps=1e-3), 2)):
        y, _ = norm.apply(*norm.init(x.shape, jnp.float64), x, stats="batch")
        close(y, row_norm(x.reshape(6, groups, -1), 1e-3).reshape(x.shape))


def keras_lstm():
    x, kernel, recurrent_kernel, bias = draw(B, T, F), draw(F, 4 * H), draw(H, 4 * H), draw(4 * H)
    want = lstm_loop(x, lambda x, h: x @ kernel + h @ recurrent_kernel + bias, lambda c: c)
    layer = recurrent.lstm(H, forget_bias=1.0)
    close(ours(layer, x, w_x=kernel, w_h=recurrent_kernel, bias=bias), want)


def keras_gru():
    x, kernel, recurrent_kernel, bias = (
        draw(B, T, F),
        draw(F, 3 * H),
        draw(H, 3 * H),
        draw(2, 3 * H),
    )
    h, want = np.zeros((B, H)), []
    for t in range(T):
        x_z, x_r, x_h = np.split(x[:, t] @ kernel + bias[0], 3, 1)
        h_z, h_r, h_h = np.split(h @ recurrent_kernel + bias[1], 3, 1)
        z = sigmoid(x_z + h_z)
        h = z * h + (1 - z) * np.tanh(x_h + sigmoid(x_r + h_r) * h_h)
        want.append(h)

    def swap(v):
        z, r, h = np.split(v, 3, -1)
        return np.concatenate([r, z, h], -1)

    both = np.concatenate([(bias[0] + bias[1])[: 2 * H], bias[0][2 * H :]])
    weights = {"w_x": swap(kernel), "w_h": swap(recurrent_kernel), "bias": swap(both)}
    y = ours(recurrent.gru(H), x, **weights, bias_hn=bias[1][2 * H :])
    close(y, np.stack(want, 1))


def tensorflow_addons_ln_lstm():
    x, w_x, w_h, b = draw(B, T, F), draw(F, 4 * H), draw(H, 4 * H), draw(4 * H)
    n_x, n_h, n_c = affine(4 * H), affine(4 * H), affine(H)
    want = lstm_loop(
        x,
        lambda x, h: row_norm(x @ w_x, 1e-3, *n_x) + row_norm(h @ w_h, 1e-3, *n_h) + b,
        lambda c: row_norm(c, 1e-3, *n_c),
    )
    ln = nj.layer_norm(eps=1e-3)
    layer = recurrent.lstm(
        H, norm_x=ln, norm_h=ln, norm_c=ln, carry_normalized=True, forget_bias=1.0
    )
    close(ours(layer, x, w_x=w_x, w_h=w_h, bias=b, norm_x=n_x, norm_h=n_h, norm_c=n_c), want)
    close(recurrent.lstm(2, forget_bias=1.0).start_bias(float)["bias"], [0, 0, 1, 1, 0, 0, 0, 0])


def torch_custom_lstms():
    torch = pytest.importorskip("torch", reason="torch is absent: make peers")
    x, w_x, w_h = draw(B, T, F), draw(F, 4 * H), draw(H, 4 * H)
    n_x, n_h, n_c = affine(4 * H), affine(4 * H), affine(H)

    def norm(z, n):
        scale, bias = map(torch.from_numpy, n)
        return torch.nn.functional.layer_norm(torch.from_numpy(z), scale.shape, scale, bias).numpy()

    want = lstm_loop(
        x, lambda x, h: norm(x @ w_x, n_x) + norm(h @ w_h, n_h), lambda c: norm(c, n_c)
    )
    ln = nj.layer_norm()
    layer = recurrent.lstm(H, norm_x=ln, norm_h=ln, norm_c=ln, carry_normalized=True)
    got = ours(layer, x, w_x=w_x, w_h=w_h, norm_x=n_x, norm_h=n_h, norm_c=n_c)
    close(got, want)
    carried_as_it_is = recurrent.ln_lstm(H)
    unlike = ours(carried_as_it_is, x, w_x=w_x, w_h=w_h, norm_x=n_x, norm_h=n_h, norm_c=n_c)
    assert np.abs(unlike - want).max() > 0.01


def torchaudio_custom_lstm():
    x, w_x, w_h, n_sum, n_c = (
        draw(B, T, F),
        draw(F, 4 * H),
        draw(H, 4 * H),
        affine(4 * H),
        affine(H),
    )
    want = lstm_loop(
        x,
        lambda x, h: row_norm(x @ w_x + h @ w_h, 1e-5, *n_sum),
        lambda c: row_norm(c, 1e-5, *n_c),
    )
    ln = nj.layer_norm()
    layer = recurrent.lstm(H, norm_sum=ln, norm_c=ln, carry_normalized=True)
    close(ours(layer, x, w_x=w_x, w_h=w_h, norm_sum=n_sum, norm_c=n_c), want)


def keras_outputs_past_the_end():
    x, lengths = draw(B, T, F), np.array([5, 3, 1, 2])
    layer = recurrent.rnn(H)
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    (y, _), _ = layer.apply(params, state, x, stats="running", lengths=lengths)
    h, out, want = np.zeros((B, H)), np.zeros((B, H)), []
    for t in range(T):
        new = np.tanh(x[:, t] @ params["w_x"] + h @ params["w_h"] + params["bias"])
        alive = (t < lengths)[:, None]
        h, out = np.where(alive, new, h), np.where(alive, new, out)
        want.append(out)
    last = np.minimum(np.arange(T), lengths[:, None] - 1)
    close(np.take_along_axis(np.asarray(y), last[..., None], axis=1), np.stack(want, 1))


def torch_packed_sequences():
    torch = pytest.importorskip("torch", reason="torch is absent: make peers")
    x, lengths = draw(B, T, F), np.array([5, 3, 1, 2])
    theirs = torch.nn.GRU(F, H, batch_first=True, dtype=torch.float64)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x), torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
    )
    out, last = theirs(packed)
    want, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
    layer = recurrent.gru(H)
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    params = recurrent.from_torch(layer, tensors, params)
    (y, carry), _ = layer.apply(params, state, x, stats="running", lengths=lengths)
    close(y, want.detach().numpy())
    close(carry, last[0].detach().numpy())


def torch_counts_padding():
    torch = pytest.importorskip("torch", reason="torch is absent: make peers")
    x, lengths = 3 + draw(B, T, F), np.array([5, 3, 1, 2])
    mask = (np.arange(T) < lengths[:, None])[..., None]
    x = np.where(mask, x, 0.0)  # padded with zeros
    bn = torch.nn.BatchNorm1d(F, dtype=torch.float64)
    want = bn(torch.from_numpy(x).transpose(1, 2)).transpose(1, 2).detach().numpy()
    norm = nj.batch_norm(decay=0.9, correction=1)
    params, state = norm.init(x.shape, jnp.float64)
    y, new = norm.apply(params, state, x, stats="batch")
    close(y, want)
    close(new.mean, bn.running_mean.numpy())
    _, masked = norm.apply(params, state, x, stats="batch", mask=mask)
    close(masked.mean, 0.1 * x.sum((0, 1)) / mask.sum())


def keras_masked_batch_normalization():
    x, mask = 3 + draw(B, T, F), RNG.random((B, T, 1)) < 0.6
    n = mask.sum() + 1e-7  # Keras's backend.epsilon()
    mean = (mask * x).sum((0, 1)) / n
    var = (mask * (mask * x - mean) ** 2).sum((0, 1)) / n
    norm = nj.batch_norm(decay=0.0, eps=1e-3)
    params, state = norm.init(x.shape, jnp.float64)
    y, new = norm.apply(params, state, x, stats="batch", mask=mask)
    want = (x - mean) / np.sqrt(var + 1e-3)
    np.testing.assert_allclose(new.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(new.var, var, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(y)[mask[..., 0]], want[mask[..., 0]], rtol=0, atol=1e-5)


def joint_starts():
    key = jax.random.key(0)
    joint, _ = recurrent.lstm(H, recurrent_init="orthogonal_joint").init(key, F, jnp.float64)
    torch = pytest.importorskip("torch", reason="torch is absent: make peers")
    theirs = torch.nn.init.orthogonal_(torch.empty(4 * H, H, dtype=torch.float64)).numpy().T
    for w_h in (theirs, joint["w_h"]):
        close(w_h @ w_h.T, np.eye(H))
    glorot = jax.nn.initializers.glorot_uniform()
    wide, _ = recurrent.lstm(64, kernel_init=glorot).init(key, 32, jnp.float64)
    limit = np.sqrt(6 / (32 + 4 * 64))
    assert 0.95 * limit < np.abs(wide["w_x"]).max() <= limit


def ghost_averages():
    torch = pytest.importorskip("torch", reason="torch is absent: make peers")
    x, decay = 1 + draw(8, F), 0.9
    bn = torch.nn.BatchNorm1d(F, momentum=1 - decay, dtype=torch.float64)
    want = np.concatenate([bn(torch.from_numpy(part)).detach().numpy() for part in np.split(x, 2)])
    ghost = nj.ghost_batch_norm(size=4, decay=decay)
    params, state = ghost.init(x.shape, jnp.float64)
    y, once = ghost.apply(params, state, x, stats="batch")
    close(y, want)
    close(once.mean, (1 - decay) * x.mean(0))
    norm = nj.batch_norm(decay=decay, correction=1)
    for part in np.split(x, 2):
        _, state = norm.apply(params, state, part, stats="batch")
    close(state.mean, bn.running_mean.numpy())
    close(state.var, bn.running_var.numpy())


def renorm_averages():
    x, eps = 1 + draw(6, F), 1e-3
    renorm_mean, renorm_stddev = draw(F), np.exp(draw(F) / 4)
    stddev = np.sqrt(x.var(0) + eps)
    r = np.clip(stddev / renorm_stddev, 1 / 1.2, 1.2)
    d = np.clip((x.mean(0) - renorm_mean) / renorm_stddev, -0.5, 0.5)
    norm = nj.batch_renorm(eps=eps, r_max=1.2, d_max=0.5)
    params, _ = norm.init(x.shape, jnp.float64)
    state = nj.Running(jnp.asarray(renorm_mean), jnp.asarray(renorm_stddev**2 - eps))
    y, _ = norm.apply(params, state, x, stats="batch")
    close(y, (x - x.mean(0)) / stddev * r + d)


def keras_spectral_normalization():
    kernel, u = draw(5, 4), draw(4)
    u /= np.linalg.norm(u)
    v = kernel @ u / np.linalg.norm(kernel @ u)
    new_u = v @ kernel / np.linalg.norm(v @ kernel)
    sigma = v @ kernel @ new_u
    norm = nj.spectral_norm()
    params, state = norm.init(jnp.asarray(kernel))
    w, new = norm.apply(params, state._replace(right=jnp.asarray(u)), stats="batch")
    close(w, kernel / sigma)
    close(new.right, new_u)


def torch_spectral_norm():
    torch = pytest.importorskip("torch", reason="torch is absent: make peers")
    linear = torch.nn.Linear(5, 4, dtype=torch.float64)
    weight = jnp.asarray(linear.weight.detach().numpy())
    torch.nn.utils.parametrizations.spectral_norm(linear)
    theirs = linear.parametrizations.weight[0]
    left, right = (jnp.asarray(v.numpy().copy()) for v in (theirs._u, theirs._v))
    norm = nj.spectral_norm(axes=0)
    params, state = norm.init(weight)
    state = state._replace(left=left, right=right)
    for _ in range(3):
        want = linear.weight.detach().numpy()
        w, state = norm.apply(params, state, stats="batch")
        close(w, want)
    close(state.left, theirs._u.numpy())


def flax_transposed_kernel():
    x = jnp.asarray(draw(2, 5, 5, 4))
    conv = nn.ConvTranspose(4, (3, 3), transpose_kernel=True, param_dtype=jnp.float64)
    kernel = jnp.asarray(draw(3, 3, 4, 4))
    norm = nj.batch_norm()
    params = jax.tree.map(jnp.asarray, affine(4))
    state = nj.Running(jnp.asarray(draw(4)), jnp.asarray(np.exp(draw(4))))
    z = conv.apply({"params": {"kernel": kernel, "bias": jnp.zeros(4)}}, x)
    want, _ = norm.apply(params, state, z, stats="running")
    folded, bias = nj.fold_conv(kernel, None, nj.fold(norm, params, state), output_axis=-2)
    close(conv.apply({"params": {"kernel": folded, "bias": bias}}, x), want)


ROWS = {
    "Keras `BatchNormalization()`": keras_batch_normalization,
    "Keras `LayerNormalization()`, `GroupNormalization(2)`": keras_layer_normalization,
    "Keras `LSTM(H)`": keras_lstm,
    "Keras `GRU(H)`": keras_gru,
    "TensorFlow Addons `LayerNormLSTMCell`": tensorflow_addons_ln_lstm,
    "PyTorch's `custom_lstms.LayerNormLSTMCell`": torch_custom_lstms,
    "torchaudio `_CustomLSTM(layer_norm=True)`": torchaudio_custom_lstm,
    "Keras outputs past the end": keras_outputs_past_the_end,
    "PyTorch packed sequences": torch_packed_sequences,
    "`BatchNorm1d` on padding": torch_counts_padding,
    "Keras `BatchNormalization` with a mask": keras_masked_batch_normalization,
    "Orthogonal and Glorot starts": joint_starts,
    "Ghost batch norm by a loop": ghost_averages,
    "TensorFlow `renorm=True`": renorm_averages,
    "Keras `SpectralNormalization`": keras_spectral_normalization,
    "PyTorch `spectral_norm`": torch_spectral_norm,
    "Flax `ConvTranspose(transpose_kernel=True)`": flax_transposed_kernel,
}


def test_each_row_of_the_table_is_tested():
    section = PAGE.split("## Theirs and ours, exactly\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (?!theirs|---)(.+?) \| ", section, re.M)
    assert rows == list(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_exact(x64, row):
    ROWS[row]()
