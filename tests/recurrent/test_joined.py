"""Few arrays made of many small ones, and what a loop of time steps writes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import recurrent
from normjax.recurrent import _joined


def test_alike_leaves_are_stacked_and_constants_left_out():
    tree = {
        "a": jnp.arange(2.0),
        "b": None,
        "c": np.full(2, 9.0, np.float32),
        "d": jnp.arange(3.0),
        "e": jnp.ones(2),
        "f": jnp.ones(2, jnp.int32),
    }
    stacked = _joined.Stacked.of(tree)
    assert [a.shape for a in stacked.arrays] == [(2, 2), (1, 3), (1, 2)]
    assert jax.tree.structure(stacked) == jax.tree.structure(_joined.Stacked.of(tree))
    found = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), stacked).of_steps(2)
    want = {k: v if v is None else np.stack([v, v if k == "c" else 2 * v]) for k, v in tree.items()}
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_vectors_are_joined_by_dtype_and_come_back():
    tree = {
        "w": jnp.ones((2, 3)),
        "b": jnp.arange(3.0),
        "row": jnp.arange(4.0)[None],
        "half": jnp.ones(3, jnp.bfloat16),
        "empty": jnp.ones(0),
    }
    arrays, split = _joined.join_vectors(tree)
    assert sorted(a.shape for a in arrays) == [(0,), (2, 3), (3,), (7,)]
    jax.tree.map(np.testing.assert_array_equal, split(arrays), tree)
    gradient = jax.grad(lambda arrays: jnp.sum(split(arrays)["row"] ** 2))(arrays)
    assert [float(jnp.sum(g)) for g in gradient if g.shape == (7,)] == [12.0]


@pytest.mark.parametrize(
    ("make", "stored"),
    [
        # Of each step: recurrent product, gates, both halves of the carry, and of each norm mean
        # and variance, which batch norm returns besides.
        (lambda: recurrent.bn_lstm(4, max_steps=3, input_schedule="before_loop"), 6 + 2),
        (lambda: recurrent.ln_lstm(4, input_schedule="before_loop"), 6),
    ],
    ids=["bn_lstm", "ln_lstm"],
)
def test_a_step_writes_few_arrays(make, stored):
    layer = make()
    params, state = layer.init(jax.random.key(0), features=2)

    def loss(params, x):
        (_, carry), new = layer.apply(params, state, x, stats="batch")
        return jnp.sum(carry.h), new

    trace = jax.make_jaxpr(jax.value_and_grad(loss, has_aux=True))(params, jnp.ones((5, 3, 2)))
    scans = [e for e in trace.eqns if e.primitive.name == "scan"]
    forward, backward = scans
    # What a loop writes once a step has a leading axis of 3 steps; nothing else has.
    written = [v for v in forward.outvars if v.aval.shape[:1] == (3,) and v.aval.size > 3]
    assert len(written) <= stored + 1  # and the output
    # Backward it adds up gradients of w_h and of all vectors, beside the carry's.
    carried = [v for v in backward.outvars if v.aval.shape[:1] != (3,)]
    assert 2 + 2 <= len(carried) <= 2 + 2 + 1
