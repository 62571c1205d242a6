"""Weight methods against NumPy in float64, PyTorch, and the identities of their papers."""

from __future__ import annotations

import inspect
import pickle

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from tests._support import reference

CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def rand(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def f64(x):
    return np.asarray(x, np.float64)


# Weight norm.


@pytest.mark.parametrize("shape, axes", [((5, 3), None), ((5, 3), 1), ((3, 3, 2, 4), None)])
def test_weight_norm_is_g_v_over_its_length(shape, axes):
    v, over = rand(0, *shape), tuple(range(len(shape) - 1)) if axes is None else (axes,)
    length = np.sqrt((f64(v) ** 2).sum(over, keepdims=True))
    g = np.abs(f64(rand(1, *np.squeeze(length, over).shape)))
    norm = nj.weight_norm(axes=axes)
    params, state = norm.init(v)
    np.testing.assert_allclose(params.g, np.squeeze(length, over), rtol=1e-6)
    w, _ = norm.apply(params._replace(g=jnp.asarray(g, jnp.float32)), state, stats="batch")
    np.testing.assert_allclose(w, np.expand_dims(g, over) * f64(v) / length, rtol=1e-5)
    log = nj.weight_norm(axes=axes, log_scale=True)
    stored = params._replace(g=jnp.asarray(np.log(g), jnp.float32))
    np.testing.assert_allclose(log.apply(stored, state, stats="batch")[0], w, rtol=1e-5)


def test_weight_norm_gradients_are_those_of_the_paper(x64):
    v, g, dw = rand(0, 5, 3, dtype=jnp.float64), jnp.array([0.5, 2.0, 3.0]), rand(1, 5, 3)
    dw = dw.astype(jnp.float64)
    norm = nj.weight_norm()

    def loss(params):
        return jnp.sum(dw * norm.apply(params, (), stats="batch")[0])

    got = jax.grad(loss)(nj.DirectionAndGain(v, g))
    for j in range(3):
        a, d = f64(v[:, j]), f64(dw[:, j])
        length = np.linalg.norm(a)
        np.testing.assert_allclose(got.g[j], a @ d / length, rtol=1e-10)
        projection = np.eye(5) - np.outer(a, a) / length**2
        np.testing.assert_allclose(got.v[:, j], g[j] / length * projection @ d, rtol=1e-9)


@pytest.mark.parametrize("train, moves", [("both", "vg"), ("direction", "v"), ("scale", "g")])
def test_train_says_what_gradients_reach(train, moves):
    norm = nj.weight_norm(train=train)
    params, state = norm.init(rand(0, 4, 3))
    grads = jax.grad(lambda p: jnp.sum(norm.apply(p, state, stats="batch")[0] ** 3))(params)
    assert [name for name in "vg" if np.any(getattr(grads, name))] == list(moves)


def test_a_zero_kernel_stays_zero_and_learns():
    norm = nj.weight_norm()
    params, state = norm.init(jnp.zeros((4, 3)))
    make = lambda p: norm.apply(p, state, stats="batch")[0]  # noqa: E731
    assert not np.any(make(params))
    x = rand(0, 16, 4)
    loss = lambda p: jnp.mean((x @ make(p) - x[:, :3]) ** 2)  # noqa: E731
    start = loss(params)
    step = jax.jit(lambda p: jax.tree.map(lambda p, g: p - 0.2 * g, p, jax.grad(loss)(p)))
    for _ in range(200):
        params = step(params)
    assert loss(params) < 0.05 * start


def test_one_layer_with_weight_norm_is_batch_norm_on_whitened_input():
    """Salimans and Kingma, section 2.2: then mean[t] = 0 and var[t] = ||v||^2."""
    raw = np.random.default_rng(0).normal(size=(64, 6))
    q, _ = np.linalg.qr(raw - raw.mean(0))
    x = jnp.asarray(q * np.sqrt(64), jnp.float32)
    v = rand(1, 6, 4)
    w, _ = nj.weight_norm().apply(nj.DirectionAndGain(v, jnp.ones(4)), (), stats="batch")
    np.testing.assert_allclose(x @ w, reference.batch_norm(f64(x) @ f64(v), eps=0.0), **CLOSE)


def test_weight_norm_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="leave biases"):
        nj.weight_norm().init(jnp.ones(3))
    with pytest.raises(ValueError, match="did you mean 'direction'"):
        inspect.unwrap(nj.weight_norm)(train="directon")
    with pytest.raises(ValueError, match="averages over nothing"):
        nj.weight_norm(axes=())


