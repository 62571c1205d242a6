"""What `init` returns: buffers of their own, and names by which a plain mapping is read."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

import normjax as nj
from normjax import recurrent, testing
from normjax.state import _names
from tests._support.properties import own_buffers

RNG = np.random.default_rng(0)

LAYERS = {
    "rnn": recurrent.rnn(4),
    "lstm": recurrent.lstm(4, learn_carry=True),
    "gru": recurrent.gru(4, learn_carry=True),
    "bn_lstm": recurrent.bn_lstm(4, 5, learn_carry=True),
    "bn_gru": recurrent.bn_gru(4, 5),
    "one_step": recurrent.rnn(4, norm_h=recurrent.per_step(nj.batch_norm(), 1, share_params=False)),
    "own_params": recurrent.rnn(
        4, norm_h=recurrent.per_step(nj.batch_norm(), 5, share_params=False)
    ),
    "shared": recurrent.rnn(4, norm_h=recurrent.shared(nj.batch_norm(compensated=True))),
    "deep_speech_rnn": recurrent.deep_speech_rnn(4),
    "vertical_bn_lstm": recurrent.vertical_bn_lstm(4),
    "ln_lstm": recurrent.ln_lstm(4),
    "wn_lstm": recurrent.wn_lstm(4),
    "spectral": nj.reparam(recurrent.bn_lstm(4, 5), {"w_x": nj.spectral_norm()}),
    "stack": recurrent.stack([recurrent.bn_lstm(4, 5), recurrent.lstm(4, learn_carry=True)]),
    "bidirectional": recurrent.bidirectional(recurrent.bn_lstm(4, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_buffers_of_its_own(name):
    """A step may donate what `init` returned, so no two of its arrays share a buffer."""
    layer = LAYERS[name]
    own_buffers(*layer.init(jax.random.key(0), 3), layer.stateful)


@pytest.mark.parametrize("how", [_names.to_dict, lambda tree: freeze(_names.to_dict(tree))])
def test_layers_read_params_by_their_names(how):
    x = jnp.asarray(RNG.normal(size=(3, 5, 3)), jnp.float32)
    for name in ("lstm", "bn_lstm", "wn_lstm"):
        layer = LAYERS[name]
        params, state = layer.init(jax.random.key(0), 3)
        restored = how(state) if layer.stateful else state
        for stats in ("batch", "running"):
            (got, _), after = layer.apply(how(params), restored, x, stats=stats)
            (want, _), moved = layer.apply(params, state, x, stats=stats)
            np.testing.assert_array_equal(got, want)
            assert jax.tree.structure(after) == jax.tree.structure(moved)
            jax.tree.map(np.testing.assert_array_equal, after, moved)
    params, _ = LAYERS["lstm"].init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="variable 'c' is missing"):
        LAYERS["lstm"].apply(params | {"carry": {"h": jnp.zeros(4)}}, {}, x, stats="running")
    lift = recurrent.per_step(nj.batch_norm(), 5)
    params, state = lift.init((1, 3))
    got, _ = lift.apply(how(params), how(state), x.swapaxes(0, 1), stats="running")
    np.testing.assert_array_equal(
        got, lift.apply(params, state, x.swapaxes(0, 1), stats="running")[0]
    )


@pytest.mark.parametrize("sample", testing.REPARAMS, ids=lambda s: s.name)
def test_weight_methods_read_params_by_their_names(sample):
    params, state = sample.reparam.init(sample.weight(), key=jax.random.key(0))
    by_name = _names.to_dict(state) if jax.tree.leaves(state) else state
    got, _ = sample.reparam.apply(_names.to_dict(params), by_name, stats="batch")
    np.testing.assert_array_equal(got, sample.reparam.apply(params, state, stats="batch")[0])
    with pytest.raises(ValueError, match=r"has the names \['v', 'g'\]"):
        sample.reparam.apply({"kernel": params.v}, state, stats="batch")


def test_fold_and_moments_read_them_too():
    norm = nj.batch_norm()
    params, state = norm.init((1, 3))
    x = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    _, state = norm.apply(params, state, x, stats="batch")
    for how in (_names.to_dict, lambda tree: freeze(_names.to_dict(tree))):
        for got, want in zip(
            nj.fold(norm, how(params), how(state)), nj.fold(norm, params, state), strict=True
        ):
            np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(
            norm.moments(how(params), x).mean, norm.moments(params, x).mean
        )
    with pytest.raises(ValueError, match=r"has the names \['scale', 'bias'\]"):
        nj.fold(norm, {"gamma": jnp.ones(3)}, state)
    with pytest.raises(ValueError, match="fold was given a state of the names"):
        nj.fold(norm, params, {"mean": jnp.ones(3)})
    with pytest.raises(TypeError, match=r"write Running\(m\['mean'\]"):
        nj.normalize.__wrapped__(x, _names.to_dict(state), 0, eps=1e-5)
