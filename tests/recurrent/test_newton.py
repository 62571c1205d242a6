"""Newton over the whole sequence gives what the loop gives, or says that it does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from normjax import recurrent
from tests.conftest import unchecked
from tests.recurrent.test_layers import LAYERS, F, H, T

RNG = np.random.default_rng(29)
B = 4
FLAGS = {
    "lengths": np.array([T, 5, 0, 1]),
    "mask": ~np.isin(np.arange(B * T), (2, 3)).reshape(B, T),
    "resets": np.isin(np.arange(B * T), (3, T)).reshape(B, T),
}
MORE = {
    "segments": recurrent.bn_gru(H, T, clock="segment", scale_init=0.3),
    "noise": recurrent.lstm(H, h0_noise=0.5, zoneout_c=0.1, zoneout_h=0.2, dropout_h=0.3),
}
QUICK = ("bn_lstm", "stack", "segments")


def started(layer, dtype=jnp.float64):
    """Params and statistics that are of data."""
    params, state = layer.init(jax.random.key(0), F, dtype)
    step = jax.jit(lambda s, x: layer.apply(params, s, x, stats="batch", **keys(layer, False))[1])
    for _ in range(2):
        state = step(state, sequences(dtype))
    return params, state


def sequences(dtype=jnp.float64, batch=B):
    return jnp.asarray(RNG.normal(size=(batch, T, F)), dtype)


def keys(layer, noise):
    return {"key": jax.random.key(3), "noise": noise} if layer.needs_key else {}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in LAYERS | MORE],
)
def test_newton_equals_the_loop(name, x64):
    """Outputs, carry and state, with lengths, gaps and resets."""
    layer = (LAYERS | MORE)[name]
    params, state = started(layer)
    options = FLAGS | {"stats": "running"} | keys(layer, True)

    @jax.jit
    def both(x):
        solvers = "scan", recurrent.newton(max_sweeps=T)
        return [layer.apply(params, state, x, **options, solver=solver) for solver in solvers]

    want, got = both(sequences())
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_few_sweeps_serve_many_steps(x64):
    layer = recurrent.bn_lstm(3, 100)
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    x = jnp.asarray(RNG.normal(size=(2, 100, F)))
    # It raises where 12 do not suffice.
    solver = recurrent.newton(max_sweeps=12)
    (y, _), _ = layer.apply(params, state, x, stats="running", solver=solver)
    (want, _), _ = layer.apply(params, state, x, stats="running")
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)


def test_what_does_not_converge_is_an_error_and_the_loop_under_jit(x64):
    layer = LAYERS["bn_lstm"]
    params, state = started(layer)
    x = sequences()

    def run(x, solver):
        return layer.apply(params, state, x, stats="running", solver=solver)[0]

    def few(x):
        return run(x, recurrent.newton(max_sweeps=1))

    with pytest.raises(RuntimeError, match=r'not converge: sweep 1 .* Write solver="scan"'):
        few(x)
    for a, b in zip(jax.tree.leaves(jax.jit(few)(x)), jax.tree.leaves(run(x, "scan")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    error, _ = jax.jit(checkify.checkify(few))(x)
    assert "not converge: sweep 1 " in error.get()
    error, _ = jax.jit(checkify.checkify(lambda x: run(x, "newton")))(x)
    assert error.get() is None


@pytest.mark.slow
def test_newton_over_devices():
    """Under `shard_map` each device stops by its own sequences, under `jit` all together."""
    layer = LAYERS["bn_lstm"]
    params, state = started(layer, jnp.float32)
    x = sequences(jnp.float32)

    def run(x):
        return layer.apply(params, state, x, stats="running", solver="newton")[0][0]

    want = jax.jit(run)(x)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        split = jax.device_put(x, jax.sharding.NamedSharding(mesh, P("d")))
        np.testing.assert_allclose(jax.jit(run)(split), want, rtol=1e-5, atol=1e-6)
        mapped = jax.shard_map(run, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
        np.testing.assert_allclose(jax.jit(mapped)(split), want, rtol=1e-5, atol=1e-6)


MISTAKES = {
    "training": ({"stats": "batch", "solver": "newton"}, jnp.float32, "couples the sequences"),
    "unknown": ({"stats": "running", "solver": "euler"}, jnp.float32, "euler"),
    "half": ({"stats": "running", "solver": "newton"}, jnp.bfloat16, r"astype\(jnp.float32\)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_a_solver_say_what_to_write(name):
    options, dtype, message = MISTAKES[name]
    for layer in (recurrent.rnn(H), recurrent.stack([recurrent.rnn(H)])):
        params, state = layer.init(jax.random.key(0), F)
        with pytest.raises(ValueError, match=message):
            unchecked(type(layer).apply)(
                layer, params, state, jnp.ones((1, 2, F), dtype), **options
            )


def test_a_solver_is_a_value_with_checked_numbers():
    assert repr(recurrent.newton(max_sweeps=3)) == "newton(max_sweeps=3)"
    assert hash(recurrent.newton()) == hash(recurrent.newton())
    for options in ({"max_sweeps": 0}, {"tolerance": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            recurrent.newton(**options)
