"""`remat_steps`: the same numbers for less memory."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import normjax as nj
from normjax import recurrent
from tests._support import properties
from tests._support.few import few

RNG = np.random.default_rng(0)
STEPS = 13
LAYERS = {
    "lstm": functools.partial(recurrent.lstm, 4, zoneout_h=0.2, learn_carry=True),
    "bn_lstm": functools.partial(recurrent.bn_lstm, 4, max_steps=11),
    "gru": functools.partial(recurrent.gru, 4, norm_h=recurrent.shared(nj.batch_norm())),
    "rnn": functools.partial(recurrent.rnn, 4, norm_x=recurrent.sequence_wise(nj.batch_norm())),
}


def through(layer, params, state, x, lengths):
    def loss(params, x):
        (y, carry), after = layer.apply(
            params, state, x, stats="batch", lengths=lengths, key=jax.random.key(1)
        )
        return jnp.sum(jnp.sin(y)) + sum(map(jnp.sum, jax.tree.leaves(carry))), (y, after)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)


# Each layer in chunks of 5, of 13 steps, and one layer in chunks of every kind.
CHUNKS = {f"{name}-5": (make, 5) for name, make in LAYERS.items()}
CHUNKS |= {f"bn_lstm-{chunk}": (LAYERS["bn_lstm"], chunk) for chunk in (1, 13, 40)}


@pytest.mark.parametrize(("make", "chunk"), few(CHUNKS, "bn_lstm-5"))
def test_nothing_else_changes(make, chunk, x64):
    params, state = make().init(jax.random.key(0), 3, jnp.float64)
    x = jnp.asarray(RNG.normal(size=(6, STEPS, 3)))
    lengths = jnp.array([STEPS, 4, 9, 13, 12, 13])
    whole = jax.jit(functools.partial(through, make()))(params, state, x, lengths)
    cut = jax.jit(functools.partial(through, make(remat_steps=chunk)))(params, state, x, lengths)
    properties.same(cut, whole, rtol=1e-8, atol=1e-9)


def test_it_looks_as_before():
    plain, cut = (recurrent.bn_lstm(4, max_steps=STEPS, **how) for how in ({}, {"remat_steps": 5}))
    params, state = plain.init(jax.random.key(0), 3)
    x = jnp.asarray(RNG.normal(size=(3, STEPS, 3)), jnp.float32)
    infos = [layer.info(params, state, x, stats="batch") for layer in (plain, cut)]
    properties.same(infos[1], infos[0], rtol=1e-5, atol=1e-6)


def test_memory_goes_as_the_root_of_the_length(force_schedule):
    force_schedule("in_loop")  # no input term of all steps

    def temporary(chunk):
        layer = recurrent.bn_lstm(32, max_steps=400, remat_steps=chunk)
        params, state = layer.init(jax.random.key(0), 1)

        def loss(params, x):
            return layer.apply(params, state, x, stats="batch")[0][1].h.sum()

        run = jax.jit(jax.grad(loss)).lower(params, jnp.ones((16, 400, 1))).compile()
        return run.memory_analysis().temp_size_in_bytes

    whole, cut = temporary(None), temporary(20)
    # What is left as it was: outputs and statistics of 400 steps, and their gradients.
    assert cut < whole / 3


def test_no_device_is_asked_twice():
    """Collectives stand in the loops forward and backward, and not in the second run forward."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def calls(chunk):
        layer = recurrent.lstm(4, norm_h=recurrent.per_step(nj.batch_norm(), 12), remat_steps=chunk)
        params, state = layer.init(jax.random.key(0), 3)

        def loss(params, x):
            y = layer.apply(params, state, x, stats="batch", axis_name="d")[0][0]
            return jax.lax.psum(y.sum(), "d")

        run = jax.shard_map(
            jax.grad(loss), mesh=mesh, in_specs=(P(), P("d")), out_specs=P(), check_vma=True
        )
        return str(jax.make_jaxpr(run)(params, jnp.ones((4, 12, 3)))).count("psum")

    assert calls(4) == calls(None) > 0


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True])
def test_a_wrong_number_is_told(wrong):
    with pytest.raises((TypeError, ValueError), match="remat_steps"):
        recurrent.lstm(4, remat_steps=wrong)


def test_backward_keeps_products_statistics_and_activations(force_schedule):
    """Of each step: nothing that a few products of single values would give again."""
    force_schedule("in_loop")
    hidden, features, batch = 5, 3, 7
    layer = recurrent.bn_lstm(hidden, max_steps=STEPS)
    params, state = layer.init(jax.random.key(0), features)

    def residuals(params, x):
        def loss(params, x):
            return layer.apply(params, state, x, stats="batch")[0][0].sum()

        return jax.vjp(loss, params, x)[1]

    saved = jax.tree.leaves(jax.eval_shape(residuals, params, jnp.ones((batch, STEPS, features))))
    of_rows = [v.shape[2] for v in saved if v.shape[:2] == (STEPS, batch)]
    of_steps = [v.shape[1:] for v in saved if v.shape[:1] == (STEPS,) and v.shape[1:2] != (batch,)]
    # Two products of four blocks, three gates, two tanh, and the carry before the step; and x.
    assert sum(of_rows) == (2 * 4 + 3 + 2 + 2) * hidden + features
    # Mean and variance of three norms, and no counts.
    assert sum(map(np.prod, of_steps)) == 2 * (4 + 4 + 1) * hidden
