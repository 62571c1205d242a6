"""Reparametrized layers and models: weights found by path, made once, never written to."""

from __future__ import annotations

import dataclasses
import inspect
import pickle

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import normjax as nj
from normjax import analysis, linen, recurrent
from tests._support import reference
from tests.conftest import unchecked

CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def rand(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def f64(x):
    return np.asarray(x, np.float64)


# Weight norm.


def lstm():
    return nj.reparam(recurrent.lstm(4), {"w_x": nj.weight_norm(), "w_h": nj.weight_norm()})


def test_weight_normalized_lstm_starts_as_the_plain_one():
    plain, layer = recurrent.lstm(4), lstm()
    x, n = rand(0, 3, 6, 2), jnp.array([6, 2, 4])
    want, _ = plain.apply(*plain.init(jax.random.key(1), 2), x, stats="batch", lengths=n)
    params, state = layer.init(jax.random.key(1), features=2)
    got, _ = layer.apply(params, state, x, stats="batch", lengths=n)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), got, want)


def test_weight_normalized_lstm_is_an_lstm_of_normalized_weights():
    layer, x = lstm(), rand(0, 3, 6, 2)
    params, state = layer.init(jax.random.key(1), 2)
    gains = jnp.linspace(0.5, 2, 16)
    params = {**params, "w_h": params["w_h"]._replace(g=gains)}
    (y, carry), _ = jax.jit(lambda p: layer.apply(p, state, x, stats="batch"))(params)
    w = {k: f64(params[k].v) / np.linalg.norm(f64(params[k].v), axis=0) for k in ("w_x", "w_h")}
    w = {k: v * f64(params[k].g) for k, v in w.items()} | {"bias": params["bias"]}
    want, h, c = reference.lstm(w, x)
    for a, b in ((y, want), (carry.h, h), (carry.c, c)):
        np.testing.assert_allclose(a, b, **CLOSE)


def _primitives(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _primitives(inner)


def test_weights_are_made_once_and_outside_the_scan():
    layer, x = lstm(), rand(0, 3, 6, 2)
    params, state = layer.init(jax.random.key(1), 2)
    run = jax.make_jaxpr(lambda p: layer.apply(p, state, x, stats="batch"))(params).jaxpr
    assert list(_primitives(run)).count("rsqrt") == 2  # one for each weight
    scans = [e for e in run.eqns if e.primitive.name == "scan"]
    assert len(scans) == 1
    assert "rsqrt" not in set(_primitives(scans[0].params["jaxpr"].jaxpr))


def test_a_reparametrized_layer_is_a_value():
    layer = lstm()
    names = {**vars(nj), **vars(recurrent)}
    assert pickle.loads(pickle.dumps(layer)) == layer == eval(repr(layer), names)
    assert hash(layer) == hash(lstm()) and layer != recurrent.lstm(4)
    assert repr(nj.reparam(nj.cosine_dense(2), {"kernel": nj.weight_norm()})) == (
        "reparam(cosine_dense(hidden=2), {'kernel': weight_norm()})"
    )
    assert layer.hidden == 4 and layer.norms() == {}
    with pytest.raises(AttributeError):
        _ = layer.nothing


def test_a_reparametrized_recurrent_layer_is_a_layer():
    rules = {"w_h": nj.weight_norm()}
    for layer in (recurrent.lstm(4, time_major=True), recurrent.stack([recurrent.bn_lstm(4, 5)])):
        whole = nj.reparam(layer, rules if hasattr(layer, "hidden") else {"*/w_h": rules["w_h"]})
        assert isinstance(whole, recurrent.Layer)
        for name in ("features_out", "hyper_names", "needs_key", "has_dropout", "time_major"):
            assert getattr(whole, name) == getattr(layer, name)
        assert hasattr(whole, "hidden") == hasattr(layer, "hidden")
    assert recurrent.wn_lstm(4) == nj.reparam(
        recurrent.lstm(4), {"w_x": nj.weight_norm(), "w_h": nj.weight_norm()}
    )
    dense = nj.reparam(nj.cosine_dense(2), {"kernel": nj.weight_norm()})
    assert not isinstance(dense, recurrent.Layer)


def test_it_keeps_something_where_a_weight_does():
    plain, spectral = nj.weight_norm(), nj.spectral_norm()
    assert not lstm().stateful
    assert nj.reparam(recurrent.bn_lstm(4, 5), {"w_h": plain}).stateful
    assert nj.reparam(lstm(), {"w_h/v": spectral}).stateful
    layer, x = nj.reparam(recurrent.lstm(4), {"w_h": spectral}), rand(0, 3, 6, 2)
    assert layer.stateful and recurrent.stack([layer]).stateful
    with pytest.raises(ValueError, match="Recurrent needs a mode"):
        linen.Recurrent(layer).init(jax.random.key(0), x)
    # Each sequence is by itself all the same: what is kept is no statistic of the batch.
    seen = jax.eval_shape(
        lambda x: unchecked(analysis.jacobian_through_time)(
            layer, *layer.init(jax.random.key(0), 2), x, stats="batch"
        ),
        x,
    )
    assert seen.step.shape == (3, 5, 4)


def test_reparam_with_norms_inside_and_population_statistics():
    rules = {"w_h": nj.spectral_norm(use_scale=True), "w_x": nj.weight_norm()}
    inner = recurrent.bn_lstm(4, max_steps=5)
    layer, x = nj.reparam(inner, rules), rand(0, 8, 5, 2)
    params, state = layer.init(jax.random.key(0), 2)
    plain = inner.init(jax.random.key(0), 2)
    (got, _), moved = layer.apply(params, state, x, stats="batch")
    (want, _), stats = inner.apply(*plain, x, stats="batch")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), moved.inner, stats)
    exact = nj.population_statistics(layer, params, state, [x])
    (got, _), kept = layer.apply(params, exact, x, stats="running")
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, kept, exact)