def test_weight_norm_is_torchs():
    torch = pytest.importorskip("torch")
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 3, bias=False))
    stored = layer.parametrizations.weight
    g, v = stored.original0.detach().numpy(), stored.original1.detach().numpy()
    with torch.no_grad():
        stored.original0.mul_(1.7)
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    out = layer(torch.as_tensor(x))
    out.pow(2).sum().backward()

    norm = nj.weight_norm(axes=1)
    params, state = norm.init(jnp.asarray(v))
    np.testing.assert_allclose(params.g, g[:, 0] / 1.7, rtol=1e-6)
    params = params._replace(g=params.g * 1.7)
    make = lambda p: norm.apply(p, state, stats="batch")[0]  # noqa: E731
    np.testing.assert_allclose(x @ make(params).T, out.detach().numpy(), **CLOSE)
    grads = jax.grad(lambda p: jnp.sum((x @ make(p).T) ** 2))(params)
    np.testing.assert_allclose(grads.g, stored.original0.grad.numpy()[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grads.v, stored.original1.grad.numpy(), rtol=1e-4, atol=1e-4)


# Data-dependent initialization, and the companion of weight norm.


def test_data_dependent_init_is_the_papers():
    t = rand(0, 32, 3, 4) * 3 + 2
    mean, var, _ = reference.moments(t, (0, 1))
    g, b = nj.data_dependent_init(t, scale=0.5)
    np.testing.assert_allclose(g, 0.5 / np.sqrt(var), rtol=1e-5)
    np.testing.assert_allclose(b, -0.5 * mean / np.sqrt(var), rtol=1e-5)
    mask = jnp.arange(32)[:, None, None] < 20
    half, _ = nj.data_dependent_init(jnp.where(mask, t, jnp.nan), mask=mask)
    np.testing.assert_allclose(half, 1 / np.sqrt(reference.moments(t[:20], (0, 1))[1]), rtol=1e-5)


@pytest.mark.parametrize("log_scale", [False, True])
def test_a_stack_starts_with_unit_pre_activations(log_scale):
    norm = nj.weight_norm(log_scale=log_scale)
    conv = lambda w, x: jax.lax.conv_general_dilated(  # noqa: E731
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    pool = lambda y: jax.nn.relu(y).mean((1, 2))  # noqa: E731
    dense = lambda w, x: x @ w  # noqa: E731
    layers = [(conv, jax.nn.relu), (conv, pool), (dense, jax.nn.relu), (dense, lambda y: y)]
    shapes = [(3, 3, 2, 6), (3, 3, 6, 8), (8, 10), (10, 5)]
    params = [{"kernel": rand(i, *s), "bias": jnp.ones(s[-1])} for i, s in enumerate(shapes)]
    del params[2]["bias"]
    x = rand(9, 64, 6, 6, 2) * 2 + 1
    made, out = nj.data_dependent_stack(layers, params, x, norm=norm)
    y = x
    for (linear, activation), own, first in zip(layers, made, params, strict=True):
        np.testing.assert_array_equal(own["kernel"].v, first["kernel"])
        w, _ = norm.apply(own["kernel"], (), stats="batch")
        t = linear(w, y)
        if "bias" in own:
            t = t + own["bias"].reshape((1,) * (t.ndim - 1) + (-1,))
            np.testing.assert_allclose(f64(t).mean(tuple(range(t.ndim - 1))), 0, atol=1e-4)
        np.testing.assert_allclose(f64(t).std(tuple(range(t.ndim - 1))), 1, rtol=1e-3)
        y = activation(t)
    np.testing.assert_allclose(out, y, rtol=1e-4, atol=1e-4)
    assert "bias" not in made[2]


def test_data_dependent_stack_says_what_is_wrong():
    dense = (lambda w, x: x @ w, jnp.tanh)
    good = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    with pytest.raises(ValueError, match="2 layers and 1 params"):
        nj.data_dependent_stack([dense, dense], [good], rand(0, 8, 3))
    with pytest.raises(TypeError, match="no other has a gain"):
        nj.data_dependent_stack([dense], [good], rand(0, 8, 3), norm=nj.spectral_norm())
    with pytest.raises(ValueError, match="leave the output features"):
        nj.data_dependent_stack([dense], [good], rand(0, 8, 3), norm=nj.weight_norm(axes=1))


def test_weight_norm_with_mean_only_batch_norm():
    x, v, g = rand(0, 32, 5) + 1, rand(1, 5, 3), jnp.array([1.0, 2.0, 0.5])
    w, _ = nj.weight_norm().apply(nj.DirectionAndGain(v, g), (), stats="batch")
    norm = nj.mean_only_batch_norm()
    params, state = norm.init((1, 3))
    y, _ = norm.apply(params, state, x @ w, stats="batch")
    t = f64(x) @ (f64(g) * f64(v) / np.linalg.norm(f64(v), axis=0))
    np.testing.assert_allclose(y, t - t.mean(0), rtol=1e-4, atol=1e-5)
    # With g from the data it is batch norm's first batch.
    gain, _ = nj.data_dependent_init(x @ (w / g[None]))
    w, _ = nj.weight_norm().apply(nj.DirectionAndGain(v, gain), (), stats="batch")
    y, _ = norm.apply(params, state, x @ w, stats="batch")
    np.testing.assert_allclose(y, reference.batch_norm(f64(x) @ f64(v), eps=0.0), **CLOSE)


# Weight standardization.


@pytest.mark.parametrize("fan_in", [False, True])
def test_weight_standardization_is_the_papers(fan_in):
    v, g = rand(0, 3, 3, 2, 4) * 0.1 + 0.3, jnp.array([1.0, 2.0, -1.0, 0.5])
    norm = nj.weight_standardization(use_gain=True, fan_in=fan_in)
    _, state = norm.init(v)
    w, _ = norm.apply(nj.DirectionAndGain(v, g), state, stats="batch")
    flat = f64(v).reshape(-1, 4)
    want = f64(g) * (flat - flat.mean(0)) / flat.std(0)
    want = want / np.sqrt(18) if fan_in else want
    np.testing.assert_allclose(f64(w).reshape(-1, 4), want, rtol=1e-5, atol=1e-6)


def test_weight_standardization_has_a_floor():
    norm = nj.weight_standardization(eps=0.25)
    params, state = norm.init(jnp.array([[-1.0], [1.0]]))
    w, _ = norm.apply(params, state, stats="batch")
    np.testing.assert_allclose(f64(w).ravel(), [-1 / np.sqrt(1.25), 1 / np.sqrt(1.25)], rtol=1e-6)


# Spectral norm.


@pytest.mark.parametrize(
    "shape, axes", [((5, 3), None), ((3, 5), None), ((3, 2, 2, 4), None), ((4, 3, 2), 2)]
)
def test_spectral_norm_divides_by_the_largest_singular_value(shape, axes):
    w = rand(0, *shape)
    norm = nj.spectral_norm(axes=axes)
    params, state = norm.init(w)
    over = tuple(range(len(shape) - 1)) if axes is None else (axes,)
    kept = tuple(a for a in range(len(shape)) if a not in over)
    rows = int(np.prod([shape[a] for a in over]))
    sigma = np.linalg.svd(f64(w).transpose(over + kept).reshape(rows, -1))[1][0]
    for stats in ("batch", "running"):
        got, state = norm.apply(params, state, stats=stats)
        np.testing.assert_allclose(got, f64(w) / sigma, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.sigma, sigma, rtol=1e-5)


def test_spectral_norm_follows_a_weight_that_changed():
    norm = nj.spectral_norm()
    _, old = norm.init(rand(0, 6, 4))
    w = rand(1, 6, 4)
    sigma = np.linalg.svd(f64(w))[1][0]
    params, state = nj.DirectionAndGain(w, None), old
    errors = []
    for _ in range(60):
        got, state = norm.apply(params, state, stats="batch")
        errors.append(abs(np.linalg.svd(f64(got))[1][0] - 1))
    assert errors[-1] < 1e-5 < errors[0]
    np.testing.assert_allclose(state.sigma, sigma, rtol=1e-5)
    # More iterations at once are more updates of one.
    at_once, _ = nj.spectral_norm(iterations=60).apply(params, old, stats="batch")
    np.testing.assert_allclose(at_once, got, rtol=1e-5)


def test_spectral_norm_gradient_is_the_papers(x64):
    """Miyato et al., equation 12: (G - <G, W> l r^T) / sigma, with <G, W> = sum(G * V) / sigma."""
    v, d = rand(0, 5, 3).astype(jnp.float64), rand(1, 5, 3).astype(jnp.float64)
    norm = nj.spectral_norm()
    params, state = norm.init(v)
    got = jax.grad(lambda p: jnp.sum(d * norm.apply(p, state, stats="batch")[0]))(params).v
    u, s, vh = np.linalg.svd(f64(v))
    want = (f64(d) - (f64(d) * f64(v)).sum() / s[0] * np.outer(u[:, 0], vh[0])) / s[0]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)


def test_spectral_norm_wakes_from_zero():
    norm = nj.spectral_norm()
    _, state = norm.init(jnp.zeros((4, 3)))
    w = jnp.zeros((4, 3)).at[:, 2].set(3.0)
    got, _ = norm.apply(nj.DirectionAndGain(w, None), state, stats="batch")
    np.testing.assert_allclose(np.linalg.norm(f64(got), 2), 1, rtol=1e-6)


def test_spectral_norm_of_complex_weights():
    w = jax.lax.complex(rand(0, 5, 3), rand(1, 5, 3))
    norm = nj.spectral_norm()
    got, _ = norm.apply(*norm.init(w), stats="batch")
    sigma = np.linalg.svd(np.asarray(w, np.complex128))[1][0]
    np.testing.assert_allclose(got, np.asarray(w) / sigma, rtol=1e-5)


def test_spectral_norm_is_torchs():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(5, 3, bias=False))
    stored = layer.parametrizations.weight
    v = stored.original.detach().numpy()
    out, inp = (getattr(stored[0], n).numpy().copy() for n in ("_u", "_v"))
    want = layer.weight  # one power iteration, then the weight
    d = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    (want * torch.as_tensor(d)).sum().backward()

    # Torch starts an iteration at the outputs, as ours starts at the inputs of the transpose.
    norm = nj.spectral_norm()
    _, state = norm.init(jnp.asarray(v))
    state = state._replace(left=jnp.asarray(out), right=jnp.asarray(inp))
    make = lambda p: norm.apply(p, state, stats="batch")  # noqa: E731
    params = nj.DirectionAndGain(jnp.asarray(v), None)
    got, moved = make(params)
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved.left, stored[0]._u.numpy(), rtol=1e-5, atol=1e-6)
    grads = jax.grad(lambda p: jnp.sum(make(p)[0] * d))(params)
    np.testing.assert_allclose(grads.v, stored.original.grad.numpy(), rtol=1e-4, atol=1e-5)


