"""Gradients through time against finite differences of a perturbed hidden state."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import analysis, recurrent


@pytest.mark.parametrize(
    "make", [recurrent.lstm, pytest.param(recurrent.rnn, marks=pytest.mark.slow)]
)
def test_gradient_is_that_of_finite_differences(x64, make):
    layer = make(4, norm_h=recurrent.per_step(nj.batch_norm(scale_init=0.3), 5))
    params, state = layer.init(jax.random.key(0), 3, jnp.float64)
    x = jax.random.normal(jax.random.key(1), (6, 5, 3), jnp.float64)
    w = jax.random.normal(jax.random.key(2), (6, 5, 4), jnp.float64)
    lengths = jnp.array([5, 4, 3, 2, 1, 0])

    def loss(y, carry):
        return jnp.sum(w * y) + sum(jnp.sum(c**2) for c in jax.tree.leaves(carry))

    measure = functools.partial(analysis.gradient_through_time, layer, loss=loss, lengths=lengths)
    out = jax.jit(measure)(params, state, x)

    @jax.jit
    def at(hidden_perturbation):
        (y, carry), _ = layer.apply(
            params,
            state,
            x,
            stats="batch",
            lengths=lengths,
            hidden_perturbation=hidden_perturbation,
        )
        return loss(y, carry)

    zero = jnp.zeros((6, 5, 4), jnp.float64)
    np.testing.assert_allclose(out.loss, at(zero), rtol=1e-12)
    for b, t, u in ((0, 0, 0), (0, 4, 3), (1, 2, 1), (3, 1, 2)):
        one = zero.at[b, t, u].set(1e-6)
        slope = (at(one) - at(-one)) / 2e-6
        np.testing.assert_allclose(out.gradient[b, t, u], slope, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(out.gradient[5], 0)  # nothing of an empty sequence matters
    np.testing.assert_allclose(out.norm, np.linalg.norm(out.gradient, axis=-1).mean(0), rtol=1e-12)


def test_tiny_gradients_are_not_squared_to_zero():
    layer = recurrent.rnn(4)
    params, state = layer.init(jax.random.key(0), 3)
    x = jnp.ones((2, 5, 3))
    tiny = lambda y, _: jnp.float32(1e-30) * y.sum()  # noqa: E731
    out = jax.jit(functools.partial(analysis.gradient_through_time, layer, loss=tiny))(
        params, state, x
    )
    assert (out.norm > 0).all()


def test_time_major_is_refused():
    layer = recurrent.rnn(4, time_major=True)
    params, state = layer.init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="time_major=False"):
        analysis.gradient_through_time(
            layer, params, state, jnp.ones((2, 5, 3)), lambda y, _: y.sum()
        )