@pytest.mark.parametrize("stats", ["batch", "running"])
def test_info_is_of_the_model_that_apply_runs(stats):
    """With the power iteration of this call, and without it where statistics are gathered."""
    layer = nj.reparam(recurrent.rnn(4), {"w_h": nj.spectral_norm()})
    net = recurrent.stack([layer, layer])
    params, state = net.init(jax.random.key(0), 2)
    for part in params.values():  # weights that one iteration from the old vectors does not reach
        part["w_h"] = part["w_h"]._replace(v=rand(4, 4, 4))
    x = rand(1, 3, 6, 2)
    (want, _), moved = net.apply(params, state, x, stats=stats)
    got, info = net.apply_with_info(params, state, x, stats=stats)
    np.testing.assert_array_equal(got, want)
    norms = np.linalg.norm(f64(want), axis=-1).mean(0)
    np.testing.assert_allclose(info["layer_1"].hidden_norm, norms, rtol=1e-5)
    # The other mode is another model.
    other = {"batch": "running", "running": "batch"}[stats]
    assert np.abs(net.apply(params, state, x, stats=other)[0][0] - want).max() > 0.05
    gathering = nj.reparam(recurrent.bn_lstm(4, 6), {"w_h": nj.spectral_norm()})
    params, state = gathering.init(jax.random.key(0), 2)
    params["w_h"] = params["w_h"]._replace(v=rand(4, 4, 16))
    state = state._replace(inner=nj.accumulate_statistics(state.inner))
    (want, _), moved = gathering.apply(params, state, x, stats=stats)
    jax.tree.map(np.testing.assert_array_equal, moved.weights, state.weights)
    got, _ = gathering.apply_with_info(params, state, x, stats=stats)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_two_methods_on_one_weight():
    inner = nj.reparam(recurrent.rnn(4), {"w_h": nj.spectral_norm()})
    layer = nj.reparam(inner, {"w_h/v": nj.weight_standardization()})
    params, state = layer.init(jax.random.key(0), 2)
    _, state = layer.apply(params, state, rand(0, 3, 5, 2), stats="batch")
    assert set(params["w_h"]._fields) == {"v", "g"} and isinstance(
        params["w_h"].v, nj.DirectionAndGain
    )


def test_a_path_that_is_not_there_lists_those_that_are():
    layer = nj.reparam(recurrent.lstm(4), {"w_hh": nj.weight_norm()})
    with pytest.raises(ValueError, match=r"did you mean 'w_h'.*'bias', 'w_h', 'w_x'"):
        layer.init(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="axis") as caught:
        nj.reparam(recurrent.lstm(4), {"*": nj.weight_norm()}).init(jax.random.key(0), 2)
    assert "'bias'" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match="must be a Reparam"):
        inspect.unwrap(nj.reparam)(recurrent.lstm(4), {"w_h": nj.weight_norm})
    with pytest.raises(TypeError, match="strings"):
        inspect.unwrap(nj.reparam)(recurrent.lstm(4), {str.islower: nj.weight_norm()})
    with pytest.raises(TypeError, match="init and apply"):
        nj.reparam(jnp.tanh, {"w": nj.weight_norm()})
    with pytest.raises(ValueError, match="no rules"):
        nj.reparam(recurrent.lstm(4), {})


# Whole models.


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.relu(nn.Conv(6, (3, 3))(x)).mean((1, 2))
        return nn.Dense(3)(x)


RULES = {"*/kernel": nj.weight_norm()}


