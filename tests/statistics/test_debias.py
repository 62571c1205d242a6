"""Running averages of the data alone: right from the first update on, in every kind of state."""

from __future__ import annotations

import dataclasses
import pickle

import flax.serialization
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import normjax as nj
from normjax import linen, nnx, recurrent
from normjax.state import _names
from tests.conftest import unchecked

RNG = np.random.default_rng(0)
F = 3
NORMS = {
    "batch": nj.batch_norm(debias=True, decay=0.9),
    "compensated": nj.batch_norm(debias=True, compensated=True, decay=0.9),
    "mean_only": nj.mean_only_batch_norm(debias=True, decay=0.9),
    "decorrelated": nj.decorrelated_batch_norm(debias=True, decay=0.9),
    "iterative": nj.iterative_norm(debias=True, compensated=True, decay=0.9),
    "renorm": nj.batch_renorm(debias=True, decay=0.9),
    "ghost": nj.ghost_batch_norm(size=4, debias=True, decay=0.9),
    "switchable": nj.switchable_norm(debias=True, decay=0.9),
    "evo": nj.evo_norm_b0(debias=True, decay=0.9),
}
few_norms = pytest.mark.parametrize(
    "norm",
    [
        pytest.param(
            norm, id=name, marks=() if name in ("batch", "compensated") else pytest.mark.slow
        )
        for name, norm in NORMS.items()
    ],
)


def _shape(norm):
    return (8, 2, 2, F) if norm.factory in ("switchable_norm", "evo_norm_b0") else (8, F)


def _batches(norm, n, scale=1e-3):
    """Batches far smaller than the variance of 1 that averages start from."""
    return [jnp.asarray(scale * RNG.normal(1, 1, _shape(norm)), jnp.float32) for _ in range(n)]


def _measured(norm, params, x):
    """What a batch alone leaves as running statistics, of the norm without options."""
    plain = type(norm)(**{f: getattr(norm, f) for f in vars(norm) if f != "debias"})
    _, state = plain.init(x.shape, key=jax.random.key(0))
    _, state = plain.apply(params, state, x, stats="batch", hyper={"decay": 0.0})
    return [np.asarray(leaf, np.float64) for leaf in state]


@few_norms
def test_the_average_is_that_of_the_data(norm):
    """With varying decays, in float64: weights of (1 - d_i) times all later decays."""
    batches, decays = _batches(norm, 4), [0.9, 0.5, 0.99, 0.9]
    params, state = norm.init(_shape(norm), key=jax.random.key(0))
    weights = np.zeros(0)
    assert isinstance(state, nj.Running | nj.RunningMean | nj.RunningCov)
    for n, (x, decay) in enumerate(zip(batches, decays, strict=True), 1):
        _, state = norm.apply(params, state, x, stats="batch", hyper={"decay": decay})
        weights = np.append(weights * decay, 1 - decay)
        each = [_measured(norm, params, b) for b in batches[:n]]
        for got, *values in zip(state, *each, strict=True):
            want = sum(w * v for w, v in zip(weights, values, strict=True)) / weights.sum()
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-10)
        np.testing.assert_allclose(state.weight, weights.sum(), rtol=1e-6)
        age = nj.statistics_age({"a": {"b": state}})["a/b"]
        np.testing.assert_array_equal(age, state.weight)


