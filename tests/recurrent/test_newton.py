"""Newton over the whole sequence gives the states of the loop, or says that it does not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from tests.conftest import unchecked

RNG = np.random.default_rng(29)
H, T, F = 3, 24, 2
LAYERS = {
    "bn_lstm": recurrent.bn_lstm(H, T, learn_carry=True),
    "gru": recurrent.gru(H, norm_h=nj.layer_norm(), zoneout_h=0.1),
    "rnn": recurrent.rnn(H, norm_x=recurrent.sequence_wise(nj.batch_norm()), time_major=True),
}


def started(layer):
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    step = jax.jit(lambda p, s, x: layer.apply(p, s, x, stats="batch", noise=False)[1])
    for _ in range(3):
        state = step(params, state, sequences(layer))
    return params, state


def sequences(layer, batch=4):
    x = RNG.normal(size=(batch, T, F))
    return x.swapaxes(0, 1) if layer.time_major else x


@pytest.mark.parametrize("name", LAYERS)
def test_the_outputs_are_those_of_the_loop(name, x64):
    layer = LAYERS[name]
    params, state = started(layer)
    x, lengths = sequences(layer), jnp.array([T, 5, 0, 1])
    got, sweeps = recurrent.newton(layer, params, state, x, lengths=lengths)
    run = jax.jit(lambda x: layer.apply(params, state, x, stats="running", lengths=lengths)[0])
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(run(x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    assert int(sweeps) < T / 2


def test_what_does_not_converge_is_an_error_and_nan_under_jit(x64):
    layer = LAYERS["bn_lstm"]
    params, state = started(layer)
    run = functools.partial(recurrent.newton, layer, params, state, max_sweeps=1)
    x = sequences(layer)
    with pytest.raises(RuntimeError, match="did not converge: after 1 sweeps"):
        run(x)
    (y, carry), sweeps = jax.jit(run)(x)
    assert np.isnan(y).all() and np.isnan(carry.h).all() and int(sweeps) == 1


def test_what_it_does_not_take_says_so():
    layer = recurrent.stack([recurrent.rnn(H)])
    with pytest.raises(TypeError, match="one by one"):
        unchecked(recurrent.newton)(layer, {}, {}, jnp.ones((1, 2, F)))
    layer = recurrent.rnn(H, h0_noise=0.1)
    with pytest.raises(ValueError, match="h0_noise=0"):
        recurrent.newton(layer, *layer.init(jax.random.key(0), F), jnp.ones((1, 2, F)))
