"""Root mean square, scale and length norms: against the equations and other libraries."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj

RNG = np.random.default_rng(4)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def draw(*shape):
    return RNG.normal(1.0, 2.0, shape).astype(np.float32)


def rms_reference(x, gamma=1.0, beta=0.0, *, eps=1e-5, axes=-1, first=None, mask=None):
    """Equation 4 of the paper; `first` as in its equation 8."""
    x = np.asarray(x, np.float64)
    keep = np.ones(x.shape) if mask is None else np.broadcast_to(mask, x.shape).astype(float)
    some, kept = (x, keep) if first is None else (x[..., :first], keep[..., :first])
    square = (some**2 * kept).sum(axes, keepdims=True)
    return x / np.sqrt(square / np.maximum(kept.sum(axes, keepdims=True), 1) + eps) * gamma + beta


def run(norm, x, params=None, **kw):
    start, state = norm.init(x.shape)
    return norm.apply(start if params is None else params, state, x, stats="batch", **kw)[0]


def test_rms_norm_is_the_equation():
    x, gamma, beta = draw(3, 5, 8), draw(8), draw(8)
    got = run(nj.rms_norm(use_bias=True), x, nj.Affine(gamma, beta))
    np.testing.assert_allclose(got, rms_reference(x, gamma, beta), **CLOSE)
    got = run(nj.rms_norm(axes=(1, 2), feature_axes=-1, eps=0.5), x, nj.Affine(gamma, None))
    np.testing.assert_allclose(got, rms_reference(x, gamma, eps=0.5, axes=(1, 2)), **CLOSE)


def test_no_bias_by_default():
    params, state = nj.rms_norm().init((1, 4))
    assert params.bias is None and state == ()
    np.testing.assert_array_equal(params.scale, np.ones(4))


def test_unit_offset_stores_the_gain_less_one():
    x, stored = draw(3, 8), draw(8)
    norm = nj.rms_norm(unit_offset=True)
    params, _ = norm.init(x.shape)
    np.testing.assert_array_equal(params.scale, np.zeros(8))
    np.testing.assert_allclose(run(norm, x), rms_reference(x), **CLOSE)
    got = run(norm, x, nj.Affine(stored, None))
    np.testing.assert_allclose(got, rms_reference(x, 1 + stored.astype(float)), **CLOSE)
    params, _ = nj.rms_norm(unit_offset=True, scale_init=1.5).init(x.shape)
    np.testing.assert_array_equal(params.scale, np.full(8, 0.5))


def test_unit_offset_keeps_what_bfloat16_learned():
    """1 + 0.002 is 1 in bfloat16."""
    x = draw(3, 8)
    stored = jnp.full(8, 0.002, jnp.bfloat16)
    got = run(nj.rms_norm(unit_offset=True), x, nj.Affine(stored, None))
    np.testing.assert_allclose(got, rms_reference(x, 1 + float(stored[0])), rtol=1e-6)


@pytest.mark.parametrize(
    "features, partial, first", [(8, 0.5, 4), (8, 0.3, 3), (100, 0.07, 7), (5, 0.01, 1)]
)
def test_partial_takes_the_first_features(features, partial, first):
    x = draw(3, features)
    got = run(nj.rms_norm(partial=partial), x)
    np.testing.assert_allclose(got, rms_reference(x, first=first), **CLOSE)
    mask = RNG.random((3, features)) < 0.7
    mask[:, 0] = True
    got = run(nj.rms_norm(partial=partial), x, mask=jnp.asarray(mask))
    want = rms_reference(x, first=first, mask=mask)
    np.testing.assert_allclose(np.where(mask, got, 0), np.where(mask, want, 0), **CLOSE)


def test_scale_norm_is_the_equation():
    x = draw(3, 5, 9)
    length = np.sqrt((x.astype(float) ** 2).sum(-1, keepdims=True))
    norm = nj.scale_norm()
    params, _ = norm.init(x.shape)
    assert params.scale.shape == () and float(params.scale) == 3.0
    np.testing.assert_allclose(run(norm, x), 3 * x / length, **CLOSE)
    got = run(norm, x, nj.Affine(jnp.float32(0.7), None))
    np.testing.assert_allclose(got, 0.7 * x / length, **CLOSE)
    assert float(nj.scale_norm(scale_init=2.0).init(x.shape)[0].scale) == 2.0


def test_l2_norm_is_of_unit_length():
    x, gamma = draw(3, 5, 9), draw(9)
    y = run(nj.l2_norm(), x)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.ones((3, 5)), rtol=1e-6)
    length = np.sqrt((x.astype(float) ** 2).sum(-1, keepdims=True))
    got = run(nj.l2_norm(use_scale=True), x, nj.Affine(gamma, None))
    np.testing.assert_allclose(got, gamma * x / length, **CLOSE)


def test_length_leaves_out_what_the_mask_does():
    x = np.array([[3.0, 4.0, 100.0]], np.float32)
    mask = jnp.array([[True, True, False]])
    np.testing.assert_allclose(run(nj.l2_norm(), x, mask=mask)[0, :2], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    "norm, slope",
    [
        (nj.rms_norm(eps=1e-4), 100.0),
        (nj.l2_norm(eps=1e-4), 100.0),
        (nj.scale_norm(eps=1e-4, scale_init=3.0), 300.0),
    ],
)
def test_gradient_at_zero(norm, slope):
    """The root of a sum of squares has none there; with eps inside it, 1 / sqrt(eps)."""
    x = jnp.zeros((1, 4))
    params, state = norm.init(x.shape)
    jacobian = jax.jacobian(lambda x: norm.apply(params, state, x, stats="batch")[0])(x)
    np.testing.assert_allclose(jacobian[0, :, 0], slope * np.eye(4), rtol=1e-5)


def test_complex_values_have_a_length():
    x = jnp.array([[3.0 + 4.0j, 0.0 + 12.0j]])
    y = run(nj.l2_norm(), x)
    np.testing.assert_allclose(y, np.array([[3 + 4j, 12j]]) / 13, rtol=1e-6)


def test_mean_square_pools_over_devices():
    """Two shards with 3 and 1 values that count: a mean of all, not of the shards' means."""
    x, mask = draw(2, 3), jnp.array([[True, True, True], [True, False, False]])
    pool = lambda x, m: nj.mean_square(x, 0, mask=m, axis_name="d")  # noqa: E731
    m = jax.vmap(pool, axis_name="d")(x, mask)
    want = (np.sum(x[0].astype(float) ** 2) + float(x[1, 0]) ** 2) / 4
    np.testing.assert_allclose(m.var, [want, want], rtol=1e-6)
    np.testing.assert_array_equal(m.count, [4, 4])
    np.testing.assert_array_equal(m.mean, [0, 0])


