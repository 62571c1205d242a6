"""The generic Linen modules: names, modes, and the same numbers as the pure functions."""

from __future__ import annotations

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import linen, recurrent
from normjax.state import _names

pytestmark = pytest.mark.standard_numerics

X = jax.random.normal(jax.random.key(3), (6, 5, 3))


class Net(nn.Module):
    """A small model of a user's: dense, norm, recurrent layer."""

    @nn.compact
    def __call__(self, x, *, train, lengths=None):
        stats = "batch" if train else "running"
        x = nn.Dense(4)(x)
        x = linen.Normalize(nj.batch_norm())(x, stats=stats)
        x = linen.Normalize(nj.layer_norm(use_bias=False))(x)
        layer = recurrent.bn_lstm(7, max_steps=5, learn_carry=True)
        return linen.Recurrent(layer)(x, stats=stats, lengths=lengths)


def test_variables_have_flax_names_and_shapes():
    variables = Net().init(jax.random.key(0), X, train=False)
    shapes = jax.tree.map(jnp.shape, variables)
    assert shapes["params"]["Normalize_0"] == {"scale": (4,), "bias": (4,)}
    assert shapes["params"]["Normalize_1"] == {"scale": (4,)}
    assert shapes["batch_stats"]["Normalize_0"] == {"mean": (4,), "var": (4,)}
    assert "Normalize_1" not in shapes["batch_stats"]
    by_step = dict.fromkeys(("mean", "var", "weight"), (5, 7))
    assert shapes["batch_stats"]["Recurrent_0"]["norm_c"] == by_step
    assert shapes["params"]["Recurrent_0"]["norm_x"] == {"scale": (28,)}
    flax = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), X)
    ours = linen.Normalize(nj.batch_norm(), stats="batch").init(jax.random.key(0), X)
    assert jax.tree.map(jnp.shape, flax) == jax.tree.map(jnp.shape, ours)


def test_same_numbers_as_the_pure_layer():
    layer = recurrent.bn_lstm(7, max_steps=5)
    module = linen.Recurrent(layer)
    variables = module.init(jax.random.key(0), X, stats="batch")
    params, state = layer.init(jax.random.key(1), 3)
    params = jax.tree.unflatten(
        jax.tree.structure(params),
        jax.tree.leaves(_names.from_dict(params, variables["params"])),
    )
    lengths = jnp.array([5, 4, 3, 2, 1, 0])
    got, new = module.apply(variables, X, stats="batch", lengths=lengths, mutable=["batch_stats"])
    (want, _), state = layer.apply(params, state, X, stats="batch", lengths=lengths)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(new["batch_stats"]["norm_h"]["var"], state["norm_h"].var)


