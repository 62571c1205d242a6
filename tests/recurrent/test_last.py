"""The last outputs, of every step's or of the carry."""

from __future__ import annotations

import re

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

import normjax as nj
from normjax import linen, nnx, recurrent
from tests._support.few import few
from tests.conftest import unchecked

B, T, F, H = 3, 4, 2, 3
LENGTHS = np.array([4, 2, 1])
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, F)), jnp.float32)

LAYERS = {
    "lstm": recurrent.lstm(H),
    "bn_lstm": recurrent.bn_lstm(H, T, allow_single=True),
    "bn_gru": recurrent.bn_gru(H, T, allow_single=True),
    "rnn": recurrent.rnn(H),
    "zoneout": recurrent.lstm(H, zoneout_h=0.3, zoneout_c=0.1),
    "reparam": nj.reparam(recurrent.gru(H), {"w_h": nj.weight_norm()}),
    "stack": recurrent.stack([recurrent.lstm(H), recurrent.gru(H)]),
}


def test_last_is_the_step_before_the_padding():
    y = np.random.default_rng(1).normal(size=(B, T, F, H)).astype(np.float32)
    lengths = np.array([4, 2, 0])
    want = np.stack([y[0, 3], y[1, 1], np.zeros((F, H))])
    np.testing.assert_array_equal(recurrent.last(y, lengths), want)
    np.testing.assert_array_equal(jax.jit(recurrent.last)(y, lengths), want)
    np.testing.assert_array_equal(recurrent.last(y), y[:, -1])
    first = recurrent.last(y.swapaxes(0, 1), lengths, time_major=True)
    np.testing.assert_array_equal(first, want)
    # Padding with NaN has no gradient.
    spoiled = np.where((np.arange(T) < lengths[:, None])[..., None, None], y, np.nan)
    gradient = jax.grad(lambda y: recurrent.last(y, lengths).sum())(spoiled)
    assert np.isfinite(gradient).all()
    assert gradient[1, 1].min() == 1
    assert gradient.sum() == 2 * F * H


@pytest.mark.parametrize("layer", few(LAYERS, "bn_lstm", "zoneout", "reparam"))
def test_output_of_the_carry_is_the_last(layer):
    params, state = layer.init(jax.random.key(0), F)
    (y, carry), _ = layer.apply(params, state, X, stats="running", lengths=LENGTHS)
    np.testing.assert_array_equal(layer.output(carry), recurrent.last(y, LENGTHS))


@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_output_of_a_pair_has_both_directions_after_the_whole_sequence(merge):
    layer = recurrent.bidirectional(recurrent.lstm(H), recurrent.gru(H), merge=merge)
    params, state = layer.init(jax.random.key(0), F)
    (y, carry), _ = layer.apply(params, state, X, stats="running", lengths=LENGTHS)
    (ends, _), _ = layer.forward.apply(
        params["forward"], state["forward"], X, stats="running", lengths=LENGTHS
    )
    ends = recurrent.last(ends, LENGTHS)
    first = y[:, 0, H:] if merge == "concat" else y[:, 0] - layer_first(layer, params, state)
    want = np.concatenate([ends, first], -1) if merge == "concat" else ends + first
    np.testing.assert_allclose(layer.output(carry), want, rtol=1e-5, atol=1e-6)


def layer_first(layer, params, state):
    """The forward direction's first output."""
    (y, _), _ = layer.forward.apply(params["forward"], state["forward"], X[:, :1], stats="running")
    return y[:, 0]


def test_a_mask_that_skips_the_end_leaves_the_last_output_in_the_carry():
    layer = recurrent.gru(H)
    params, state = layer.init(jax.random.key(0), F)
    mask = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]], bool)
    (y, carry), _ = layer.apply(params, state, X, stats="running", mask=mask)
    want = np.stack([y[0, 1], y[1, 2], y[2, 3]])
    np.testing.assert_array_equal(layer.output(carry), want)


@pytest.mark.parametrize("name", few(["bn_lstm", "bn_gru", "stack"], "bn_lstm", "stack"))
def test_flax_modules_take_resets_and_mask_and_have_output(name):
    """One classifier for every layer, in Linen and in NNX; both pass resets and mask on."""
    layer = LAYERS[name]
    params, state = layer.init(jax.random.key(0), F)
    flags = {
        "resets": np.array([[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], bool),
        "mask": np.array([[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1]], bool),
    }
    (_, carry), _ = layer.apply(params, state, X, stats="batch", **flags)

    class Classifier(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x, *, stats, **flags):
            module = linen.Recurrent(layer)
            carry, _ = module(x, stats=stats, return_carry=True, **flags)
            return module.output(carry)

    variables = Classifier().init(jax.random.key(0), X, stats="running")
    made = jax.tree.leaves(variables["params"])
    assert len(made) == len(jax.tree.leaves(params))
    same = jax.tree.unflatten(jax.tree.structure(variables["params"]), _by_name(params))
    got, _ = Classifier().apply(
        {**variables, "params": same}, X, stats="batch", mutable=["batch_stats"], **flags
    )
    np.testing.assert_allclose(got, layer.output(carry), rtol=1e-5, atol=1e-6)

    module = nnx.Recurrent(layer, F, rngs=flax_nnx.Rngs(0))
    last, y = module(X, stats="running", return_carry=True, **flags)
    np.testing.assert_array_equal(module.output(last)[1:], recurrent.last(y)[1:])
    plain = module(X, stats="running")
    assert np.abs(plain - y).max() > 1e-3


def _by_name(params):
    """Leaves in the order of Flax's dictionaries, whose names are sorted."""

    def leaves(tree):
        fields = tree._asdict() if hasattr(tree, "_asdict") else tree
        if not isinstance(fields, dict):
            return [] if fields is None else [fields]
        return [leaf for name in sorted(fields) for leaf in leaves(fields[name])]

    return leaves(params)


def test_what_has_no_last_output_is_refused():
    residual = recurrent.stack([recurrent.gru(H), recurrent.gru(H)], residual=True)
    with pytest.raises(ValueError, match=re.escape("recurrent.last(y, lengths)")):
        residual.output((jnp.zeros((B, H)),) * 2)
    with pytest.raises(ValueError, match="one"):
        LAYERS["stack"].output((jnp.zeros((B, H)),) * 3)
    with pytest.raises(ValueError, match=re.escape("layer.output(carry)")):
        unchecked(recurrent.last)(jnp.zeros(H))
    with pytest.raises(TypeError, match="integers"):
        unchecked(recurrent.last)(jnp.zeros((B, T, H)), jnp.ones(B))
