"""Layers on explicit axes of a mesh, JAX's default: types tell how a batch is split."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from normjax import recurrent
from tests._support import properties

LAYERS = {
    "bn_lstm": recurrent.bn_lstm(4, 5),
    "lstm": recurrent.lstm(4),
    "gru": recurrent.gru(4),
    "ln_lstm, learned carry": recurrent.ln_lstm(4, learn_carry=True),
    "stack": recurrent.stack([recurrent.bn_lstm(4, 5), recurrent.rnn(4)]),
    "bidirectional": recurrent.bidirectional(recurrent.ln_lstm(4)),
}
CASES = [
    pytest.param(layer, id=name, marks=[] if name == "bn_lstm" else [pytest.mark.slow])
    for name, layer in LAYERS.items()
]


@pytest.mark.parametrize("layer", CASES)
def test_a_batch_split_by_type_has_the_statistics_and_gradients_of_the_whole(layer):
    params, state = layer.init(jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (8, 5, 3))

    @jax.jit
    def both(params, x):
        def loss(params, x):
            (y, carry), after = layer.apply(params, state, x, stats="batch")
            return jnp.sum(jnp.sin(y)), (y, carry, after)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    want = both(params, x)
    mesh = jax.make_mesh((4,), ("d",))
    with jax.set_mesh(mesh):
        got = both(params, jax.device_put(x, NamedSharding(mesh, P("d"))))
    (_, (y, _, _)), _ = got
    assert jax.typeof(y).sharding.spec[0] == "d"
    properties.same(got, want, rtol=1e-4, atol=1e-4)