# Cosine norm.


@pytest.mark.parametrize("centered", [False, True])
def test_cosine_dense_is_the_cosine(centered):
    layer = nj.cosine_dense(4, centered=centered, use_scale=True, use_bias=True)
    params, state = layer.init(jax.random.key(0), features=6)
    params = {**params, "scale": rand(1, 4), "bias": rand(2, 4)}
    x = rand(3, 5, 2, 6) * 3 + 1
    y, _ = jax.jit(lambda p, x: layer.apply(p, state, x, stats="batch"))(params, x)
    want = np.zeros((5, 2, 4))
    for index in np.ndindex(5, 2):
        for j in range(4):
            a, b = f64(x[index]), f64(params["kernel"][:, j])
            if centered:
                np.testing.assert_allclose(
                    np.corrcoef(a, b)[0, 1],
                    (c := (a - a.mean()) @ (b - b.mean()) / a.std() / b.std() / 6),
                )
            else:
                c = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            want[(*index, j)] = c * f64(params["scale"][j]) + f64(params["bias"][j])
    np.testing.assert_allclose(y, want, **CLOSE)


@pytest.mark.parametrize("centered", [False, True])
def test_cosine_dense_on_hard_inputs(centered):
    layer = nj.cosine_dense(3, centered=centered)
    params, state = layer.init(jax.random.key(0), features=4)
    loss = lambda p, x: jnp.sum(layer.apply(p, state, x, stats="batch")[0])  # noqa: E731
    for x in (jnp.zeros((2, 4)), jnp.full((2, 4), 7.0), rand(0, 2, 4) * 1e20):
        for kernel in (params["kernel"], jnp.zeros((4, 3)), jnp.ones((4, 3))):
            value, grads = jax.value_and_grad(loss, (0, 1))({"kernel": kernel}, x)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, grads)))
    x = rand(1, 2, 4)
    y, _ = layer.apply(params, state, x, stats="running")
    assert np.abs(y).max() <= 1
    same, _ = layer.apply({"kernel": params["kernel"] * 50}, state, x * 1e3, stats="batch")
    np.testing.assert_allclose(same, y, **CLOSE)
    low, _ = layer.apply(params, state, x.astype(jnp.bfloat16), stats="batch")
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(f64(low), y, atol=0.02)


