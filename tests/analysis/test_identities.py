"""Gradient identities: residuals that are known, and methods that must not satisfy them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import analysis

RNG = np.random.default_rng(0)


def test_batch_norm_in_float64_obeys_them(x64):
    x = jnp.asarray(RNG.normal(1.0, 2.0, size=(9, 4)))
    norm = nj.batch_norm(eps=0.3)
    params = nj.Affine(jnp.asarray(RNG.normal(size=4)), jnp.zeros(4))
    dy = RNG.normal(size=(9, 4))
    out = jax.jit(lambda x: analysis.norm_identities(norm, x, cotangent=dy, params=params))(x)
    assert out.mean.max() < 1e-13 and out.projection.max() < 1e-13
    # Orthogonal up to eps: <dx, x_hat> = (1 / s) sum(g x_hat) eps / (var + eps).
    x_, g = np.asarray(x), dy * np.asarray(params.scale)
    var = x_.var(0)
    s = np.sqrt(var + 0.3)
    x_hat = (x_ - x_.mean(0)) / s
    dx = (g - g.mean(0) - x_hat * (g * x_hat).mean(0)) / s
    inner = np.abs((g * x_hat).sum(0)) / s * 0.3 / (var + 0.3)
    expected = inner / np.linalg.norm(dx, axis=0) / np.linalg.norm(x_hat, axis=0)
    np.testing.assert_allclose(out.orthogonal, expected, rtol=1e-9)
    np.testing.assert_allclose(out.damping, (dx**2).sum(0) * s**2 / (g**2).sum(0), rtol=1e-9)
    assert (out.damping < 1).all()


def _case(name, norm, shape, sets, slow=False, **how):
    return pytest.param(norm, shape, how, sets, id=name, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize(
    ("norm", "shape", "how", "sets"),
    [
        _case("layer", nj.layer_norm(eps=1e-14, scale_init=0.7), (6, 5), (6,), axes=-1),
        _case(
            "instance", nj.instance_norm(eps=1e-14), (3, 4, 4, 2), (3, 2), slow=True, axes=(1, 2)
        ),
        _case(
            "group", nj.group_norm(groups=2, eps=1e-14), (3, 4, 6), (3, 2), axes=(1, -1), groups=2
        ),
        _case("batch_of_images", nj.batch_norm(eps=1e-14), (3, 4, 4, 2), (2,), slow=True),
    ],
)
def test_each_norm_obeys_them_over_its_own_sets(x64, norm, shape, how, sets):
    x = jnp.asarray(RNG.normal(size=shape))
    out = jax.jit(lambda x: analysis.norm_identities(norm, x, **how))(x)
    assert out.mean.shape == sets
    for residual in (out.mean, out.orthogonal, out.projection):
        assert residual.max() < 1e-9
    assert out.damping.min() > 0 and out.damping.max() <= 1


def test_identities_that_do_not_hold_show(x64):
    x = jnp.asarray(RNG.normal(1.0, 1.0, size=(6, 5)))

    def left(norm, **how):
        return jax.jit(lambda x: analysis.norm_identities(norm, x, **how))(x)

    rms = left(nj.rms_norm(), axes=-1)
    assert rms.mean.max() > 0.1 and rms.projection.max() > 0.1
    wrong_sets = left(nj.batch_norm(), axes=-1)
    assert wrong_sets.projection.max() > 0.1
    none = left(nj.identity())
    assert none.mean.max() > 0.1 and none.orthogonal.max() > 0.1
    renorm = left(nj.mean_only_batch_norm())
    assert renorm.mean.max() < 1e-12 < renorm.orthogonal.max()


def test_weight_norm_grows_as_pythagoras_says(x64):
    w = jnp.asarray(RNG.normal(size=(6, 3)))
    a = jnp.asarray(RNG.normal(size=(6, 3)))
    loss = lambda w: jnp.sum(a * jnp.sin(w))  # noqa: E731
    out = jax.jit(
        lambda w: analysis.weight_identities(nj.weight_norm(), w, loss, learning_rate=0.5)
    )(w)
    assert out.orthogonal.max() < 1e-14 and out.projection < 1e-14
    v, dw = np.asarray(w), np.asarray(a) * np.cos(np.asarray(w))
    dv = dw - v * (v * dw).sum(0) / (v**2).sum(0)  # g = ||v|| at the start
    growth = np.linalg.norm(v - 0.5 * dv, axis=0) / np.linalg.norm(v, axis=0)
    np.testing.assert_allclose(out.growth, growth, rtol=1e-12)
    np.testing.assert_allclose(out.predicted_growth, growth, rtol=1e-12)


def test_other_weights_obey_what_they_promise(x64):
    w = jnp.asarray(RNG.normal(size=(6, 3)))
    loss = lambda w: jnp.sum(jnp.sin(w))  # noqa: E731

    def left(method, **how):
        return jax.jit(lambda w: analysis.weight_identities(method, w, loss, **how))(w)

    standardized = left(nj.weight_standardization(eps=1e-14))
    assert standardized.orthogonal.max() < 1e-10 < standardized.projection
    whole = left(nj.weight_norm(axes=(0, 1)), axes=(0, 1))
    assert whole.orthogonal.shape == () and whole.orthogonal < 1e-14
    by_vector = left(nj.weight_norm(axes=(0, 1)))
    assert by_vector.orthogonal.max() > 1e-3


def test_errors_say_what_to_write():
    x = jnp.ones((4, 6))
    with pytest.raises(ValueError, match="groups=4"):
        analysis.norm_identities(nj.batch_norm(), x, groups=4)
    with pytest.raises(ValueError, match="learning_rate"):
        analysis.weight_identities(nj.weight_norm(), x, lambda w: w.sum(), learning_rate=0.0)
