"""Curvature and predictiveness: losses whose Hessian is known."""

from __future__ import annotations

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import analysis
from tests.conftest import unchecked

RNG = np.random.default_rng(0)


def _symmetric(eigenvalues):
    q, _ = np.linalg.qr(RNG.normal(size=(len(eigenvalues),) * 2))
    return (q * eigenvalues) @ q.T


def test_lanczos_finds_all_eigenvalues_of_a_quadratic(x64):
    eigenvalues = np.array([9.0, 4.0, 1.0, 0.5, 0.0, -0.3, -2.0])
    h = jnp.asarray(_symmetric(eigenvalues))
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}

    def loss(p):
        v = jnp.concatenate([p["a"].ravel(), p["b"]])
        return 0.5 * v @ h @ v

    out = jax.jit(lambda p: analysis.hessian_spectrum(loss, p))(params)
    np.testing.assert_allclose(out.values, eigenvalues, atol=1e-10)
    assert out.bound.max() < 1e-9
    top = np.concatenate([np.ravel(out.vector["a"]), out.vector["b"]])
    np.testing.assert_allclose(h @ top, 9 * top, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(top), 1, rtol=1e-12)


def test_lanczos_goes_on_where_the_krylov_space_is_closed(x64):
    """Repeated eigenvalues: from one direction each is seen once."""
    h = jnp.asarray(_symmetric(np.array([5.0, 5.0, 5.0, 1.0, 1.0, -3.0])))
    quadratic = lambda w: 0.5 * w @ h @ w  # noqa: E731
    out = jax.jit(lambda w: analysis.hessian_spectrum(quadratic, w, iterations=50))(jnp.zeros(6))
    np.testing.assert_allclose(out.values, [5, 5, 5, 1, 1, -3], atol=1e-10)
    flat = jax.jit(lambda w: analysis.hessian_spectrum(jnp.sum, w))(jnp.zeros(4))
    np.testing.assert_array_equal(flat.values, 0)
    assert np.isfinite(np.asarray(flat.vector)).all()


def _network(dtype):
    """The same numbers in either precision."""
    shapes = ((5, 8), (8, 1), (20, 5), (20, 1))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    *params, x, y = (
        jax.random.normal(k, s, jnp.float32).astype(dtype)
        for k, s in zip(keys, shapes, strict=True)
    )
    return params, lambda p: jnp.mean((jnp.tanh(x @ p[0]) @ p[1] - y) ** 2)


@pytest.mark.parametrize(
    ("dtype", "tight"),
    [("float64", 1e-6), pytest.param("float32", 2e-4, marks=pytest.mark.slow)],
)
def test_lanczos_ends_are_those_of_the_dense_hessian(x64, dtype, tight):
    params, loss = _network(jnp.float64)
    w, unravel = jax.flatten_util.ravel_pytree(params)
    expected = np.linalg.eigvalsh(jax.jit(jax.hessian(lambda v: loss(unravel(v))))(w))[::-1]

    params, loss = _network(jnp.dtype(dtype))
    out = jax.jit(lambda p: analysis.hessian_spectrum(loss, p, iterations=30))(params)
    np.testing.assert_allclose(out.values[:3], expected[:3], rtol=tight)
    np.testing.assert_allclose(out.values[-1], expected[-1], rtol=tight)
    # The bound is one: an eigenvalue lies within it of each Ritz value.
    nearest = np.abs(np.asarray(out.values)[:, None] - expected[None]).min(1)
    assert (nearest <= np.asarray(out.bound) + tight * expected[0]).all()
    assert out.values.dtype == dtype


def test_lanczos_takes_half_and_mixed_precision():
    params = (jnp.ones(3, jnp.bfloat16), jnp.ones(2))

    def loss(p):
        return 2.0 * jnp.sum(p[0].astype(jnp.float32) ** 2) + jnp.sum(p[1] ** 2)

    out = analysis.hessian_spectrum(loss, params)
    assert out.values.dtype == jnp.float32 and out.vector[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(out.values[0], 4, rtol=2e-2)


def test_predictiveness_of_a_quadratic_is_its_hessian(x64):
    h = jnp.asarray(_symmetric(np.array([7.0, 2.0, 0.1])))
    w = jnp.array([1.0, -2.0, 0.5])
    g = np.asarray(h @ w)
    etas = jnp.array([0.01, 0.1, 1.0])
    loss = lambda w: 0.5 * w @ h @ w  # noqa: E731
    out = jax.jit(lambda w: analysis.gradient_predictiveness(loss, w, etas))(w)
    beta = np.linalg.norm(h @ g) / np.linalg.norm(g)
    np.testing.assert_allclose(out.smoothness, beta, rtol=1e-9)
    np.testing.assert_allclose(out.beta, beta, rtol=1e-9)
    for i, eta in enumerate(np.asarray(etas)):
        there = np.asarray(w) - eta * g
        other = np.asarray(h) @ there
        np.testing.assert_allclose(out.loss[i], 0.5 * there @ np.asarray(h) @ there, rtol=1e-9)
        np.testing.assert_allclose(out.gradient_change[i], np.linalg.norm(other - g), rtol=1e-9)
        cosine = other @ g / np.linalg.norm(other) / np.linalg.norm(g)
        np.testing.assert_allclose(out.cosine[i], cosine, rtol=1e-9)
    np.testing.assert_allclose(out.gradient_norm, np.linalg.norm(g), rtol=1e-12)
    np.testing.assert_allclose(out.start_loss, 0.5 * w @ h @ w, rtol=1e-12)


def test_predictiveness_over_a_tree_sees_tiny_gradients():
    """Squares of these gradients are 0 in float32."""
    params = {"a": jnp.ones(2), "b": jnp.ones((3, 1))}
    loss = lambda p: 1e-25 * (jnp.sum(p["a"] ** 2) + jnp.sum(p["b"] ** 2))  # noqa: E731
    out = analysis.gradient_predictiveness(loss, params, jnp.array([1.0]))
    np.testing.assert_allclose(out.gradient_norm, 2e-25 * np.sqrt(5), rtol=1e-5)
    np.testing.assert_allclose(out.cosine, 1, rtol=1e-5)


def test_a_linear_loss_has_no_curvature():
    out = analysis.gradient_predictiveness(lambda w: jnp.sum(w), jnp.ones(3), jnp.array([0.5, 2.0]))
    np.testing.assert_array_equal(out.smoothness, 0)
    np.testing.assert_allclose(out.cosine, 1, rtol=1e-6)


def test_errors_say_what_to_write():
    with pytest.raises(ValueError, match="iterations"):
        unchecked(analysis.hessian_spectrum)(lambda w: w.sum(), jnp.ones(2), iterations=0)
    with pytest.raises(ValueError, match="no array"):
        analysis.hessian_spectrum(lambda w: jnp.zeros(()), {})
