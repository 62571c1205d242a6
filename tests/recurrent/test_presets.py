"""Presets against loops of their papers' equations: values, statistics, lengths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import recurrent
from tests import reference

B, T, F, H = 8, 7, 3, 5
LENGTHS = np.array([7, 1, 1, 2, 3, 6, 7, 5])


def _started(layer):
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    leaves = [
        v + 0.3 * jax.random.normal(k, v.shape, v.dtype) for v, k in zip(leaves, keys, strict=True)
    ]
    x = jax.random.normal(jax.random.key(1), (B, T, F), jnp.float64)
    return jax.tree.unflatten(tree, leaves), state, x


class Rows:
    """A norm of each row by itself: layer norm, or RMS norm without the centre."""

    def __init__(self, params, *, eps=1e-5, centred=True):
        self.gamma, self.beta = (None if v is None else np.asarray(v) for v in params)
        self.eps, self.centred = eps, centred

    def __call__(self, z, t, live):
        d = z - z.mean(1, keepdims=True) if self.centred else z
        y = d / np.sqrt((d**2).mean(1, keepdims=True) + self.eps) * self.gamma
        return y if self.beta is None else y + self.beta


def _steps(params, *places, **kw):
    return {
        p: reference.StepNorm(
            *(None if v is None else np.asarray(v) for v in params[f"norm_{p}"]), **kw
        )
        for p in places
    }


def _rows(params, *places, **kw):
    return {p: Rows(params[f"norm_{p}"], **kw) for p in places}


class Whole:
    """Sequence-wise statistics: the input terms of all steps, known beforehand."""

    def __init__(self, params, x, w_x, lengths):
        z = np.asarray(x) @ np.asarray(w_x)
        live = None if lengths is None else np.arange(T)[None, :, None] < lengths[:, None, None]
        self.mean, self.var, _ = reference.moments(z, (0, 1), live)
        self.gamma = np.asarray(params.scale)

    def __call__(self, z, t, live):
        return (z - self.mean) / np.sqrt(self.var + 1e-5) * self.gamma


def _relu20(z):
    return np.minimum(np.maximum(z, 0), 20)


CASES = {
    "bn_lstm": (recurrent.bn_lstm(H, T), "lstm", lambda p, x, n: _steps(p, "x", "h", "c")),
    "bn_gru": (recurrent.bn_gru(H, T), "gru", lambda p, x, n: _steps(p, "x", "h", "xn", "hn")),
    "vertical_frame_wise": (
        recurrent.vertical_bn_lstm(H, T),
        "lstm",
        lambda p, x, n: _steps(p, "x"),
    ),
    "vertical_sequence_wise": (
        recurrent.vertical_bn_lstm(H),
        "lstm",
        lambda p, x, n: {"x": Whole(p["norm_x"], x, p["w_x"], n)},
    ),
    "deep_speech_rnn": (
        recurrent.deep_speech_rnn(H),
        "rnn",
        lambda p, x, n: {"x": Whole(p["norm_x"], x, p["w_x"], n)},
    ),
    "ln_lstm": (recurrent.ln_lstm(H), "lstm", lambda p, x, n: _rows(p, "x", "h", "c")),
    "ln_gru": (recurrent.ln_gru(H), "gru", lambda p, x, n: _rows(p, "x", "h", "xn", "hn")),
    "rms_lstm": (
        recurrent.rms_lstm(H),
        "lstm",
        lambda p, x, n: _rows(p, "x", "h", "c", centred=False),
    ),
} | {
    f"ablation_{name}": (
        layer,
        "lstm",
        lambda p, x, n: _steps(p, *(k.removeprefix("norm_") for k in p if k.startswith("norm"))),
    )
    for name, layer in recurrent.bn_lstm_ablations(H, T).items()
    if name not in ("bn_lstm", "carry_normalized")
}


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("name", CASES)
def test_preset_equals_the_loop(x64, name, lengths):
    layer, cell, norms = CASES[name]
    params, state, x = _started(layer)
    (y, carry), _ = layer.apply(params, state, x, stats="batch", lengths=lengths)
    keywords = {"activation": _relu20} if cell == "rnn" else {}
    run = getattr(reference, cell)
    want, h, *_ = run(
        params, np.asarray(x), norms=norms(params, x, lengths), lengths=lengths, **keywords
    )
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(getattr(carry, "h", carry), h, rtol=1e-9, atol=1e-11)


def test_weight_norm_is_made_once_and_leaves_the_start_unchanged(x64):
    layer, plain = recurrent.wn_lstm(H), recurrent.lstm(H)
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    same, plain_state = plain.init(jax.random.key(0), F, jnp.float64)
    x = jax.random.normal(jax.random.key(1), (B, T, F), jnp.float64)
    (y, _), _ = layer.apply(params, state, x, stats="batch", lengths=LENGTHS)
    (want, _), _ = plain.apply(same, plain_state, x, stats="batch", lengths=LENGTHS)
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)
    # And it goes wherever a layer goes.
    net = recurrent.stack([layer, recurrent.bidirectional(layer)])
    params, state = net.init(jax.random.key(0), F, jnp.float64)
    (y, _), _ = net.apply(params, state, x, stats="batch", lengths=LENGTHS)
    assert y.shape == (B, T, 2 * H)


def test_gammas_start_as_published():
    start = lambda layer: {  # noqa: E731
        k: float(v.scale[0]) for k, v in layer.init(jax.random.key(0), F)[0].items() if "norm" in k
    }
    assert set(start(recurrent.bn_lstm(H, T)).values()) == {float(np.float32(0.1))}
    assert set(start(recurrent.bn_lstm_ablations(H, T)["gamma_1"]).values()) == {1.0}
    assert set(start(recurrent.ln_lstm(H)).values()) == {1.0}
    assert set(start(recurrent.vertical_bn_lstm(H)).values()) == {1.0}
