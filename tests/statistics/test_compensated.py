"""Statistics in two parts: counts and means of 10^9 values, averages over 10^6 updates."""

from __future__ import annotations

import functools
import pickle

import flax.linen as flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import linen, recurrent
from normjax.state import _names
from normjax.statistics import _compensated, _running

RNG = np.random.default_rng(0)


def exact(value, name):
    """A field of statistics with what float32 leaves out of it, in float64."""
    fields = value._asdict()
    return np.asarray(fields[name], np.float64) + np.asarray(fields[f"{name}_error"], np.float64)


def single(v):
    return nj.Moments(v, jnp.zeros_like(v), jnp.ones_like(v))


def pooled(n, mean, var, x):
    """Moments of n values of a mean and variance, and of the values x, in float64."""
    total = n + len(x)
    new = (n * mean + x.sum(0)) / total
    square = n * (var + mean**2) + (x**2).sum(0)
    return new, square / total - new**2, total


def fold(start, x):
    """Merge the values x onto the moments `start`, one by one."""
    first, rest = nj.merge(start, single(x[0])), x[1:]
    add = lambda m, v: (nj.merge(m, single(v)), None)  # noqa: E731
    return jax.jit(lambda m, x: jax.lax.scan(add, m, x)[0])(first, rest)


def test_single_values_onto_many():
    """10^5 single values onto 2^25: the mean goes from 0.2982 to 0.2971, where float32 stops."""
    n, k = 2**25, 10**5
    x = RNG.normal(-0.07, 1.0, size=(k, 1)).astype(np.float32)
    start = nj.Moments(jnp.array([0.2982]), jnp.ones(1), jnp.full(1, float(n)))
    got = fold(start, jnp.asarray(x))
    want = pooled(float(n), float(start.mean[0]), 1.0, np.asarray(x, np.float64))
    assert isinstance(got, nj.Moments)
    assert round(float(got.mean[0]), 4) == 0.2971
    assert exact(got, "count") == n + k
    np.testing.assert_allclose(exact(got, "mean"), want[0], rtol=1e-9)
    np.testing.assert_allclose(exact(got, "var"), want[1], rtol=1e-8)


def test_counts_go_on_after_2_to_the_24():
    def body(_, m):
        return nj.merge(m, single(jnp.ones(1)))

    m = nj.merge(
        nj.Moments(jnp.ones(1), jnp.zeros(1), jnp.full(1, 2.0**24 - 8)), single(jnp.ones(1))
    )
    m = jax.lax.fori_loop(0, 1001, body, m)
    assert exact(m, "count") == 2**24 + 994


@pytest.mark.parametrize("kind", ["moments", "second", "means"])
def test_a_data_set_of_a_billion_values(kind):
    """Batches of 2000 to 4000 values with means and spreads of their own, merged one by one."""
    batches, features = 400, 3
    repeat = 1000  # each batch counts a thousand times as many values, for 10^9 in all
    n = RNG.integers(2000, 4000, size=batches).astype(np.float64) * repeat
    means = RNG.normal(3.0, 0.01, size=(batches, features)).astype(np.float32)
    root = RNG.normal(size=(batches, features, features))
    covs = (root @ root.swapaxes(1, 2)).astype(np.float32)
    share = (n / n.sum())[:, None]
    wide = means.astype(np.float64)
    mean = (share * wide).sum(0)
    d = wide - mean
    cov = (share[..., None] * (covs + d[:, :, None] * d[:, None, :])).sum(0)
    counts = jnp.asarray(n, jnp.float32)
    if kind == "moments":
        full = jnp.broadcast_to(counts[:, None], means.shape)
        parts = nj.Moments(jnp.asarray(means), jnp.asarray(np.diagonal(covs, 0, 1, 2)), full)
    elif kind == "second":
        parts = nj.SecondMoments(jnp.asarray(means), jnp.asarray(covs), counts)
    else:
        parts = nj.Means(jnp.asarray(means), jnp.broadcast_to(counts[:, None], means.shape))
    one = lambda i: jax.tree.map(lambda leaf: leaf[i], parts)  # noqa: E731
    start = nj.merge(one(0), one(1))
    rest = jax.tree.map(lambda leaf: leaf[2:], parts)
    got = jax.lax.scan(lambda m, part: (nj.merge(m, part), None), start, rest)[0]
    assert n.sum() > 10**9
    np.testing.assert_array_equal(exact(got, "count"), n.sum())
    np.testing.assert_allclose(exact(got, "mean"), mean, rtol=1e-9)
    if kind != "means":
        want = cov if kind == "second" else np.diagonal(cov)
        np.testing.assert_allclose(got[1], want, rtol=3e-7, atol=1e-6)


