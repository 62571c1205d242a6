"""Both covariate shifts against NumPy and by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import analysis

RNG = np.random.default_rng(0)


def test_covariate_shift_is_that_of_numpy(x64):
    before = [RNG.normal(size=(10, 3, 4)), RNG.normal(2.0, 3.0, size=(10, 5))]
    after = [b * RNG.uniform(0.5, 2.0, b.shape[-1]) + RNG.normal(size=b.shape[-1]) for b in before]
    out = jax.jit(analysis.covariate_shift)(
        [jnp.asarray(b) for b in before], [jnp.asarray(a) for a in after]
    )
    for i, (b, a) in enumerate(zip(before, after, strict=True)):
        axes = tuple(range(b.ndim - 1))
        moved = (a.mean(axes) - b.mean(axes)) / np.sqrt(b.var(axes) + 1e-5)
        wider = 0.5 * np.log((a.var(axes) + 1e-5) / (b.var(axes) + 1e-5))
        np.testing.assert_allclose(out.mean[i], np.sqrt((moved**2).mean()), rtol=1e-10)
        np.testing.assert_allclose(out.spread[i], np.sqrt((wider**2).mean()), rtol=1e-10)


def test_gradient_shift_of_a_linear_network_by_hand(x64):
    """L = |x W1 W2 - y|^2 / 2: dL/dW2 = (x W1)^T (x W1 W2 - y)."""
    x, y = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2))
    before = [RNG.normal(size=(3, 4)), RNG.normal(size=(4, 2))]
    after = [w + 0.1 * RNG.normal(size=w.shape) for w in before]

    def loss(w):
        return 0.5 * jnp.sum((jnp.asarray(x) @ w[0] @ w[1] - jnp.asarray(y)) ** 2)

    run = jax.jit(lambda before, after: analysis.gradient_shift(loss, before, after))
    out = run([jnp.asarray(w) for w in before], [jnp.asarray(w) for w in after])

    def gradient(w1, w2):
        return (x @ w1).T @ (x @ w1 @ w2 - y)

    # The second layer's own step has no part in it.
    g, other = gradient(*before), gradient(after[0], before[1])
    size = np.linalg.norm(g)
    np.testing.assert_allclose(out.l2, [0, np.linalg.norm(g - other)], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(out.relative[1], np.linalg.norm(g - other) / size, rtol=1e-9)
    cosine = (g * other).sum() / size / np.linalg.norm(other)
    np.testing.assert_allclose(out.cosine, [1, cosine], rtol=1e-9)


def test_layers_may_be_any_trees():
    layers = [{"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}, {"w": jnp.ones((2, 1))}]
    x = jnp.array([[1.0, 2.0], [0.0, 1.0]])

    def loss(p):
        h = jnp.tanh(x @ p[0]["w"] + p[0]["b"][None])
        return jnp.sum((h @ p[1]["w"]) ** 2)

    moved = jax.tree.map(lambda w: w + 0.5, layers)
    out = jax.jit(lambda a, b: analysis.gradient_shift(loss, a, b))(layers, moved)
    assert out.l2.shape == (2,) and out.l2[0] == 0 and out.l2[1] > 0


def test_errors_say_what_to_write():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="1 layers"):
        analysis.covariate_shift([x], [x, x])
    with pytest.raises(ValueError, match="features"):
        analysis.covariate_shift([x], [x[:, :2]])
    with pytest.raises(ValueError, match="empty"):
        analysis.covariate_shift([], [])
    with pytest.raises(ValueError, match="2 layers"):
        analysis.gradient_shift(lambda w: w[0], [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="empty"):
        analysis.gradient_shift(lambda w: jnp.zeros(()), [], [])
