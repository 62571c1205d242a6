"""Dynamic tanh and erf, adaptive instance norm, and affines that are given per sample."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from tests._support import reference

RNG = np.random.default_rng(7)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def draw(*shape):
    return RNG.normal(0.5, 2.0, shape).astype(np.float32)


def test_dynamic_tanh_is_the_equation():
    x = draw(3, 5, 4)
    norm = nj.dynamic_tanh()
    params, state = norm.init(x.shape)
    assert params.alpha.shape == () and float(params.alpha) == 0.5
    y, _ = norm.apply(params, state, x, stats="batch")
    np.testing.assert_allclose(y, np.tanh(0.5 * x.astype(np.float64)), **CLOSE)
    params = params._replace(alpha=jnp.float32(1.3), scale=draw(4), bias=draw(4))
    y, _ = norm.apply(params, state, x, stats="running")
    want = params.scale * np.tanh(1.3 * x.astype(np.float64)) + params.bias
    np.testing.assert_allclose(y, want, **CLOSE)
    assert norm.moments(params, x) is None


def test_dynamic_tanh_slope_per_sample():
    x, alpha = draw(3, 5, 4), draw(3)
    norm = nj.dynamic_tanh(use_scale=False, use_bias=False)
    params, state = norm.init(x.shape)
    y, _ = norm.apply(params._replace(alpha=alpha), state, x, stats="batch")
    np.testing.assert_allclose(y, np.tanh(alpha[:, None, None] * x.astype(np.float64)), **CLOSE)


def test_dynamic_erf_is_the_equation():
    x = draw(3, 5, 4)
    norm = nj.dynamic_erf(shift_init=0.25)
    params, state = norm.init(x.shape)
    assert (float(params.alpha), float(params.shift)) == (0.5, 0.25)
    params = params._replace(alpha=jnp.float32(1.3), scale=draw(4), bias=draw(4))
    y, _ = norm.apply(params, state, x, stats="running")
    squashed = np.vectorize(math.erf)(1.3 * x.astype(np.float64) + 0.25)
    np.testing.assert_allclose(y, params.scale * squashed + params.bias, **CLOSE)
    assert norm.moments(params, x) is None
    assert nj.is_norm_param(("Normalize_0", "shift"))


def test_dynamic_erf_of_its_own_condition_per_sample():
    x, alpha, shift = draw(3, 5, 4), draw(3), draw(3)
    norm = nj.dynamic_erf(use_scale=False, use_bias=False)
    params, state = norm.init(x.shape)
    y, _ = norm.apply(params._replace(alpha=alpha, shift=shift), state, x, stats="batch")
    z = alpha[:, None, None] * x.astype(np.float64) + shift[:, None, None]
    np.testing.assert_allclose(y, np.vectorize(math.erf)(z), **CLOSE)
    with pytest.raises(TypeError, match="two channels"):
        norm.apply(params, state, x + 1j, stats="batch")


@pytest.mark.parametrize("axes, kept", [(None, (1, 2)), ((2,), (2,)), ((1, 2), (1, 2))])
def test_adain_is_the_equation(axes, kept):
    content, style = draw(3, 4, 5, 2), 3 * draw(3, 4, 5, 2) + 1
    mc, vc, _ = (np.expand_dims(v, kept) for v in reference.moments(content, kept))
    ms, vs, _ = (np.expand_dims(v, kept) for v in reference.moments(style, kept))
    want = np.sqrt(vs + 1e-5) * (content - mc) / np.sqrt(vc + 1e-5) + ms
    np.testing.assert_allclose(nj.adain(content, style, axes), want, **CLOSE)


def test_adain_takes_the_statistics_of_a_style_of_another_size():
    content, style = draw(3, 4, 5, 2), 3 * draw(3, 6, 2, 2) + 1
    y = nj.adain(content, style)
    for got, want in zip(
        reference.moments(y, (1, 2))[:2], reference.moments(style, (1, 2))[:2], strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_adain_mask_hides_nan_and_infinity():
    content, style = draw(1, 4, 2), draw(1, 5, 2)
    mask, style_mask = jnp.array([[1, 1, 0, 1]], bool)[..., None], jnp.arange(5)[None, :, None] < 3
    dirty = jnp.where(mask, content, jnp.nan)
    dirty_style = jnp.where(style_mask, style, jnp.inf)
    run = lambda c, s: nj.adain(c, s, mask=mask, style_mask=style_mask)  # noqa: E731
    y = run(dirty, dirty_style)
    want = nj.adain(content[:, [0, 1, 3]], style[:, :3])
    np.testing.assert_allclose(y[:, [0, 1, 3]], want, **CLOSE)
    grads = jax.grad(lambda c, s: jnp.sum(run(c, s) ** 2), argnums=(0, 1))(dirty, dirty_style)
    assert all(np.isfinite(g).all() for g in grads)


def test_adain_keeps_the_dtype_of_the_content():
    content, style = jnp.asarray(draw(2, 4, 3), jnp.bfloat16), draw(2, 4, 3)
    y = nj.adain(content, style)
    assert y.dtype == jnp.bfloat16
    want = nj.adain(content.astype(jnp.float32), style)
    np.testing.assert_allclose(y.astype(jnp.float32), want, rtol=2**-8, atol=2**-8)


def test_adain_of_constant_images_has_a_gradient():
    flat = jnp.ones((1, 4, 2))
    grads = jax.grad(lambda c, s: jnp.sum(nj.adain(c, s) ** 2), argnums=(0, 1))(flat, flat)
    assert all(np.isfinite(g).all() for g in grads)


def test_adain_errors_say_what_to_write():
    with pytest.raises(ValueError, match="broadcast the style"):
        nj.adain(draw(3, 4, 2), draw(1, 4, 2))
    with pytest.raises(ValueError, match="last axis"):
        nj.adain(draw(3, 4, 2), draw(3, 4, 2), (1, 2))


@pytest.mark.parametrize("shape", [(3, 6), (3, 5, 6), (1, 5, 6), (3, 1, 6)])
def test_adaptive_layer_norm_is_layer_norm_with_other_params(shape):
    """Gain 1 + scale and bias of each sample, or of each sample and position."""
    x, scale, shift = draw(3, 5, 6), draw(*shape), draw(*shape)
    norm = nj.layer_norm()
    y, _ = norm.apply(nj.Affine(1 + scale, shift), (), x, stats="batch")
    plain = reference.batch_norm(x, eps=1e-5, axes=2)
    wide = lambda v: v[:, None] if v.ndim == 2 else v  # noqa: E731
    np.testing.assert_allclose(y, plain * (1 + wide(scale)) + wide(shift), **CLOSE)


def test_adaptive_layer_norm_trains_its_condition():
    x, condition = jnp.asarray(draw(3, 5, 6)), jnp.asarray(draw(3, 4))
    norm = nj.layer_norm()

    def loss(weight):
        scale, shift = jnp.split(condition @ weight, 2, axis=-1)
        y, _ = norm.apply(nj.Affine(1 + scale, shift), (), x, stats="batch")
        return jnp.sum(y[..., :3] ** 2)

    grad = jax.jit(jax.grad(loss))(jnp.zeros((4, 12)))
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0.1


@pytest.mark.parametrize("norm", [nj.rms_norm(use_bias=True), nj.identity(use_scale=True)])
def test_affine_per_sample_of_norms(norm):
    x, scale, bias = draw(3, 5, 6), draw(3, 6), draw(3, 6)
    y, _ = norm.apply(nj.Affine(scale, bias), (), x, stats="batch")
    for n in range(3):
        want, _ = norm.apply(nj.Affine(scale[n], bias[n]), (), x[n : n + 1], stats="batch")
        np.testing.assert_allclose(y[n], want[0], **CLOSE)


def test_affine_per_sample_of_scale_norm():
    x, g = draw(3, 5, 6), draw(3)
    norm = nj.scale_norm()
    y, _ = norm.apply(nj.Affine(g, None), (), x, stats="batch")
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.abs(g)[:, None] * np.ones(5), **CLOSE)


def test_an_affine_that_only_numpy_would_broadcast_is_refused():
    """[T, F] against [B, T, F] with B = T would silently mean something else."""
    x = draw(4, 5, 6)
    with pytest.raises(ValueError, match=r"one per sample of shape \(4, 6\)"):
        nj.layer_norm().apply(nj.Affine(draw(5, 6), None), (), x, stats="batch")