def test_accumulators_count_as_well():
    """Gradient accumulation and population statistics merge in two parts too."""
    norm = nj.batch_norm()
    params, state = norm.init((1, 1))
    start = nj.accumulate_statistics(state)
    n = 2**25
    many = nj.Moments(jnp.array([0.2982]), jnp.ones(1), jnp.full(1, float(n)))
    start = start._replace(measured=nj.merge(start.measured, many))
    x = RNG.normal(-0.07, 1.0, size=(20000, 1)).astype(np.float32)

    def body(state, v):
        return norm.apply(params, state, v[None], stats="running")[1], None

    got = jax.jit(lambda s, x: jax.lax.scan(body, s, x)[0])(start, jnp.asarray(x))
    want = pooled(float(n), float(many.mean[0]), 1.0, np.asarray(x, np.float64))
    assert exact(got.measured, "count") == n + len(x)
    final = nj.finalize_statistics(got)
    np.testing.assert_allclose(final.mean, want[0], rtol=1e-7)
    np.testing.assert_allclose(final.var, want[1], rtol=1e-6)
    assert type(final) is nj.Running


def test_an_empty_set_changes_nothing():
    some = nj.moments(jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), 0)
    empty = nj.moments(jnp.zeros((0, 3)), 0)
    for merged in (nj.merge(some, empty), nj.merge(empty, some)):
        for got, want in zip(merged, some, strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_compensated_type_is_the_plain_one_with_more_leaves():
    m = nj.merge(single(jnp.ones(2)), single(jnp.zeros(2)))
    mean, var, count = m
    assert isinstance(m, nj.Moments) and m._fields == nj.Moments._fields
    names = [
        jax.tree_util.keystr(p, simple=True) for p, _ in jax.tree_util.tree_leaves_with_path(m)
    ]
    assert names == ["mean", "var", "count", "mean_error", "var_error", "count_error"]
    again = pickle.loads(pickle.dumps(m))
    assert type(again) is type(m)
    assert "mean_error=" in repr(again)
    jax.tree.map(np.testing.assert_array_equal, again, m)
    moved = m._replace(mean=mean + 1)
    np.testing.assert_array_equal(moved.error[0], 0)
    np.testing.assert_array_equal((var, count), ([0.25, 0.25], [2.0, 2.0]))


def drift(decay, steps, compensated):
    """The running mean after steps of a value that hardly varies, and the exact recursion."""
    norm = nj.batch_norm(decay=decay, compensated=compensated)
    _, state = norm.init((1, 3))
    period = (3 + 1e-3 * RNG.normal(size=(1000, 3))).astype(np.float32)

    def body(state, mean):
        m = nj.Moments(mean, mean**2, jnp.full(3, 8.0))
        return nj.ema(state, m, decay=decay), None

    def pass_over(state, _):
        return jax.lax.scan(body, state, jnp.asarray(period))[0], None

    got = jax.jit(lambda s: jax.lax.scan(pass_over, s, None, steps // 1000)[0])(state)
    want, values = np.zeros(3), period.astype(np.float64)
    for _ in range(steps // 1000):
        for v in values:
            want += (1 - decay) * (v - want)
    return np.abs(np.asarray(got.mean, np.float64) / want - 1).max(), got


def test_a_thousand_updates_of_a_compensated_average():
    assert drift(0.999, 1000, True)[0] < 2e-7


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.999, 0.9999])
def test_a_million_updates(decay):
    """With the errors within 1e-6; without them within the bound that the docstring gives."""
    error, state = drift(decay, 10**6, True)
    assert error < 1e-6, error
    assert type(state) is _compensated.compensated_type(nj.Running)
    plain, state = drift(decay, 10**6, False)
    assert 1e-6 < plain <= 6e-8 / (1 - decay), plain
    assert type(state) is nj.Running


NORMS = [
    nj.batch_norm,
    nj.batch_renorm,
    functools.partial(nj.ghost_batch_norm, size=4),
    nj.mean_only_batch_norm,
    nj.decorrelated_batch_norm,
    nj.iterative_norm,
    nj.evo_norm_b0,
    nj.switchable_norm,
]


@pytest.mark.parametrize("factory", NORMS, ids=lambda f: getattr(f, "__name__", "ghost_batch_norm"))
def test_every_norm_with_a_running_average_takes_it(factory):
    norm, plain = factory(compensated=True), factory()
    shape = (8, 2, 3)
    params, state = norm.init(shape, key=jax.random.key(0))
    _, other = plain.init(shape, key=jax.random.key(0))
    x = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    for _ in range(2):
        _, state = norm.apply(params, state, x, stats="batch")
        _, other = plain.apply(params, other, x, stats="batch")
    assert len(jax.tree.leaves(state)) == 2 * len(jax.tree.leaves(other))
    for a, b in zip(state, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    y, same = norm.apply(params, state, x, stats="running")
    want, _ = plain.apply(params, other, x, stats="running")
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    # By names, as Flax and checkpoints keep it; through accumulation, and back to the start.
    values = _names.to_dict(state)
    jax.tree.map(np.testing.assert_array_equal, _names.from_dict(state, values), state)
    jax.tree.map(np.testing.assert_array_equal, _names.read_statistics(values), state)
    _, gathered = norm.apply(params, nj.accumulate_statistics(state), x, stats="batch")
    for decay in (None, 0.9):
        final = nj.finalize_statistics(gathered, decay=decay)
        assert jax.tree.structure(final) == jax.tree.structure(state)
    start = nj.reset_statistics(state)
    jax.tree.map(np.testing.assert_array_equal, start, norm.init(shape)[1])


def test_a_compensated_average_skips_what_is_no_measurement():
    norm = nj.batch_norm(compensated=True, decay=0.9)
    params, state = norm.init((1, 2))
    _, state = norm.apply(
        params, state, jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32), stats="batch"
    )
    for junk in (jnp.full((4, 2), jnp.nan), jnp.full((4, 2), jnp.inf)):
        _, kept = norm.apply(params, state, junk, stats="batch")
        jax.tree.map(np.testing.assert_array_equal, kept, state)
    forgotten = nj.ema(state, nj.Moments(jnp.ones(2), jnp.ones(2), jnp.ones(2)), decay=0.0)
    np.testing.assert_array_equal(forgotten.mean, 1)


def test_in_layers_and_flax_modules():
    layer = recurrent.rnn(4, norm_x=recurrent.per_step(nj.batch_norm(compensated=True), 5))
    params, state = layer.init(jax.random.key(0), 3)
    x = jnp.asarray(RNG.normal(size=(6, 5, 3)), jnp.float32)
    _, new = layer.apply(params, state, x, stats="batch")
    assert jax.tree.structure(new) == jax.tree.structure(state)
    layer.apply(params, new, x, stats="running")
    module = linen.Normalize(nj.batch_norm(compensated=True))
    variables = module.init(jax.random.key(0), x, stats="batch")
    assert set(variables["batch_stats"]) == {"mean", "var", "mean_error", "var_error"}
    _, moved = module.apply(variables, x, stats="batch", mutable=["batch_stats"])
    module.apply({**variables, **moved}, x, stats="running")
    assert isinstance(module, flax.Module)
    assert isinstance(_running.reset_running(state["norm_x"]), nj.Running)