def test_one_update_of_a_long_average_is_the_batch_to_the_last_bit():
    """At decay 0.9999 the start has 10^4 times the batch's weight, and all of it is taken out."""
    norm = nj.batch_norm(debias=True, decay=0.9999)
    x = _batches(norm, 1, 1e-4)[0]
    params, state = norm.init(x.shape)
    _, state = norm.apply(params, state, x, stats="batch")
    batch = norm.moments(params, x)
    np.testing.assert_array_equal(state.mean, batch.mean)
    np.testing.assert_array_equal(state.var, batch.var)
    # A constant stays it, bit for bit, and the weight ends at 1.
    m = nj.Moments(batch.mean, batch.var, batch.count)
    state, _ = jax.lax.scan(lambda s, _: (nj.ema(s, m, decay=0.99), None), state, None, length=2500)
    np.testing.assert_array_equal(state.var, batch.var)
    np.testing.assert_allclose(state.weight, 1, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_with_warmup_the_latest_batches_count_most_while_there_are_few(decay):
    """The n-th has the weight of the decay or 9 / (n + 8), whichever is more, in float64."""
    norm = nj.batch_norm(debias="warmup", decay=decay)
    values = RNG.normal(1, 1, (120, 4, 1)) * np.linspace(1, 2, 120)[:, None, None]
    params, state = norm.init((4, 1))

    def update(state, x):
        _, state = norm.apply(params, state, x, stats="batch")
        return state, state

    _, states = jax.lax.scan(update, state, jnp.asarray(values, jnp.float32))
    mean, shares = 0.0, []
    for n, batch in enumerate(values, 1):
        shares.append(max((1 - decay) / (1 - decay**n), 9 / (n + 8)))
        mean += shares[-1] * (batch.mean() - mean)
        np.testing.assert_allclose(states.mean[n - 1, 0], mean, rtol=2e-5)
    np.testing.assert_allclose(states.weight[:, 0], 1 - decay ** np.arange(1, 121), rtol=1e-5)
    # At decay 0.9 both are met: the number of updates at first, the decay in the end.
    late = max(1 - decay, 9 / 128)
    assert shares[0] == 1 and shares[-1] == pytest.approx(late, rel=1e-4)


def test_warmup_counts_what_moved_and_nothing_else():
    """Skipped features keep their count; statistics that are all data have no warmup left."""
    norm = nj.batch_norm(debias="warmup", decay=0.9)
    x = _batches(norm, 1)[0]
    params, start = norm.init(x.shape)
    mask = jnp.ones((8, F), bool).at[:, 1].set(False)
    with jax.debug_nans(True):
        _, one = norm.apply(params, start, x, stats="batch", mask=mask)
        _, two = norm.apply(params, one, 3 * x, stats="batch")
        _, kept = norm.apply(params, two, x, stats="batch", hyper={"decay": 1.0})
        _, none = norm.apply(params, start, x, stats="batch", hyper={"decay": 1.0})
    first, mean = np.asarray(one.mean), np.asarray(x, np.float64).mean(0)
    np.testing.assert_allclose(first, [mean[0], 0, mean[2]], rtol=1e-5)
    np.testing.assert_allclose(two.mean[1], 3 * mean[1], rtol=1e-5)  # its first
    np.testing.assert_allclose(two.mean[0], (0.9 * 3 + 0.1) * mean[0], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, (kept, none), (two, start))
    # Those of Flax's layout are taken as data, and as statistics of that kind stay it.
    for given in ({"mean": mean, "var": mean}, nj.Running(jnp.float32(mean), jnp.float32(mean))):
        _, moved = norm.apply(params, given, jnp.zeros_like(x), stats="batch")
        np.testing.assert_allclose(moved.mean, 0.9 * mean, rtol=1e-5)


def test_warmup_is_refused_where_nothing_counts():
    m = nj.moments(jnp.array([[1.0], [3.0]]), 0)
    plain = nj.Running(jnp.zeros(1), jnp.ones(1))
    with pytest.raises(ValueError, match=r'is Running: start from .* debias="warmup"'):
        nj.ema(plain, m, decay=0.5, warmup=True)
    with pytest.raises(ValueError, match=r"debias='warm': .*'warmup'"):
        unchecked(dataclasses.replace)(nj.batch_norm(), debias="warm")


def test_what_is_skipped_has_no_weight():
    """Empty and nonfinite features, single values with correction, and decay 1."""
    norm = nj.batch_norm(debias=True, decay=0.5, correction=1, allow_single=True)
    x = _batches(norm, 1)[0]
    params, start = norm.init(x.shape)
    mask = jnp.ones((8, F), bool).at[:, 1].set(False).at[1:, 0].set(False)
    _, state = norm.apply(params, start, x, stats="batch", mask=mask)
    np.testing.assert_array_equal(state.weight, [0, 0, 0.5])
    np.testing.assert_array_equal(state.var[:2], 1)
    _, state = norm.apply(params, start, x.at[0, 2].set(jnp.nan), stats="batch")
    np.testing.assert_array_equal(state.weight, [0.5, 0.5, 0])
    _, state = norm.apply(params, start, x, stats="batch", hyper={"decay": 1.0})
    jax.tree.map(np.testing.assert_array_equal, state, start)
    _, state = norm.apply(params, start, x, stats="running")
    assert state is start


@few_norms
def test_states_are_ordinary_ones(norm):
    """Pytrees, pickle, dictionaries without a target, jit, vmap, reset and restore."""
    params, start = norm.init(_shape(norm), key=jax.random.key(0))
    x = _batches(norm, 1)[0]
    run = jax.jit(lambda state, x: norm.apply(params, state, x, stats="batch")[1])
    state = run(start, x)
    assert type(state) is type(start)

    def same(a, b):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        jax.tree.map(np.testing.assert_array_equal, a, b)

    same(pickle.loads(pickle.dumps(state)), state)
    values = flax.serialization.msgpack_restore(
        flax.serialization.msgpack_serialize(_names.to_dict(state))
    )
    assert "weight" in values
    same(_names.from_dict(start, values), state)
    same(_names.read_statistics(values), state)
    _, moved = norm.apply(params, values, x, stats="batch")
    np.testing.assert_allclose(jnp.ravel(moved.weight)[0], 0.19, rtol=1e-6)
    many = jax.vmap(run, in_axes=(None, 0))(start, jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(many.mean[0], state.mean, rtol=1e-6, atol=1e-9)
    same(nj.reset_statistics({"a": state})["a"], start)
    same(nj.restore_statistics({"a": state}, {"a": start})["a"], state)
    assert "weight=" in repr(state)
    assert state._replace(mean=state.mean).weight is state.weight


@few_norms
def test_accumulated_statistics_are_all_data(norm):
    params, start = norm.init(_shape(norm), key=jax.random.key(0))
    batches = _batches(norm, 3)
    plain = type(norm)(**{f: getattr(norm, f) for f in vars(norm) if f != "debias"})
    _, plain_start = plain.init(_shape(norm), key=jax.random.key(0))
    got = nj.population_statistics(norm, params, start, batches)
    want = nj.population_statistics(plain, params, plain_start, batches)
    assert type(got) is type(start)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(got.weight, 1)
    # Finalized as one large batch, the average moves once.
    state = nj.accumulate_statistics(start)
    for x in batches:
        _, state = norm.apply(params, state, x, stats="batch")
    once = nj.finalize_statistics(state, decay=0.9)
    for a, b in zip(once, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(once.weight, 0.1, rtol=1e-6)
    # Without any value it is what it was.
    nothing = nj.finalize_statistics(nj.accumulate_statistics(start))
    np.testing.assert_array_equal(nothing.weight, 0)


def test_states_from_before_the_option_go_on_as_they_were():
    """A plain state is averaged as ever, and a dictionary without weight is taken as data."""
    norm, plain = nj.batch_norm(debias=True), nj.batch_norm()
    x = _batches(norm, 1)[0]
    params, old = plain.init(x.shape)
    _, want = plain.apply(params, old, x, stats="batch")
    _, got = norm.apply(params, old, x, stats="batch")
    assert type(got) is nj.Running
    np.testing.assert_array_equal(got.var, want.var)
    _, read = norm.apply(params, old._asdict(), x, stats="batch")
    np.testing.assert_array_equal(read.var, want.var)
    np.testing.assert_array_equal(read.weight, 1)
    ages = nj.statistics_age({"old": want, "start": old, "params": params})
    assert np.isnan(ages["old"]).all()
    np.testing.assert_array_equal(ages["start"], 0)
    assert set(ages) == {"old", "start"}


def test_folding_and_torch_take_the_average_as_it_stands():
    norm = nj.batch_norm(debias=True)
    x = _batches(norm, 1)[0]
    params, state = norm.init(x.shape)
    _, state = norm.apply(params, state, x, stats="batch")
    want, _ = norm.apply(params, state, x, stats="running")
    scale, shift = nj.fold(norm, params, state)
    np.testing.assert_allclose(scale[None] * x + shift[None], want, rtol=1e-4, atol=1e-4)
    mean, _ = nj.running_to_torch(state, count=8)
    np.testing.assert_array_equal(mean, state.mean)


def test_flax_modules_keep_the_weight():
    norm = nj.batch_norm(debias=True)
    x = _batches(norm, 1)[0]
    module = linen.Normalize(norm)
    variables = module.init(jax.random.key(0), x, stats="running")
    _, new = module.apply(variables, x, stats="batch", mutable=["batch_stats"])
    np.testing.assert_allclose(new["batch_stats"]["weight"], 0.01, rtol=1e-5)
    np.testing.assert_array_equal(nj.statistics_age(new["batch_stats"])[""], np.float32(1 - 0.99))
    layer = nnx.Normalize(norm, F, rngs=flax_nnx.Rngs(0))
    layer(x, stats="batch")
    np.testing.assert_array_equal(layer.var[...], new["batch_stats"]["var"])
    nnx.population_update(layer, [x])
    np.testing.assert_array_equal(layer.weight[...], 1)


def test_each_time_step_has_its_own_weight():
    """By lengths a step may have no data yet; evaluation then takes that of the step before."""
    norm = nj.batch_norm(debias=True, scale_init=0.1)
    layer = recurrent.lstm(4, norm_h=recurrent.per_step(norm, 5))
    params, state = layer.init(jax.random.key(0), 2)
    x = jnp.asarray(RNG.normal(size=(6, 5, 2)), jnp.float32)
    (want, _), state = layer.apply(params, state, x[:, :3], stats="batch")
    ages = nj.statistics_age(state)["norm_h"]
    assert ages.shape == (5, 16)
    np.testing.assert_array_equal(ages[:, 0] > 0, [1, 1, 1, 0, 0])
    # After one update evaluation is training, as far as it went.
    (got, _), _ = layer.apply(params, state, x[:, :3], stats="running")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    (longer, _), _ = layer.apply(params, state, x, stats="running")
    np.testing.assert_allclose(longer[:, :3], got, rtol=1e-5, atol=1e-6)
    as_last = jax.tree.map(lambda s: s.at[3:].set(s[2]), state)
    (filled, _), _ = layer.apply(params, as_last, x, stats="running")
    np.testing.assert_array_equal(longer, filled)


@pytest.mark.slow
def test_devices_share_one_weight():
    norm = nj.batch_norm(debias=True)
    x = _batches(norm, 1)[0]
    params, state = norm.init(x.shape)

    def local(state, x):
        return norm.apply(params, state, x, stats="batch", axis_name="data")[1]

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
    _, want = norm.apply(params, state, x, stats="batch")
    for a, b in zip(jax.tree.leaves(mapped(state, x)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-12)


def test_trees_of_no_arrays_keep_the_structure():
    """Axes, shardings and `None` in the place of the leaves, as transformations have them."""
    _, state = nj.batch_norm(debias=True).init((1, F))
    for leaf in (None, 0, P("data"), object()):
        tree = jax.tree.map(lambda _, leaf=leaf: leaf, state)
        back = jax.tree.leaves(tree, is_leaf=lambda v: v is None)
        assert back == [leaf] * 3


def test_exported_programs_hold_them():
    pytest.importorskip("flatbuffers", reason="flatbuffers is absent: exports cannot be saved")
    norm = nj.batch_norm(debias=True)
    params, state = norm.init((1, F))
    run = jax.jit(lambda state, x: norm.apply(params, state, x, stats="batch")[1])
    x = _batches(norm, 1)[0]
    exported = jax.export.deserialize(jax.export.export(run)(state, x).serialize())
    got = exported.call(state, x)
    assert type(got) is type(state)
    jax.tree.map(np.testing.assert_array_equal, got, run(state, x))
