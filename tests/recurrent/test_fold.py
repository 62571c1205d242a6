"""A recurrent layer with its norms folded gives the outputs of inference, in less work."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from normjax.recurrent import per_step, sequence_wise, shared
from tests._support.few import few

RNG = np.random.default_rng(23)
H, T, F = 3, 5, 2
bn = nj.batch_norm(scale_init=0.5)
LAYERS = {
    "bn_lstm": recurrent.bn_lstm(H, T, learn_carry=True),
    "bn_gru": recurrent.bn_gru(H, T),
    "lifts": recurrent.lstm(H, norm_x=sequence_wise(bn), norm_h=shared(bn), norm_c=nj.rms_norm()),
    "own_params": recurrent.rnn(H, norm_sum=per_step(bn, T, share_params=False)),
    "short": recurrent.lstm(H, norm_h=per_step(bn, 2)),
    "stack": recurrent.stack([recurrent.bn_lstm(H, T), recurrent.gru(H)], norm_between=None),
    "bidirectional": recurrent.bidirectional(recurrent.bn_lstm(H, T)),
}


def started(layer, dtype=np.float64):
    """A layer's params and the statistics of a few batches."""
    params, state = layer.init(jax.random.key(0), F, jnp.dtype(dtype))
    params = jax.tree.map(lambda v: v + RNG.normal(size=v.shape).astype(dtype) / 4, params)
    step = jax.jit(lambda p, s, x: layer.apply(p, s, x, stats="batch")[1])
    for _ in range(3):
        state = step(params, state, RNG.normal(1.0, 2.0, (6, T, F)).astype(dtype))
    return params, state


@pytest.mark.parametrize("name", few([*LAYERS], "bn_lstm", "lifts"))
def test_the_outputs_are_those_of_inference(name, x64):
    layer = LAYERS[name]
    params, state = started(layer)
    served, constants, nothing = recurrent.fold(layer, params, state)
    assert not served.stateful and not jax.tree.leaves(nothing)
    x = RNG.normal(size=(4, T, F))
    lengths = jnp.array([5, 3, 0, 1])

    @jax.jit
    def outputs(constants, params, state):
        want = layer.apply(params, state, x, stats="running", lengths=lengths)[0]
        return want, [
            served.apply(constants, nothing, x, stats=stats, lengths=lengths)[0]
            for stats in ("running", "batch")
        ]

    want, found = outputs(constants, params, state)
    for got in found:
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_float32_outputs_are_within_1e_6():
    layer = LAYERS["bn_lstm"]
    params, state = started(layer, np.float32)
    served, constants, nothing = recurrent.fold(layer, params, state)
    x = RNG.normal(size=(4, T, F)).astype(np.float32)
    (want, _), _ = layer.apply(params, state, x, stats="running")
    (got, _), _ = served.apply(constants, nothing, x, stats="running")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_params_and_state_may_be_dictionaries():
    layer = LAYERS["bn_lstm"]
    params, state = started(layer, np.float32)
    names = lambda tree: {  # noqa: E731
        k: v._asdict() if isinstance(v, nj.Affine | nj.Running) else v for k, v in tree.items()
    }
    want = recurrent.fold(layer, params, state)
    got = recurrent.fold(layer, names(params), names(state))
    assert got[0] == want[0]
    for a, b in zip(jax.tree.leaves(got[1:]), jax.tree.leaves(want[1:]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.optimized
def test_a_step_costs_less():
    """By the compiler's count of the loop's body: no roots and fewer operations."""
    layer = LAYERS["bn_lstm"]
    params, state = started(layer, np.float32)
    served, constants, nothing = recurrent.fold(layer, params, state)
    x = jnp.ones((4, T, F))

    def cost(layer, params, state):
        run = jax.jit(lambda p, s, x: layer.apply(p, s, x, stats="running")[0])
        return run.lower(params, state, x).compile()

    plain, folded = cost(layer, params, state), cost(served, constants, nothing)
    assert "rsqrt" in plain.as_text() and "rsqrt" not in folded.as_text()
    assert folded.cost_analysis()["flops"] < 0.9 * plain.cost_analysis()["flops"]


def test_what_cannot_be_folded_says_so():
    layer = recurrent.wn_lstm(H)
    params, state = layer.init(jax.random.key(0), F)
    with pytest.raises(TypeError, match="materialize"):
        recurrent.fold(layer, params, state)
    # A norm of one sample stays.
    layer = recurrent.ln_lstm(H)
    assert recurrent.fold(layer, *layer.init(jax.random.key(0), F))[0] == layer