@pytest.mark.standard_numerics
@pytest.mark.parametrize(
    "rule",
    [
        nj.weight_norm(),
        pytest.param(nj.spectral_norm(use_scale=True), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_a_linen_model_trains_reparametrized(rule):
    model, x = CNN(), rand(0, 8, 6, 6, 2)
    labels = jnp.arange(8) % 3
    plain = model.init(jax.random.key(1), x)["params"]
    rules = {"*/kernel": rule}
    params, state = nj.reparametrize(plain, rules)
    assert set(state) == {"Conv_0/kernel", "Conv_1/kernel", "Dense_0/kernel"}
    weights, _ = nj.materialize(params, state, rules, stats="batch")
    assert jax.tree.structure(weights) == jax.tree.structure(plain)
    np.testing.assert_allclose(
        model.apply({"params": weights}, x), model.apply({"params": plain}, x), **CLOSE
    )

    def loss(params, state):
        weights, state = nj.materialize(params, state, rules, stats="batch")
        logits = model.apply({"params": weights}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    optimizer = optax.adam(0.02)
    moments = optimizer.init(params)

    @jax.jit
    def step(params, state, moments):
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), state, moments, value, grads

    before = jax.tree.map(np.array, params)
    losses = []
    for i in range(30):
        new, state, moments, value, grads = step(params, state, moments)
        if i == 0:
            # The forward pass wrote nothing, and the step moved exactly what is stored.
            jax.tree.map(np.testing.assert_array_equal, params, before)
            for name in ("Conv_0", "Conv_1", "Dense_0"):
                v, d = f64(params[name]["kernel"].v), f64(grads[name]["kernel"].v)
                assert np.abs(d).max() > 1e-5
                over = tuple(range(v.ndim - 1)) if rule == nj.weight_norm() else None
                np.testing.assert_allclose((v * d).sum(over), 0, atol=1e-6)
                assert not np.allclose(new[name]["kernel"].v, params[name]["kernel"].v)
        params = new
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.standard_numerics
def test_weight_decay_changes_no_weight_that_has_a_gain():
    """g is kept out of decay by its name; the length of v has no say in the weight."""
    model, x = CNN(), rand(0, 2, 6, 6, 2)
    params, state = nj.reparametrize(model.init(jax.random.key(1), x)["params"], RULES)
    mask = jax.tree_util.tree_map_with_path(lambda path, _: not nj.is_norm_param(path), params)
    optimizer = optax.adamw(0.1, weight_decay=0.5, mask=mask)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(new["Dense_0"]["kernel"].g, params["Dense_0"]["kernel"].g)
    v = params["Dense_0"]["kernel"].v
    np.testing.assert_allclose(new["Dense_0"]["kernel"].v, 0.95 * v, rtol=1e-6)
    before, _ = nj.materialize(params, state, RULES, stats="running")
    after, _ = nj.materialize(new, state, RULES, stats="running")
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


@pytest.mark.standard_numerics
def test_an_nnx_model():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.last(jnp.tanh(self.first(x)))

    net, x = Net(nnx.Rngs(0)), rand(0, 5, 4)
    graph, variables = nnx.split(net, nnx.Param)
    params, state = nj.reparametrize(nnx.to_pure_dict(variables), RULES)

    def run(params):
        weights, _ = nj.materialize(params, state, RULES, stats="batch")
        filled = jax.tree.map(lambda a: a, variables)
        nnx.replace_by_pure_dict(filled, weights)
        return nnx.merge(graph, filled)(x)

    np.testing.assert_allclose(run(params), net(x), **CLOSE)
    grads = jax.grad(lambda p: jnp.sum(run(p) ** 2))(params)
    v, d = params["first"]["kernel"].v, grads["first"]["kernel"].v
    np.testing.assert_allclose((f64(v) * f64(d)).sum(0), 0, atol=1e-5)


def test_a_module_that_is_a_pytree_with_outputs_first():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Linear:
        weight: object
        bias: object

    model = [Linear(rand(0, 3, 5), jnp.zeros(3)), Linear(rand(1, 2, 3), jnp.zeros(2))]
    rules = {lambda path: path.endswith("weight"): nj.weight_norm(axes=1)}
    params, state = nj.reparametrize(model, rules)
    assert params[0].weight.g.shape == (3,) and set(state) == {"0/weight", "1/weight"}
    weights, _ = nj.materialize(params, state, rules, stats="running")
    assert isinstance(weights[1], Linear)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), weights, model)


def test_rules_are_tried_in_order_and_all_of_them_are_used():
    tree = {"a": {"kernel": rand(0, 3, 2)}, "b": {"kernel": rand(1, 3, 2), "bias": jnp.zeros(2)}}
    rules = {"a/*": nj.spectral_norm(), "*/kernel": nj.weight_norm()}
    params, state = nj.reparametrize(tree, rules)
    assert params["a"]["kernel"].g is None and params["b"]["kernel"].g.shape == (2,)
    weights, moved = nj.materialize(params, state, rules, stats="batch")
    assert list(moved) == list(state)
    np.testing.assert_allclose(np.linalg.norm(f64(weights["a"]["kernel"]), 2), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="narrower rule first"):
        nj.reparametrize(tree, {"*/kernel": nj.weight_norm(), "a/kernel": nj.spectral_norm()})
    with pytest.raises(ValueError, match=r"no path fits '\*/kernal'"):
        nj.reparametrize(tree, {"*/kernal": nj.weight_norm()})
    with pytest.raises(ValueError, match="no rule fits 'b/kernel'"):
        nj.materialize(params, state, {"a/*": nj.spectral_norm()}, stats="batch")
    with pytest.raises(ValueError, match=r"nothing at \['b/kernel'\]"):
        nj.materialize({"a": params["a"]}, state, rules, stats="batch")
