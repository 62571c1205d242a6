"""Functions of a whole model's statistics, in our trees and in Flax's."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze

import normjax as nj
from normjax import linen, recurrent
from normjax.state import _names
from normjax.testing import SAMPLES
from tests._support.few import few
from tests.conftest import unchecked

RNG = np.random.default_rng(4)
X = RNG.normal(size=(24, 3)).astype(np.float32) * 2 + 5
standard = pytest.mark.standard_numerics


def close(got, want, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=rtol, atol=atol)


def moved(norm, shape=(24, 3)):
    params, state = norm.init(shape)
    return norm.apply(params, state, X.reshape(shape), stats="batch")[1]


def state_of_a_model():
    layer = recurrent.bn_lstm(2, max_steps=4)
    return {
        "conv": [moved(nj.batch_norm()), moved(nj.decorrelated_batch_norm())],
        "mean": moved(nj.mean_only_batch_norm()),
        "lstm": layer.init(jax.random.key(0), 3)[1],
        "none": (),
    }


def test_reset():
    state = state_of_a_model()
    new = nj.reset_statistics(state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    start, _ = new["conv"]
    close(start.mean, 0, 0, 0), close(start.var, 1, 0, 0)
    close(new["conv"][1].cov, np.eye(3)[None], 0, 0), close(new["mean"].mean, 0, 0, 0)
    for got, want in zip(
        jax.tree.leaves(nj.reset_statistics(nj.accumulate_statistics(state))),
        jax.tree.leaves(nj.accumulate_statistics(new)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)
    some = nj.reset_statistics(state, lambda path: path[0].key == "mean")
    assert some["conv"][0] is state["conv"][0]
    close(some["mean"].mean, 0, 0, 0)


def test_reset_of_batch_stats():
    stats = {
        "a": {"BatchNorm_0": {"mean": jnp.ones(2), "var": jnp.zeros(2)}},
        "b": {"mean": jnp.ones((2, 2)), "cov": jnp.zeros((2, 2, 2))},
        "spectral": {"u": jnp.ones(3), "sigma": jnp.ones(())},
    }
    new = nj.reset_statistics(stats)
    assert jax.tree.structure(new) == jax.tree.structure(stats)
    close(new["a"]["BatchNorm_0"]["mean"], 0, 0, 0), close(new["a"]["BatchNorm_0"]["var"], 1, 0, 0)
    close(new["b"]["cov"], np.stack([np.eye(2)] * 2), 0, 0)
    close(new["spectral"]["u"], 1, 0, 0)


def test_freeze():
    before = state_of_a_model()
    after = jax.tree.map(lambda v: v + 1, before)
    for got, want in zip(
        jax.tree.leaves(nj.restore_statistics(before, after)), jax.tree.leaves(before), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    part = nj.restore_statistics(before, after, lambda path: path[0].key == "conv")
    np.testing.assert_array_equal(part["conv"][0].var, before["conv"][0].var)
    np.testing.assert_array_equal(part["mean"].mean, after["mean"].mean)
    with pytest.raises(ValueError):
        nj.restore_statistics(before, {"other": 1})


# Flax ----------------------------------------------------------------------------------------


class Net(nn.Module):
    """Dense, norm, dense, norm: the second norm's input depends on the first one's mode."""

    first: nj.Norm = nj.batch_norm(correction=0)
    drop_in: bool = False

    @nn.compact
    def __call__(self, x, train):
        stats = "batch" if train else "running"
        x = linen.Normalize(self.first, name="first")(nn.Dense(4)(x), stats=stats)
        if self.drop_in:
            return linen.BatchNorm(name="second")(nn.relu(x), use_running_average=not train)
        return linen.Normalize(nj.batch_norm(), name="second")(nn.relu(x), stats=stats)


def run(net, train):
    return lambda v, x: net.apply(v, x, train, mutable=["batch_stats"])


def dense(variables, x):
    layer = jax.tree.map(lambda v: np.asarray(v, np.float64), variables["params"]["Dense_0"])
    return x.astype(np.float64) @ layer["kernel"] + layer["bias"]


@standard
@pytest.mark.parametrize("how", ["pooled", "unbiased", "mean"])
@pytest.mark.parametrize("train", few({"True": True, "False": False}, "True"))
def test_population_update(train, how):
    net = Net()
    variables = net.init(jax.random.key(0), X, True)
    _, old = run(net, True)(variables, X)
    variables = {**variables, **old}
    batches = [X[:5], X[5:14], X[14:]]  # uneven
    new = linen.population_update(run(net, train), variables, batches, how=how)
    assert jax.tree.structure(new) == jax.tree.structure(variables["batch_stats"])

    z = [dense(variables, x) for x in batches]
    kept = variables["batch_stats"]["first"]
    h = []
    for b in z:
        m, v = (
            (b.mean(0), b.var(0)) if train else (np.asarray(kept["mean"]), np.asarray(kept["var"]))
        )
        h.append(np.maximum((b - m) / np.sqrt(v + 1e-5), 0))
    for name, parts in (("first", z), ("second", h)):
        whole = np.concatenate(parts)
        want = {
            "pooled": (whole.mean(0), whole.var(0)),
            "unbiased": (
                np.mean([p.mean(0) for p in parts], 0),
                np.mean([p.var(0, ddof=1) for p in parts], 0),
            ),
            "mean": (
                np.mean([p.mean(0) for p in parts], 0),
                np.mean([p.var(0) for p in parts], 0),
            ),
        }[how]
        close(new[name]["mean"], want[0]), close(new[name]["var"], want[1])
    net.apply({**variables, "batch_stats": new}, X, False)


@standard
@pytest.mark.parametrize(("how", "train"), [("pooled", True), ("unbiased", False)])
def test_population_update_of_the_drop_in_batch_norm(train, how):
    generic, net = Net(), Net(drop_in=True)
    variables = generic.init(jax.random.key(0), X, True)
    batches = [X[:5], X[5:14], X[14:]]
    want = linen.population_update(run(generic, train), variables, batches, how=how)
    got = linen.population_update(run(net, train), variables, batches, how=how)
    assert jax.tree.structure(got) == jax.tree.structure(variables["batch_stats"])
    close(got["first"]["var"], want["first"]["var"])
    close(got["second"]["mean"], want["second"]["mean"])
    close(got["second"]["var"], want["second"]["var"])


@standard
def test_population_update_of_covariances_and_recurrent_layers():
    net = Net(first=nj.decorrelated_batch_norm())
    variables = net.init(jax.random.key(0), X, True)
    new = linen.population_update(run(net, True), variables, [X[:9], X[9:]], correction=1)
    close(new["first"]["cov"][0], np.cov(dense(variables, X).T), 1e-4, 1e-5)

    layer = recurrent.bn_lstm(4, max_steps=5)
    module = linen.Recurrent(layer, stats="batch")
    x = RNG.normal(size=(6, 5, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), x)
    new = linen.population_update(
        lambda v, x: module.apply(v, x, mutable=["batch_stats"]), variables, [x[:2], x[2:]]
    )
    params = _names.from_dict(layer.init(jax.random.key(0), 3)[0], variables["params"])
    state = layer.init(jax.random.key(0), 3)[1]
    want = nj.population_statistics(layer, params, state, [x[:2], x[2:]])
    for place in ("norm_x", "norm_h", "norm_c"):
        close(new[place]["mean"], want[place].mean), close(new[place]["var"], want[place].var)


@standard
def test_population_update_traces_once():
    net, traces = Net(), []
    variables = net.init(jax.random.key(0), X, True)

    def apply(v, x):
        traces.append(1)
        return net.apply(v, x, True, mutable=["batch_stats"])

    linen.population_update(apply, variables, [X[:8], X[8:16], X[16:]])
    assert len(traces) == 1


@standard
def test_population_update_says_what_is_wrong():
    net = Net()
    variables = net.init(jax.random.key(0), X, True)
    with pytest.raises(ValueError, match="got no batch"):
        linen.population_update(run(net, True), variables, [])
    with pytest.raises(ValueError, match="no statistics"):
        linen.population_update(run(net, True), {"params": variables["params"]}, [X])
    flax = nn.BatchNorm(use_running_average=False)
    with pytest.raises(ValueError, match=r"normjax\.linen\.Normalize"):
        linen.population_update(
            lambda v, x: flax.apply(v, x, mutable=["batch_stats"]),
            flax.init(jax.random.key(0), X),
            [X],
        )


# Weight decay --------------------------------------------------------------------------------


def decays(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: not nj.is_norm_param(path), params)


def test_norm_params_of_ours():
    norm, layer = nj.batch_norm(), recurrent.bn_lstm(2, max_steps=3)
    params = {"norm": norm.init((1, 2))[0], "lstm": layer.init(jax.random.key(0), 3)[0]}
    mask = decays(params)
    assert mask["norm"] == nj.Affine(False, False)
    assert mask["lstm"]["w_x"] is True and mask["lstm"]["w_h"] is True
    assert not any(jax.tree.leaves(mask["lstm"]["norm_c"]))
    weight, _ = nj.weight_norm().init(jnp.ones((3, 2)))
    assert decays({"kernel": weight})["kernel"].g is False
    assert nj.is_norm_param(("a", "scale")) and not nj.is_norm_param(("scale", "kernel"))
    assert not nj.is_norm_param(())


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
def test_no_parameter_of_a_norm_decays(sample):
    assert not any(jax.tree.leaves(decays(sample.norm.init(sample.shape)[0])))


@pytest.mark.parametrize("cell", [recurrent.lstm, recurrent.gru, recurrent.rnn])
def test_of_a_layer_its_two_weights_decay(cell):
    layer = recurrent.stack([cell(2, learn_carry=True)] * 2)
    mask = decays(layer.init(jax.random.key(0), 3)[0])
    paths = [path for path, decayed in jax.tree_util.tree_leaves_with_path(mask) if decayed]
    assert {path[-1].key for path in paths} == {"w_x", "w_h"} and len(paths) == 4
    assert not nj.is_norm_param(("carry", "kernel")) and not nj.is_norm_param(("c",))


@standard
def test_norm_params_of_flax():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))
            x = nn.WeightNorm(nn.Dense(4))(x)
            return nn.LayerNorm()(x)

    params = Block().init(jax.random.key(0), X)["params"]
    mask = decays(params)
    assert mask["Dense_0"] == {"kernel": True, "bias": False}
    assert mask["BatchNorm_0"] == mask["LayerNorm_0"] == {"scale": False, "bias": False}
    assert not any(jax.tree.leaves(mask["WeightNorm_0"]))


def test_norm_params_by_the_names_of_other_frameworks():
    haiku = {
        "net/~/linear": {"w": 0.0, "b": 0.0},
        "net/~/layer_norm": {"scale": 0.0, "offset": 0.0},
    }
    mask = jax.tree_util.tree_map_with_path(lambda p, _: nj.is_norm_param(p, "haiku"), haiku)
    assert mask["net/~/linear"] == {"w": False, "b": True}
    assert mask["net/~/layer_norm"] == {"scale": True, "offset": True}
    assert not nj.is_norm_param(("offset",))

    equinox = {
        ("layers", "0", "weight"): False,
        ("layers", "0", "bias"): True,
        ("norm1", "weight"): True,
        ("norms", "0", "weight"): True,
        ("NormBlock", "linear", "weight"): False,
        ("weight",): False,
        (): False,
    }
    for path, want in equinox.items():
        assert nj.is_norm_param(path, "equinox") is want, path
    assert nj.is_norm_param(("a", "gamma"), {"gamma"}) and not nj.is_norm_param((), {"gamma"})
    assert nj.is_norm_param(("a", "b"), lambda names: names == ("a", "b"))
    with pytest.raises(ValueError, match="rules"):
        unchecked(nj.is_norm_param)(("a",), "keras")


def test_restoring_takes_a_frozen_dict_on_either_side():
    old = {"encoder": {"mean": jnp.zeros(2)}, "head": {"mean": jnp.zeros(2)}}
    new = jax.tree.map(lambda v: v + 1, old)
    where = lambda path: path[0].key == "encoder"  # noqa: E731
    for before, after in ((freeze(old), new), (old, freeze(new)), (freeze(old), freeze(new))):
        got = nj.restore_statistics(before, after, where)
        assert jax.tree.structure(got) == jax.tree.structure(after)
        np.testing.assert_array_equal(got["encoder"]["mean"], 0)
        np.testing.assert_array_equal(got["head"]["mean"], 1)


@standard
def test_masked_weight_decay():
    params = Net().init(jax.random.key(0), X, True)["params"]
    params = jax.tree.map(lambda v: v + 1.0, params)
    optimizer = optax.masked(optax.add_decayed_weights(0.1), decays)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    close(updates["Dense_0"]["kernel"], 0.1 * params["Dense_0"]["kernel"])
    for leaf in jax.tree.leaves((updates["first"], updates["second"], updates["Dense_0"]["bias"])):
        np.testing.assert_array_equal(leaf, 0)


def test_norm_params_of_nnx():
    from flax import nnx

    with jax.numpy_dtype_promotion("standard"):
        model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    assert not any(jax.tree.leaves(decays(state)))