def test_training_moves_statistics_and_evaluation_needs_no_mutable():
    net = Net()
    variables = net.init(jax.random.key(0), X, train=True)
    start = variables["batch_stats"]["Normalize_0"]["mean"]
    np.testing.assert_array_equal(start, 0)  # init itself moves nothing
    _, new = jax.jit(lambda v: net.apply(v, X, train=True, mutable=["batch_stats"]))(variables)
    assert jax.tree.structure(new["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    assert np.abs(new["batch_stats"]["Normalize_0"]["mean"]).max() > 0
    net.apply({**variables, **new}, X, train=False)


def test_mistakes_say_what_to_write():
    module = linen.Normalize(nj.batch_norm())
    variables = module.init(jax.random.key(0), X, stats="batch")
    with pytest.raises(ValueError, match='stats="batch" in training'):
        module.apply(variables, X)
    with pytest.raises(ValueError, match=r"mutable=\[\"batch_stats\"\]"):
        module.apply(variables, X, stats="batch")
    with pytest.raises(ValueError, match="pass the 'batch_stats' that init returned"):
        module.apply({"params": variables["params"]}, X, stats="running")
    with pytest.raises(ValueError, match="give it in one place"):
        linen.Normalize(nj.batch_norm(), stats="batch").apply(variables, X, stats="running")


@pytest.mark.parametrize(
    "layer",
    [recurrent.lstm(4, zoneout_c=0.5), recurrent.stack([recurrent.rnn(4)] * 2, dropout=0.5)],
    ids=["zoneout", "between"],
)
def test_zoneout_and_dropout_that_were_asked_for_act(layer):
    """Which layers draw is asked of them, and tested with them (tests/recurrent)."""
    module, noise = linen.Recurrent(layer), {"noise": jax.random.key(5)}
    variables = module.init(jax.random.key(0), X, stats="batch")
    train = lambda v, **how: module.apply(v, X, mutable=["batch_stats"], **how)[0]  # noqa: E731
    with pytest.raises(ValueError, match='stats="batch" in training'):
        train(variables, rngs=noise)
    with pytest.raises(ValueError, match=r'rngs=\{"noise": key\}'):
        train(variables, stats="batch", rngs={"dropout": jax.random.key(5)})
    rest = module.apply(variables, X, stats="running")  # evaluation draws nothing
    np.testing.assert_array_equal(module.apply(variables, X, stats="running", rngs=noise), rest)
    drawn = train(variables, stats="batch", rngs=noise)
    assert np.abs(drawn - rest).max() > 1e-3
    assert np.abs(drawn - train(variables, stats="batch", rngs={"noise": jax.random.key(6)})).max()
    frozen = module.apply(variables, X, stats="running", noise=True, rngs=noise)
    assert np.abs(frozen - rest).max() > 1e-3
    still = train(variables, stats="batch", noise=False)
    np.testing.assert_array_equal(train(variables, stats="batch", noise=False, rngs=noise), still)
    with pytest.raises(ValueError, match="draw with noise=True: write apply"):
        module.apply(variables, X, stats="running", noise=True)


def test_equal_modules_share_one_trace():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(module, x):
        traces.append(1)
        return module.init_with_output(jax.random.key(0), x)[0]

    for _ in range(2):
        run(linen.Normalize(nj.layer_norm()), X)
        run(linen.Recurrent(recurrent.ln_lstm(4), stats="running"), X)
    assert len(traces) == 2


@pytest.mark.parametrize("norm", [nj.batch_norm, "batch_norm"])
def test_a_factory_is_no_norm(norm):
    say = "Normalize(batch_norm())" if callable(norm) else "takes a Norm such as batch_norm()"
    with pytest.raises(TypeError, match=re.escape(say)):
        linen.Normalize(norm)


@pytest.mark.parametrize(
    "layer", [nj.batch_norm(), recurrent.lstm, recurrent.Recurrent], ids=["norm", "factory", "type"]
)
def test_what_is_no_layer_is_refused(layer):
    with pytest.raises(TypeError, match=r"Recurrent takes layers such as lstm\(100\)"):
        linen.Recurrent(layer)


@pytest.mark.slow
def test_presets_forget_the_start():
    """As the docstring of `Recurrent` says: else the start's variance 1 is most of what is kept."""
    module, other = (
        linen.Recurrent(recurrent.bn_lstm(4, max_steps=5, debias=debias))
        for debias in (True, False)
    )
    x = 0.01 * X
    variables = module.init(jax.random.key(0), x, stats="running")
    exact = linen.population_update(
        lambda v, x: module.apply(v, x, stats="batch", mutable=["batch_stats"]), variables, [x]
    )
    own, plain = dict(variables), other.init(jax.random.key(0), x, stats="running")
    for _ in range(10):
        how = {"stats": "batch", "mutable": ["batch_stats"]}
        plain |= other.apply(plain, x, **how)[1]
        own |= module.apply(own, x, **how)[1]
    var = [tree["norm_x"]["var"] for tree in (exact, own["batch_stats"], plain["batch_stats"])]
    np.testing.assert_allclose(var[1], var[0], rtol=1e-4)
    np.testing.assert_allclose(var[2], 0.99**10, atol=1e-2)
    for line in ("near chance", "`linen.population_update`", '`debias="warmup"`'):
        assert line in linen.Recurrent.__doc__


@pytest.mark.parametrize("kind", ["normalize", "recurrent", "rnn"])
def test_metadata_of_variables_is_kept_and_changes_no_number(kind):
    module = {
        "normalize": lambda: linen.Normalize(nj.batch_norm(), stats="batch"),
        "recurrent": lambda: linen.Recurrent(recurrent.bn_gru(4, max_steps=5), stats="batch"),
        "rnn": lambda: linen.RNN(Boxes(4)),
    }[kind]()

    def run(variables, x):
        return module.apply(variables, x, mutable=["batch_stats"])

    variables = nn.meta.unbox(module.init(jax.random.key(0), X))
    boxed = jax.tree.map(lambda v: nn.Partitioned(v, (None,) * (v.ndim - 1) + ("a",)), variables)
    y, new = run(variables, X)
    got, kept = run(boxed, X)
    np.testing.assert_array_equal(got, y)
    assert jax.tree.structure(kept["batch_stats"]) == jax.tree.structure(boxed["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, nn.meta.unbox(kept), new)
    want, population = (linen.population_update(run, v, [X, 2 * X]) for v in (variables, boxed))
    assert jax.tree.structure(population) == jax.tree.structure(boxed["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, nn.meta.unbox(population), want)
    if kind == "rnn":
        evaluate = linen.RNN(Boxes(4, stats="running"))
        want = evaluate.apply({**variables, **new}, X)
        np.testing.assert_array_equal(evaluate.apply({**boxed, **kept}, X), want)
        y, _ = evaluate.apply({**boxed, **kept}, X, mutable=["batch_stats"])
        np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)


class Boxes(nn.GRUCell):
    """A cell whose parameters have boxes from their initializers."""

    stats: str = "batch"

    @nn.compact
    def __call__(self, carry, x):
        x = linen.Normalize(nj.batch_norm(), stats=self.stats)(x)
        kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "a"))
        return nn.GRUCell(self.features, kernel_init=kernel)(carry, x)
