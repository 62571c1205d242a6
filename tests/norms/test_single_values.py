"""Batch statistics of a single value: an error where shapes or a known mask tell it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj
from normjax import linen, recurrent
from normjax import nnx as nn

STATEFUL = {
    "batch_norm": (nj.batch_norm, (1, 3)),
    "batch_renorm": (nj.batch_renorm, (1, 3)),
    "ghost_batch_norm": (lambda **k: nj.ghost_batch_norm(size=4, **k), (1, 3)),
    "mean_only_batch_norm": (nj.mean_only_batch_norm, (1, 3)),
    "decorrelated_batch_norm": (nj.decorrelated_batch_norm, (1, 3)),
    "iterative_norm": (nj.iterative_norm, (1, 3)),
    "evo_norm_b0": (nj.evo_norm_b0, (1, 1, 3)),
    "switchable_norm": (nj.switchable_norm, (1, 1, 3)),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_one_value_a_channel_is_refused_in_training_alone(name):
    factory, shape = STATEFUL[name]
    norm, x = factory(), jnp.arange(3.0).reshape(shape)
    params, state = norm.init(shape, key=jax.random.key(0))
    with pytest.raises(ValueError, match=rf"one value.*write {name}\(allow_single=True\)|or write"):
        norm.apply(params, state, x, stats="batch")
    with pytest.raises(ValueError, match="over one value"):
        jax.eval_shape(lambda x: norm.apply(params, state, x, stats="batch"), x)
    # Evaluation, measuring alone, and a population of single samples are none of this.
    y, _ = norm.apply(params, state, x, stats="running")
    assert np.isfinite(y).all()
    norm.moments(params, x)
    _, gathered = norm.apply(params, nj.accumulate_statistics(state), x, stats="running")
    assert nj.finalize_statistics(gathered).mean.shape == state.mean.shape
    meant = factory(allow_single=True)
    assert "allow_single=True" in repr(meant)
    y, new = meant.apply(params, state, x, stats="batch")
    assert np.isfinite(y).all() and jax.tree.structure(new) == jax.tree.structure(state)


def test_two_values_or_space_are_enough():
    norm = nj.batch_norm()
    params, state = norm.init((1, 3))
    for shape in ((2, 3), (1, 2, 3), (0, 3)):
        norm.apply(params, state, jnp.ones(shape), stats="batch")


def test_a_batch_that_a_reshape_hides():
    norm = nj.batch_norm(axes=(0,))
    params, state = norm.init((1, 2, 3))
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3\) over one value"):
        norm.apply(params, state, jnp.ones((1, 2, 3)), stats="batch")


def test_a_virtual_batch_of_one():
    norm = nj.ghost_batch_norm(size=2)
    params, state = norm.init((1, 3))
    with pytest.raises(ValueError, match="ghost_batch_norm of each virtual batch"):
        norm.apply(params, state, jnp.ones((3, 3)), stats="batch")  # 2 and 1
    norm.apply(params, state, jnp.ones((4, 3)), stats="batch")
    norm.apply(params, state, jnp.ones((3, 2, 3)), stats="batch")


def test_a_known_mask_that_leaves_one_value():
    norm = nj.batch_norm()
    params, state = norm.init((1, 3))
    x, one = jnp.ones((4, 3)), jnp.array([[True], [False], [False], [False]])
    with pytest.raises(ValueError, match=r"mask leaves one value .* for 3 of 3 statistics"):
        norm.apply(params, state, x, stats="batch", mask=one)
    norm.apply(params, state, x, stats="running", mask=one)
    norm.apply(params, state, x, stats="batch", mask=jnp.zeros((4, 1), bool))
    norm.apply(params, state, x, stats="batch", mask=one.at[1].set(True))
    # A traced mask has no values to tell it by.
    jax.jit(lambda m: norm.apply(params, state, x, stats="batch", mask=m))(one)


def test_values_of_all_devices_count():
    norm = nj.batch_norm()
    params, state = norm.init((1, 3))
    x = jnp.arange(12.0).reshape(4, 1, 3)

    def mapped(axis_name, norm=norm):
        return jax.vmap(
            lambda x: norm.apply(params, state, x, stats="batch", axis_name=axis_name)[0],
            axis_name="d",
        )

    np.testing.assert_allclose(mapped("d")(x).mean(0), np.zeros((1, 3)), atol=1e-6)
    with pytest.raises(ValueError, match="axis_name= counts the values of all devices"):
        mapped(None)(x)
    with pytest.raises(ValueError, match="axis 'd' pools 1 device"):
        mapped("d")(x[:1])


@pytest.mark.parametrize("lift", ["per_step", "shared"])
def test_per_step_statistics_of_one_sequence(lift):
    def layer(**options):
        norm = nj.batch_norm(**options)
        seq = recurrent.shared(norm) if lift == "shared" else recurrent.per_step(norm, 5)
        return recurrent.rnn(4, norm_h=seq)

    params, state = layer().init(jax.random.key(0), 3)
    x = jnp.ones((1, 5, 3))
    with pytest.raises(ValueError, match=r"batch_norm of each time step .*allow_single=True"):
        layer().apply(params, state, x, stats="batch")
    layer().apply(params, state, x, stats="running")
    layer(allow_single=True).apply(params, state, x, stats="batch")
    layer().apply(params, state, jnp.ones((2, 5, 3)), stats="batch")


def test_sequence_wise_statistics_count_the_steps():
    layer = recurrent.rnn(4, norm_x=recurrent.sequence_wise(nj.batch_norm()))
    params, state = layer.init(jax.random.key(0), 3)
    layer.apply(params, state, jnp.ones((1, 5, 3)), stats="batch")
    with pytest.raises(ValueError, match="over one value"):
        layer.apply(params, state, jnp.ones((1, 1, 3)), stats="batch")


def test_presets_pass_it_on():
    for make in (recurrent.bn_lstm, recurrent.bn_gru):
        layer = make(4, 5, allow_single=True)
        params, state = layer.init(jax.random.key(0), 3)
        layer.apply(params, state, jnp.ones((1, 5, 3)), stats="batch")
        with pytest.raises(ValueError, match="over one value"):
            make(4, 5).apply(params, state, jnp.ones((1, 5, 3)), stats="batch")


def test_flax_modules():
    """Flax's own layers take a batch of one; ours where it is said, and while initializing."""
    x = jnp.ones((1, 3))
    for options, fails in (({}, True), ({"allow_single": True}, False)):
        module = linen.BatchNorm(use_running_average=False, **options)
        variables = module.init(jax.random.key(0), x)
        layer = nn.BatchNorm(3, rngs=nnx.Rngs(0), **options)
        generic = linen.Normalize(nj.batch_norm(**options), stats="batch")
        made = generic.init(jax.random.key(0), x)
        for call in (
            lambda m=module, v=variables: m.apply(v, x, mutable=["batch_stats"]),
            lambda m=layer: m(x),
            lambda m=generic, v=made: m.apply(v, x, mutable=["batch_stats"]),
        ):
            if fails:
                with pytest.raises(ValueError, match=r"over one value.*allow_single=True"):
                    call()
            else:
                call()
    layer = nn.BatchNorm(3, rngs=nnx.Rngs(0))
    layer.eval()
    layer(x)
    recurrent_module = linen.Recurrent(recurrent.bn_lstm(4, 5), stats="batch")
    variables = recurrent_module.init(jax.random.key(0), jnp.ones((1, 5, 3)))
    with pytest.raises(ValueError, match="over one value"):
        recurrent_module.apply(variables, jnp.ones((1, 5, 3)), mutable=["batch_stats"])
