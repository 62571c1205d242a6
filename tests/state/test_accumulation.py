"""Microbatches move the statistics of Flax models as one full batch does."""

from __future__ import annotations

import pickle

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as fnn
from flax.core import FrozenDict, freeze

import normjax as nj
from normjax import linen, nnx, recurrent
from normjax.state import _names
from tests._support.few import few

pytestmark = pytest.mark.standard_numerics

RNG = np.random.default_rng(7)
X = (3 + 2 * RNG.normal(size=(24, 5, 3))).astype(np.float32)
LENGTHS = RNG.integers(1, 6, size=24)
SPLITS = [slice(0, 9), slice(9, 12), slice(12, 24)]  # uneven
LAYER = recurrent.lstm(4, norm_x=recurrent.per_step(nj.batch_norm(decay=0.8), max_steps=5))


def close(got, want, rtol=2e-5, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


class Linen(nn.Module):
    """Norms side by side, so that each one's inputs are the same in any split of the batch."""

    flax: bool = False

    @nn.compact
    def __call__(self, x, lengths):
        steps = linen.Recurrent(LAYER, name="steps")(x, stats="batch", lengths=lengths)
        norm = linen.Normalize(nj.batch_norm(decay=0.8), name="norm")(x, stats="batch")
        white = linen.Normalize(nj.decorrelated_batch_norm(decay=0.8), name="white")(
            x, stats="batch"
        )
        kind = nn.BatchNorm if self.flax else linen.BatchNorm
        drop_in = kind(use_running_average=False, momentum=0.8, name="drop_in")(x)
        return steps.sum() + (norm + white + drop_in).sum()


class Nnx(fnn.Module):
    """The same for NNX."""

    def __init__(self):
        rngs = fnn.Rngs(0)
        self.steps = nnx.Recurrent(LAYER, 3, rngs=rngs)
        self.norm = nnx.Normalize(nj.batch_norm(decay=0.8), 3, rngs=rngs)
        self.white = nnx.Normalize(nj.decorrelated_batch_norm(decay=0.8), 3, rngs=rngs)
        self.drop_in = nnx.BatchNorm(3, momentum=0.8, rngs=rngs)

    def __call__(self, x, lengths):
        y = self.norm(x) + self.white(x) + self.drop_in(x)
        return self.steps(x, lengths=lengths).sum() + y.sum()


def moved(seed=1):
    """Variables with statistics that are not the start."""
    net = Linen()
    variables = net.init(jax.random.key(0), X, LENGTHS)
    stats = net.apply(variables, X * seed - 1, LENGTHS, mutable=["batch_stats"])[1]
    return net, {"params": variables["params"], **stats}


def numpy_statistics(stats):
    """The recursion over the whole batch in float64."""
    x, decay = X.astype(np.float64), 0.8
    rows = x.reshape(-1, 3)

    def ema(old, new):
        return decay * np.asarray(old, np.float64) + (1 - decay) * new

    cov = (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows)
    both = {
        name: {
            "mean": ema(stats[name]["mean"], rows.mean(0)),
            "var": ema(stats[name]["var"], rows.var(0)),
        }
        for name in ("norm", "drop_in")
    }
    return both | {
        "white": {
            "mean": ema(stats["white"]["mean"], rows.mean(0)[None]),
            "cov": ema(stats["white"]["cov"], cov[None]),
        }
    }


@pytest.mark.parametrize("container", few({"dict": dict, "FrozenDict": FrozenDict}, "dict"))
def test_linen(container):
    net, variables = moved()
    want = net.apply(variables, X, LENGTHS, mutable=["batch_stats"])[1]["batch_stats"]
    variables = freeze(variables) if container is FrozenDict else variables
    step = jax.jit(lambda v, x, n: net.apply(v, x, n, mutable=["batch_stats"])[1]["batch_stats"])
    stats = nj.accumulate_statistics(variables["batch_stats"])
    assert type(stats) is container
    for part in SPLITS:
        stats = step({**variables, "batch_stats": stats}, X[part], LENGTHS[part])
    new = nj.finalize_statistics(stats, decay=0.8)
    assert jax.tree.structure(new) == jax.tree.structure(want)
    close(new, want)
    before = moved()[1]["batch_stats"]
    exact = numpy_statistics(before)
    for name, values in exact.items():
        shaped = {key: np.reshape(value, new[name][key].shape) for key, value in values.items()}
        close(dict(new[name]), shaped)


@pytest.mark.slow
def test_linen_replaces_with_the_moments_of_all_rows():
    net, variables = moved()
    stats = nj.accumulate_statistics(variables["batch_stats"], how="mean")
    for part in SPLITS:
        stats = net.apply(
            {**variables, "batch_stats": stats}, X[part], LENGTHS[part], mutable=["batch_stats"]
        )[1]["batch_stats"]
    new = nj.finalize_statistics(stats, how="mean")
    want = np.mean([X[part].reshape(-1, 3).var(0) for part in SPLITS], 0)
    close(new["norm"]["var"], want), close(new["drop_in"]["var"], want)


def test_nnx():
    full, micro = Nnx(), Nnx()
    for net in (full, micro):
        net.train()
        net(X - 1, LENGTHS)  # statistics that are not the start
    start = fnn.to_pure_dict(fnn.state(micro, fnn.BatchStat))
    full(X, LENGTHS)
    graph = fnn.graphdef(micro)
    nnx.accumulate_statistics(micro)
    with pytest.raises(ValueError, match="accumulates already"):
        nnx.accumulate_statistics(micro)
    with pytest.raises(ValueError, match="accumulates already"):
        nnx.population_update(micro, [X])

    @fnn.jit
    def gradient(net, x, n):
        return fnn.grad(lambda net: net(x, n), argnums=fnn.DiffState(0, fnn.Param))(net)

    for part in SPLITS:
        gradient(micro, X[part], LENGTHS[part])
    nnx.finalize_statistics(micro, decay=0.8)
    assert fnn.graphdef(micro) == graph
    got, want = (fnn.to_pure_dict(fnn.state(net, fnn.BatchStat)) for net in (micro, full))
    close(got, want)
    for name, values in numpy_statistics(start).items():
        shaped = {key: np.reshape(value, got[name][key].shape) for key, value in values.items()}
        close(got[name], shaped)


every_debias = pytest.mark.parametrize(
    "debias", few({"warmup": "warmup", "debias": True, "plain": False}, "warmup")
)
STEPS = [X * scale - shift for scale, shift in ((1, 1), (3, 0), (0.5, 2), (2, -1))]


def layer_of(debias):
    bn = recurrent.per_step(nj.batch_norm(decay=0.8, debias=debias), max_steps=5)
    return recurrent.lstm(4, norm_x=bn, norm_h=bn)


def exact(got, want):
    """The statistics of a layer that see what the whole batch gives: not of later hidden states."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    close(got["norm_x"], want["norm_x"])
    close(*(jax.tree.map(lambda leaf: leaf[0], tree["norm_h"]) for tree in (got, want)))


@every_debias
def test_several_steps_are_those_of_whole_batches(debias):
    """The state says whether its norm counts the updates: `finalize_statistics` is not told."""
    norm = nj.batch_norm(decay=0.8, debias=debias, compensated=True)
    layer = layer_of(debias)
    params = {"norm": norm.init((1, 3))[0], "layer": layer.init(jax.random.key(0), 3)[0]}
    state = {"norm": norm.init((1, 3))[1], "layer": layer.init(jax.random.key(0), 3)[1]}

    @jax.jit
    def run(state, x, n):
        _, norm_state = norm.apply(params["norm"], state["norm"], x, stats="batch")
        _, layer_state = layer.apply(params["layer"], state["layer"], x, stats="batch", lengths=n)
        return {"norm": norm_state, "layer": layer_state}

    whole = micro = state
    for x in STEPS:
        whole = run(whole, x, LENGTHS)
        micro = nj.accumulate_statistics(micro)
        for part in SPLITS:
            micro = run(micro, x[part], LENGTHS[part])
        micro = nj.finalize_statistics(micro, decay=0.8)
    assert jax.tree.structure(micro) == jax.tree.structure(state)
    close(micro["norm"], whole["norm"])
    exact(micro["layer"], whole["layer"])
    if debias == "warmup":  # and it matters: without the count of updates it is another average
        with_decay = nj.batch_norm(decay=0.8, debias=True)
        other = state["norm"]
        for x in STEPS:
            _, other = with_decay.apply(params["norm"], other, x, stats="batch")
        assert np.abs(other.mean - whole["norm"].mean).max() > 0.05


@every_debias
def test_several_steps_of_flax_models_are_those_of_whole_batches(debias):
    layer, norm = layer_of(debias), nj.batch_norm(decay=0.8, debias=debias)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, n):
            y = linen.Recurrent(layer, name="steps")(x, stats="batch", lengths=n)
            return y, linen.Normalize(norm, name="norm")(x, stats="batch")

    net = Net()
    variables = net.init(jax.random.key(0), X, LENGTHS)
    run = jax.jit(
        lambda stats, x, n: net.apply(
            {**variables, "batch_stats": stats}, x, n, mutable=["batch_stats"]
        )[1]["batch_stats"]
    )
    ours, ours_whole = (
        fnn.Dict(
            steps=nnx.Recurrent(layer, 3, rngs=fnn.Rngs(0)),
            norm=nnx.Normalize(norm, 3, rngs=fnn.Rngs(0)),
        )
        for _ in range(2)
    )
    ours.train(), ours_whole.train()
    graph = fnn.graphdef(ours)
    step = fnn.jit(lambda net, x, n: (net.steps(x, lengths=n), net.norm(x)))
    whole = micro = variables["batch_stats"]
    for x in STEPS:
        whole = run(whole, x, LENGTHS)
        step(ours_whole, x, LENGTHS)
        micro = nj.accumulate_statistics(micro)
        nnx.accumulate_statistics(ours)
        for part in SPLITS:
            micro = run(micro, x[part], LENGTHS[part])
            step(ours, x[part], LENGTHS[part])
        micro = nj.finalize_statistics(micro, decay=0.8)
        nnx.finalize_statistics(ours, decay=0.8)
    assert jax.tree.structure(micro) == jax.tree.structure(variables["batch_stats"])
    assert fnn.graphdef(ours) == graph
    in_nnx = [fnn.to_pure_dict(fnn.state(net, fnn.BatchStat)) for net in (ours, ours_whole)]
    for got, want in ((micro, whole), in_nnx):
        close(got["norm"], want["norm"])
        close(got["steps"]["norm_x"], want["steps"]["norm_x"])


def test_cells_in_a_loop_of_linen_say_it_too():
    """Their accumulators have an axis of steps, as all their statistics."""

    class Cell(nn.RNNCellBase):
        @nn.compact
        def __call__(self, carry, x):
            x = linen.Normalize(nj.batch_norm(decay=0.8, debias="warmup"))(x, stats="batch")
            return carry + x, x

        @nn.nowrap
        def initialize_carry(self, rng, input_shape):
            return jnp.zeros(input_shape)

        @property
        def num_feature_axes(self):
            return 1

    net = linen.RNN(Cell(), max_steps=5)
    variables = net.init(jax.random.key(0), X)
    run = jax.jit(
        lambda stats, x: net.apply({**variables, "batch_stats": stats}, x, mutable=["batch_stats"])[
            1
        ]["batch_stats"]
    )
    whole = micro = variables["batch_stats"]
    for x in STEPS[:2]:
        whole = run(whole, x)
        micro = nj.accumulate_statistics(micro)
        for part in SPLITS:
            micro = run(micro, x[part])
        micro = nj.finalize_statistics(micro, decay=0.8)
    assert jax.tree.structure(micro) == jax.tree.structure(whole)
    close(micro, whole)


def test_an_accumulator_that_was_saved_goes_on_as_it_was():
    """By names, as a checkpoint holds it, pickled, reset, made by hand and in a loop."""
    norm = nj.batch_norm(decay=0.8, debias="warmup")
    params, state = norm.init((1, 3))
    _, state = norm.apply(params, state, STEPS[0][:, 0], stats="batch")
    _, want = norm.apply(params, state, STEPS[1][:, 0], stats="batch")
    start = nj.accumulate_statistics(state)
    _, half = norm.apply(params, start, STEPS[1][:9, 0], stats="batch")
    assert jax.tree.structure(half) == jax.tree.structure(start)
    np.testing.assert_array_equal([start.warmup, half.warmup], [[0] * 3, [1] * 3])
    _, by_hand = norm.apply(params, start._replace(warmup=None), STEPS[1][:9, 0], stats="batch")
    bytes_ = flax.serialization.msgpack_serialize(_names.to_dict(half))
    named = flax.serialization.msgpack_restore(bytes_)
    assert set(named) == {"running", "measured", "warmup"}
    for saved in (
        half,
        by_hand,
        named,
        _names.read_statistics(named),
        pickle.loads(pickle.dumps(half)),
    ):
        _, all_ = norm.apply(params, saved, STEPS[1][9:, 0], stats="batch")
        close(nj.finalize_statistics(all_, decay=0.8), want)
    again = nj.reset_statistics(half)
    assert jax.tree.structure(again) == jax.tree.structure(half)
    looped, _ = jax.lax.scan(
        lambda s, x: (norm.apply(params, s, x, stats="batch")[1], None),
        start,
        STEPS[1][:, 0].reshape(4, 6, 3),
    )
    close(nj.finalize_statistics(looped, decay=0.8), want)
    # Statistics that count nothing have none, and their tree is what it was.
    _, plain = nj.batch_norm().init((1, 3))
    assert nj.accumulate_statistics(plain).warmup is None
    assert set(_names.to_dict(nj.accumulate_statistics(plain))) == {"running", "measured"}


def test_what_would_accumulate_nothing_is_refused():
    with pytest.raises(ValueError, match="found no running statistics"):
        nj.accumulate_statistics({"Dense_0": {"kernel": jnp.ones((2, 2))}})
    with pytest.raises(ValueError, match="found no running statistics"):
        nj.accumulate_statistics(nj.layer_norm().init((1, 3))[1])
    net = nnx.Normalize(nj.batch_norm(), 3, rngs=fnn.Rngs(0))
    for value in (net, fnn.state(net)):
        with pytest.raises(TypeError, match=r"normjax\.nnx\.accumulate_statistics\(model\)"):
            nj.accumulate_statistics(value)
        with pytest.raises(TypeError, match=r"normjax\.nnx\.finalize_statistics\(model\)"):
            nj.finalize_statistics(value)
    with pytest.raises(ValueError, match="found no accumulated statistics"):
        nnx.finalize_statistics(net)
    with pytest.raises(ValueError, match="found no statistics"):
        nnx.accumulate_statistics(nnx.Normalize(nj.layer_norm(), 3, rngs=fnn.Rngs(0)))
    with pytest.raises(ValueError, match="found no accumulated statistics"):
        nj.finalize_statistics(moved()[1]["batch_stats"])


def test_a_layer_of_flax_among_ours_is_refused():
    net = Linen(flax=True)
    variables = net.init(jax.random.key(0), X, LENGTHS)
    stats = nj.accumulate_statistics(variables["batch_stats"])
    new = net.apply({**variables, "batch_stats": stats}, X, LENGTHS, mutable=["batch_stats"])[1]
    with pytest.raises(ValueError, match=r"\['mean', 'var'\].*normjax\.linen\.BatchNorm"):
        nj.finalize_statistics(new["batch_stats"])


@pytest.mark.slow
def test_population_update_takes_a_frozen_dict():
    net, variables = moved()

    def run(v, batch):
        return net.apply(v, *batch, mutable=["batch_stats"])

    batches = [(X[part], LENGTHS[part]) for part in SPLITS]
    want = linen.population_update(run, variables, batches)
    got = linen.population_update(run, freeze(variables), batches)
    assert isinstance(got, FrozenDict)
    assert jax.tree.structure(got) == jax.tree.structure(freeze(variables)["batch_stats"])
    close(got.unfreeze(), want, 0, 0)
    close(got["norm"]["var"], X.reshape(-1, 3).var(0))