def test_cosine_dense_is_a_value():
    layer = nj.cosine_dense(3, centered=True)
    assert pickle.loads(pickle.dumps(layer)) == layer == eval(repr(layer), {**vars(nj)})
    assert len({layer, nj.cosine_dense(3, centered=True), nj.cosine_dense(3)}) == 2
    params, state = layer.init(jax.random.key(0), features=4)
    with pytest.raises(ValueError, match="4 features"):
        layer.apply(params, state, jnp.ones((2, 5)), stats="batch")


# Layers.


@pytest.mark.parametrize("size", [1.0, 7.0, 1e20])
def test_standardized_weights_of_any_scale_against_float64(size):
    """Also where their squares overflow: the scale cancels, in the gradient too."""
    w, dy = np.random.default_rng(0).normal(size=(2, 3, 3, 8, 16))
    w = np.asarray(w * size, np.float32).astype(np.float64)
    norm, axes = nj.weight_standardization(), (0, 1, 2)
    params, state = norm.init(jnp.asarray(w, jnp.float32))

    def loss(v):
        y = norm.apply(params._replace(v=v), state, stats="batch")[0]
        return jnp.sum(y * jnp.asarray(dy, jnp.float32)), y

    grad, y = jax.grad(loss, has_aux=True)(params.v)
    inverse = 1 / np.sqrt(w.var(axes) + norm.eps)
    want = (w - w.mean(axes)) * inverse
    slope = inverse * (dy - dy.mean(axes) - want * (dy * want).mean(axes))
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-6 * abs(want).max())
    np.testing.assert_allclose(grad, slope, rtol=0, atol=1e-6 * abs(slope).max())
