"""Presets against loops of their papers' equations: values, statistics, lengths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import recurrent
from tests._support import reference
from tests._support.few import few
from tests._support.properties import scattered

B, T, F, H = 8, 7, 3, 5
LENGTHS = np.array([7, 1, 1, 2, 3, 6, 7, 5])


def _started(layer):
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    x = jax.random.normal(jax.random.key(1), (B, T, F), jnp.float64)
    return scattered(params, 0.3, 3), state, x


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


def _loop(name, params, x, lengths):
    """Outputs and last hidden state by a NumPy loop."""
    _, cell, norms = CASES[name]
    keywords = {"activation": _relu20} if cell == "rnn" else {}
    built = norms(params, x, lengths)
    y, h, *_ = getattr(reference, cell)(
        params, np.asarray(x), norms=built, lengths=lengths, **keywords
    )
    return y, h


def _slope(function, args, step=2e-5):
    """Derivative along a random direction, from five points, and the direction."""
    keys = iter(jax.random.split(jax.random.key(2), 64))
    v = jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape, a.dtype), args)
    at = lambda s: function(*jax.tree.map(lambda a, d: a + s * d, args, v))  # noqa: E731
    near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
    return (8 * near - far) / (12 * step), v


# One of each cell, of each kind of norm and of each lift.
KINDS = ("bn_lstm", "bn_gru", "vertical_sequence_wise", "deep_speech_rnn", "ln_gru", "rms_lstm")
BY_LENGTH = {f"{name}-lengths": (name, LENGTHS) for name in CASES}
BY_LENGTH |= {f"{name}-full": (name, None) for name in KINDS}


@pytest.mark.parametrize(("name", "lengths"), few(BY_LENGTH, "bn_lstm-lengths", "ln_lstm-lengths"))
def test_preset_equals_the_loop_and_its_gradient(x64, name, lengths):
    """Values and last carry; and the gradient against differences of the loop, not of ours."""
    layer = CASES[name][0]
    params, state, x = _started(layer)
    w = np.asarray(jax.random.normal(jax.random.key(5), (B, T, H), jnp.float64))

    @jax.jit
    def run(params, x):
        (y, carry), _ = layer.apply(params, state, x, stats="batch", lengths=lengths)
        return jnp.sum(w * y), (y, getattr(carry, "h", carry))

    want, h = _loop(name, params, x, lengths)
    (_, (y, end)), grads = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(params, x)
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(end, h, rtol=1e-9, atol=1e-11)
    slope, v = _slope(lambda p, x: np.sum(w * _loop(name, p, x, lengths)[0]), (params, x))
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(v), strict=True)
    np.testing.assert_allclose(sum(jnp.vdot(g, d) for g, d in pairs), slope, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_presets_stacked_and_in_both_directions(x64, name):
    """Two layers of both directions equal the loops, one after the other, and their gradient."""
    layer = CASES[name][0]
    net = recurrent.stack([recurrent.bidirectional(layer), recurrent.bidirectional(layer)])
    params, state, x = _started(net)
    w = np.asarray(jax.random.normal(jax.random.key(5), (B, T, 2 * H), jnp.float64))

    def loop(params, x):
        y = np.asarray(x)
        for i in range(2):
            p = params[f"layer_{i}"]
            forward, _ = _loop(name, p["forward"], y, LENGTHS)
            backward, _ = _loop(name, p["backward"], reference.reverse(y, LENGTHS), LENGTHS)
            y = np.concatenate([forward, reference.reverse(backward, LENGTHS)], axis=-1)
        return y

    @jax.jit
    def run(params, x):
        (y, _), _ = net.apply(params, state, x, stats="batch", lengths=LENGTHS)
        return jnp.sum(w * y), y

    (_, y), grads = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(params, x)
    np.testing.assert_allclose(y, loop(params, x), rtol=1e-9, atol=1e-11)
    slope, v = _slope(lambda p, x: np.sum(w * loop(p, x)), (params, x))
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(v), strict=True)
    np.testing.assert_allclose(sum(jnp.vdot(g, d) for g, d in pairs), slope, rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bn_lstm", "ln_gru"])
def test_layers_scanned_over_have_the_gradients_of_the_stack(x64, name):
    """Weights of equal layers stacked on a leading axis, one scan over them, with remat."""
    layer = {"bn_lstm": recurrent.bn_lstm(H, T), "ln_gru": recurrent.ln_gru(H)}[name]
    depth, x = 3, jax.random.normal(jax.random.key(1), (B, T, H), jnp.float64)
    made = [layer.init(k, H, jnp.float64) for k in jax.random.split(jax.random.key(0), depth)]
    params, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)

    def scanned(params, state, x):
        @jax.checkpoint
        def one(y, at):
            (y, _), new = layer.apply(*at, y, stats="batch", lengths=LENGTHS)
            return y, new

        y, new = jax.lax.scan(one, x, (params, state))
        return jnp.sum(jnp.sin(y)), new

    def stacked(params, state, x):
        net = recurrent.stack([layer] * depth)
        own = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)  # noqa: E731
        parts = [{f"layer_{i}": own(t, i) for i in range(depth)} for t in (params, state)]
        (y, _), new = net.apply(*parts, x, stats="batch", lengths=LENGTHS)
        rows = [new[f"layer_{i}"] for i in range(depth)]
        return jnp.sum(jnp.sin(y)), jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

    results = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 2), has_aux=True))(params, state, x)
        for f in (scanned, stacked)
    ]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "bn_lstm",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("bn_gru", "ln_lstm", "deep_speech_rnn")
        ),
    ],
)
def test_gradients_in_bfloat16_point_the_way_of_float32(name):
    """Statistics stay in float32, so half precision turns the gradient by a few degrees only."""
    layer = CASES[name][0]
    params, state = layer.init(jax.random.key(0), F)
    x = jax.random.normal(jax.random.key(1), (B, T, F)).astype(jnp.bfloat16)

    @jax.jit
    def grad(x):
        def loss(params):
            (y, _), new = layer.apply(params, state, x, stats="batch", lengths=LENGTHS)
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), new

        return jax.grad(loss, has_aux=True)(params)

    half, kept = grad(x)
    full, exact = grad(x.astype(jnp.float32))
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(half))
    a, b = (np.concatenate([np.ravel(v) for v in jax.tree.leaves(g)]) for g in (half, full))
    np.testing.assert_allclose(a @ b, np.linalg.norm(a) * np.linalg.norm(b), rtol=0.005)
    np.testing.assert_allclose(np.linalg.norm(a), np.linalg.norm(b), rtol=0.03)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0.01, atol=0.02)


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