@pytest.mark.parametrize("make", [nj.rms_norm, nj.l2_norm])
def test_features_split_over_devices(make):
    x = draw(3, 8)
    whole = run(make(use_scale=False), x)
    norm = make(use_scale=False, feature_axis_name="f")
    parts = jnp.moveaxis(jnp.asarray(x).reshape(3, 2, 4), 1, 0)
    split = jax.vmap(lambda v: run(norm, v), axis_name="f")(parts)
    np.testing.assert_allclose(jnp.moveaxis(split, 0, 1).reshape(3, 8), whole, **CLOSE)


@pytest.mark.standard_numerics
def test_flax_rms_norm():
    x = draw(3, 5, 8)
    flax = nn.RMSNorm(epsilon=1e-5)
    variables = flax.init(jax.random.key(0), x)
    np.testing.assert_allclose(run(nj.rms_norm(), x), flax.apply(variables, x), **CLOSE)
    mask = jnp.asarray(RNG.random((3, 5, 8)) < 0.7).at[..., 0].set(True)
    got, want = run(nj.rms_norm(), x, mask=mask), flax.apply(variables, x, mask=mask)
    np.testing.assert_allclose(jnp.where(mask, got, 0), jnp.where(mask, want, 0), **CLOSE)


def test_torch_rms_norm():
    torch = pytest.importorskip("torch")
    x, gamma = draw(3, 5, 8), draw(8)
    want = torch.nn.functional.rms_norm(torch.tensor(x), (8,), torch.tensor(gamma), eps=1e-5)
    np.testing.assert_allclose(run(nj.rms_norm(), x, nj.Affine(gamma, None)), want, **CLOSE)


def published_llama(torch, x, weight, eps):
    """The order of operations of the published model: float32, back to the dtype, then the gain."""
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


@pytest.mark.parametrize(
    "name, impl", [("bfloat16", "xla"), ("bfloat16", "kernel"), ("float16", "xla")]
)
def test_cast_first_is_a_published_checkpoints_order_to_the_bit(name, impl):
    torch = pytest.importorskip("torch")
    dtype, theirs = jnp.dtype(name), getattr(torch, name)
    x, gamma = draw(64, 128), draw(128)
    want = published_llama(torch, torch.tensor(x).to(theirs), torch.tensor(gamma).to(theirs), 1e-6)
    want = want.to(torch.float32).numpy()
    params = nj.Affine(jnp.asarray(gamma, dtype), None)

    @functools.partial(jax.jit, static_argnums=1)
    def apply(x, first):
        norm = nj.rms_norm(eps=1e-6, cast_first=first, impl=impl)
        return norm.apply(params, (), x, stats="batch")[0]

    x = jnp.asarray(x, dtype)
    np.testing.assert_array_equal(np.asarray(apply(x, True), np.float32), want)
    # The default rounds once, so that some values differ.
    assert (np.asarray(apply(x, False), np.float32) != want).mean() > 0.1


def test_cast_first_changes_nothing_in_float32():
    x, gamma = draw(3, 5, 8), draw(8)
    for options in ({}, {"unit_offset": True}, {"partial": 0.5}, {"use_bias": True}):
        params = nj.Affine(gamma, draw(8) if "use_bias" in options else None)
        first = run(nj.rms_norm(cast_first=True, **options), x, params)
        np.testing.assert_array_equal(first, run(nj.rms_norm(**options), x, params))


def test_cast_first_with_offset_partial_and_bias():
    x = jnp.asarray(draw(3, 5, 8), jnp.bfloat16)
    gamma, beta = (jnp.asarray(draw(8), jnp.bfloat16) for _ in range(2))
    norm = nj.rms_norm(cast_first=True, unit_offset=True, partial=0.5, use_bias=True)
    wide = np.asarray(x, np.float64)
    n = jnp.asarray(rms_reference(wide, first=4), jnp.float32).astype(jnp.bfloat16)
    want = np.asarray(n, np.float64) * (1 + np.asarray(gamma, np.float64))
    want = jnp.asarray(want + np.asarray(beta, np.float64), jnp.float32).astype(jnp.bfloat16)
    np.testing.assert_array_equal(run(norm, x, nj.Affine(gamma, beta)), want)


def test_errors_say_what_to_write():
    with pytest.raises(ValueError, match=r"partial=0\.0"):
        nj.rms_norm(partial=0.0)
    with pytest.raises(ValueError, match=r"partial=2\.0"):
        nj.rms_norm(partial=2.0)
    with pytest.raises(ValueError, match="write axes=-1"):
        nj.rms_norm(partial=0.5, axes=(1, 2))
