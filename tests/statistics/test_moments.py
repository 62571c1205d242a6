"""The verbs against two-pass float64 NumPy, and the same numbers however the batch is spread."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import normjax as nj
from normjax.statistics import _merge, _moments
from tests._support import reference

RNG = np.random.default_rng(0)
CASES = [
    ((7, 3), 0),
    ((7, 3), None),
    ((4, 3, 5, 2), None),
    ((4, 3, 5, 2), (0, 2)),
    ((4, 3, 5, 2), (-1, 1)),
    ((6,), 0),
]


def draw(shape, dtype=np.float32, mean=0.0):
    x = RNG.normal(size=shape) + mean
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * RNG.normal(size=shape)
    return x.astype(dtype)


def axes_of(axes, ndim):
    axes = range(ndim - 1) if axes is None else np.atleast_1d(axes)
    return tuple(sorted(int(a) % ndim for a in axes))


def close(got, want, rtol=1e-6, atol=1e-6):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=rtol, atol=atol)


def covariance(x, mask=None):
    """Mean, biased covariance and count of the rows of x, one row at a time, in float64."""
    wide = np.complex128 if np.iscomplexobj(x) else np.float64
    rows = np.asarray(x).astype(wide).reshape(-1, x.shape[-1])
    keep = np.ones(len(rows), bool) if mask is None else np.asarray(mask).reshape(-1)
    rows = rows[keep]
    mean = sum(rows) / max(len(rows), 1)
    cov = sum(np.outer(r - mean, (r - mean).conj()) for r in rows) / max(len(rows), 1)
    return mean, cov, len(rows)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape, axes", CASES)
def test_moments(shape, axes, masked, dtype):
    x = draw(shape, dtype)
    mask = RNG.random(shape) < 0.6 if masked else None
    m = nj.moments(x, axes, mask=mask)
    mean, var, n = reference.moments(x, axes_of(axes, len(shape)), mask)
    close(m.mean, mean), close(m.var, var), close(m.count, n, 0, 0)
    assert m.mean.dtype == dtype and m.var.dtype == m.count.dtype == np.float32
    means = _moments.means(x, axes, mask=mask)
    close(means.mean, mean), close(means.count, n, 0, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_measured_in_float32(dtype):
    x = jnp.asarray(draw((512, 3), mean=3.0)).astype(dtype)
    mean, var, _ = reference.moments(np.asarray(x, np.float64), 0)
    m = nj.moments(x, 0)
    assert m.mean.dtype == m.var.dtype == jnp.float32
    close(m.mean, mean), close(m.var, var)
    assert nj.second_moments(x).cov.dtype == jnp.float32


def test_large_mean_costs_no_digits():
    x = draw((4096, 3), mean=1e4)
    _, var, _ = reference.moments(x, 0)
    close(nj.moments(x, 0).var, var, rtol=1e-5)
    close(nj.second_moments(x).cov, covariance(x)[1], rtol=1e-5, atol=1e-5)
    wrong = (x * x).mean(0) - x.mean(0) ** 2
    assert np.abs(wrong - var).max() > 0.1  # E[x^2] - E[x]^2 in float32 is no variance here


def test_float64(x64):
    x = draw((50, 3), np.float64, mean=1e4)
    mean, var, _ = reference.moments(x, 0)
    m = nj.moments(x, 0)
    assert m.mean.dtype == m.var.dtype == np.float64
    close(m.mean, mean, 1e-14, 0), close(m.var, var, 1e-12, 0)
    close(nj.second_moments(x).cov, covariance(x)[1], 1e-11, 1e-11)


def test_moments_of_constants_are_exact():
    x = jnp.full((7, 3), 3000.1)
    np.testing.assert_array_equal(nj.moments(x, 0).var, 0)
    np.testing.assert_array_equal(nj.second_moments(x).cov, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("masked", [False, True])
def test_second_moments(masked, dtype):
    x = draw((5, 4, 3), dtype)
    mask = RNG.random((5, 4, 1)) < 0.6 if masked else None
    m = nj.second_moments(x, mask=mask)
    for got, want in zip(m, covariance(x, mask), strict=True):
        close(got, want)
    # Position by position: a covariance for each.
    each = nj.second_moments(x, 0, mask=mask)
    assert each.cov.shape == (4, 3, 3) and each.count.shape == (4,)
    for t in range(4):
        part = None if mask is None else mask[:, t]
        for got, want in zip(each, covariance(x[:, t], part), strict=True):
            close(got[t], want)


def test_mask_of_second_moments_counts_whole_vectors_and_hides_nan():
    x = draw((4, 2))
    mask = np.array([[True, True], [True, False], [True, True], [False, False]])
    m = nj.second_moments(np.where(mask, x, np.nan), mask=mask)
    for got, want in zip(m, covariance(x, mask.all(1)), strict=True):
        close(got, want)


def test_covariance_of_averaged_features_is_refused():
    with pytest.raises(ValueError, match="moveaxis"):
        nj.second_moments(jnp.ones((2, 3, 4)), (0, 2))


VERBS = {
    "moments": lambda x, **how: nj.moments(x, 0, **how),
    "means": lambda x, **how: _moments.means(x, 0, **how),
    "second_moments": nj.second_moments,
}


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("verb", VERBS)
def test_merge_is_exact(verb, dtype):
    x = draw((13, 3), dtype, mean=5.0)
    verb = VERBS[verb]
    whole = verb(x)
    none = np.zeros((2, 1), bool)
    parts = [verb(p) for p in (x[:1], x[1:8], x[8:])]
    parts.insert(1, verb(x[:2] * np.nan, mask=none))
    parts.insert(0, verb(x[:2] * np.nan, mask=none))
    for got, want in zip(functools.reduce(nj.merge, parts), whole, strict=True):
        close(got, want, 2e-6, 2e-6)
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *parts)
    for got, want in zip(_merge.merge_axis(stacked), whole, strict=True):
        close(got, want, 2e-6, 2e-6)
    # One of the two empty: the other, to the bit.
    for got, want in zip(nj.merge(parts[0], whole), whole, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("verb", VERBS)
def test_ema_leaves_out_empty_and_nonfinite_batches(verb, correction):
    x = draw((5, 3))
    m = VERBS[verb](x)
    kind = _merge.kind_of(m)
    old = [draw(v.shape) for v in m[:-1]]
    running = kind.running(*map(jnp.asarray, old))
    new = nj.ema(running, m, decay=0.75, correction=correction)
    mean, var, _ = reference.moments(x, 0)
    spread = {"moments": var, "second_moments": covariance(x)[1], "means": None}[verb]
    close(new.mean, 0.75 * old[0] + 0.25 * mean)
    if spread is not None:
        close(new[1], 0.75 * old[1] + 0.25 * spread * (5 / 4 if correction else 1))
    # Nothing, or something broken, moves nothing.
    empty = VERBS[verb](x, mask=np.zeros((5, 1), bool))
    for got, want in zip(nj.ema(running, empty, decay=0.75), running, strict=True):
        np.testing.assert_array_equal(got, want)
    broken = nj.ema(running, VERBS[verb](np.where(np.arange(3) == 1, np.nan, x)), decay=0.75)
    np.testing.assert_array_equal(broken.mean[1], running.mean[1])
    assert all(np.isfinite(leaf).all() for leaf in broken)
    # Features that are whole still move, where each is a statistic by itself.
    moved = np.asarray(broken.mean[0]) != np.asarray(running.mean[0])
    assert moved == (verb != "second_moments")
    grad = jax.grad(lambda v: jnp.sum(nj.ema(running, VERBS[verb](v), decay=0.75).mean))(x)
    np.testing.assert_array_equal(grad, 0)


def test_a_single_value_has_no_unbiased_variance():
    running = nj.Running(jnp.zeros(2), jnp.ones(2))
    new = nj.ema(running, nj.moments(jnp.ones((1, 2)), 0), decay=0.5, correction=1)
    close(new.mean, 0.5)
    close(new.var, 1.0)  # n / (n - 1) does not exist: the old one stays
    new = nj.ema(running, nj.moments(jnp.ones((1, 2)), 0), decay=0.5, correction=0)
    close(new.var, 0.5)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("shape, axes", CASES[:5])
def test_normalize(shape, axes, dtype):
    x, eps = draw(shape, dtype, mean=2.0), 1e-3
    at = axes_of(axes, len(shape))
    scale, bias = draw(shape[-1:]), draw(shape[-1:])
    y = nj.normalize(x, nj.moments(x, axes), axes, scale=scale, bias=bias, eps=eps)
    mean, var, _ = reference.moments(x, at)
    mean, var = np.expand_dims(mean, at), np.expand_dims(var, at)
    assert y.dtype == dtype
    close(y, (x - mean) / np.sqrt(var + eps) * scale + bias, 1e-5, 1e-5)


def test_statistics_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="shape of this x"):
        nj.normalize(jnp.ones((2, 3)), nj.moments(jnp.ones((2, 4)), 0), 0, eps=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (3, 1, ValueError, "same features"),
        (3, "cov", TypeError, "Moments and SecondMoments"),
        ("running", "running", TypeError, "Running and Running"),
    ],
)
def test_merge_takes_two_of_one_kind_and_shape(a, b, error, message):
    def make(what):
        if what == "cov":
            return nj.second_moments(jnp.ones((2, 3)))
        if what == "running":
            return nj.Running(jnp.zeros(3), jnp.ones(3))
        return nj.moments(jnp.ones((2, what)), 0)

    with pytest.raises(error, match=message):
        nj.merge(make(a), make(b))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"scale": (5, 1, 1)},
            r"scale of shape \(5, 1, 1\) does not broadcast to x of shape \(4, 3\)",
        ),
        ({"bias": (5, 1, 1)}, r"bias of shape \(5, 1, 1\)"),
        ({"bias": (4,)}, r"bias of shape \(4,\)"),
        ({"eps": -1.0}, "eps=-1.0"),
    ],
)
def test_the_output_has_the_shape_of_x(how, message):
    x = jnp.ones((4, 3))
    how = {k: v if k == "eps" else jnp.ones(v) for k, v in how.items()}
    with pytest.raises(ValueError, match=message):
        nj.normalize(x, nj.moments(x, 0), 0, **{"eps": 1e-5, **how})


# However the batch is spread -----------------------------------------------------------------

X = draw((16, 3), mean=100.0)
# 4, 1, 0 and 3 values on the four devices: a mean of means would be wrong.
MASK = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1], bool)[:, None]
SPREAD = [*VERBS]


def mesh():
    return jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))


def split(v):
    return v.reshape(4, 4, -1)


def wanted(verb):
    mean, var, n = reference.moments(X, 0, MASK)
    if verb == "second_moments":
        return covariance(X, MASK)
    return {"moments": (mean, var, n), "means": (mean, n)}[verb]


def agree(got, verb):
    for g, w in zip(got, wanted(verb), strict=True):
        close(g, w, 1e-6, 1e-5)


def test_uneven_devices_tell_a_mean_from_a_mean_of_means():
    local = [reference.moments(x, 0, m)[0] for x, m in zip(split(X), split(MASK), strict=True)]
    assert np.abs(np.mean(local, 0) - wanted("moments")[0]).max() > 1


@pytest.mark.parametrize("verb", SPREAD)
def test_jit_with_sharded_arrays_needs_no_axis_name(verb):
    where = NamedSharding(mesh(), PartitionSpec("batch"))
    x, mask = (jax.device_put(v, where) for v in (X, MASK))
    agree(jax.jit(lambda x, m: VERBS[verb](x, mask=m))(x, mask), verb)


@pytest.mark.parametrize("verb", SPREAD)
def test_shard_map(verb):
    batch, whole = PartitionSpec("batch"), PartitionSpec()
    run = jax.shard_map(
        lambda x, m: VERBS[verb](x, mask=m, axis_name="batch"),
        mesh=mesh(),
        in_specs=(batch, batch),
        out_specs=whole,
    )
    agree(jax.jit(run)(X, MASK), verb)


@pytest.mark.parametrize("lift", [jax.pmap, jax.vmap])
@pytest.mark.parametrize("verb", SPREAD)
def test_pmap_and_vmap(verb, lift):
    run = lift(lambda x, m: VERBS[verb](x, mask=m, axis_name="batch"), axis_name="batch")
    got = run(split(X), split(MASK))
    for device in range(4):
        agree([g[device] for g in got], verb)


@pytest.mark.parametrize("verb", SPREAD)
def test_axis_index_groups_of_devices(verb):
    groups = [[0, 3], [1, 2]]
    run = jax.pmap(
        lambda x, m: VERBS[verb](x, mask=m, axis_name="batch", axis_index_groups=groups),
        axis_name="batch",
    )
    got = run(split(X), split(MASK))
    for group in groups:
        x, m = (np.concatenate([split(v)[d] for d in group]) for v in (X, MASK))
        want = VERBS[verb](x, mask=m)
        for device in group:
            for g, w in zip(got, want, strict=True):
                close(g[device], w, 1e-6, 1e-5)


def test_gradients_through_shared_statistics():
    weights = draw(X.shape)

    def loss(x, w, m, axis_name=None):
        seen = nj.moments(x, 0, mask=m, axis_name=axis_name)
        y = nj.normalize(x, seen, 0, eps=1e-5, mask=m)
        total = jnp.sum(w * y)
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    want = jax.jit(jax.grad(loss))(jnp.asarray(X), weights, MASK)
    batch = PartitionSpec("batch")
    run = jax.shard_map(
        functools.partial(loss, axis_name="batch"),
        mesh=mesh(),
        in_specs=(batch, batch, batch),
        out_specs=PartitionSpec(),
    )
    close(jax.jit(jax.grad(run))(jnp.asarray(X), weights, MASK), want, 1e-4, 1e-5)


@pytest.mark.parametrize(("decay", "bound"), [(0.99, 1e-6), (0.999, 2e-6), (0.9999, 1e-5)])
def test_the_pace_of_a_running_average_is_that_of_the_exact_recursion(decay, bound):
    """In its first 1 / (1 - decay) updates, where the weight of the new value shows."""
    steps = round(1 / (1 - decay))
    means = (3 + RNG.normal(size=(steps, 4))).astype(np.float32)

    def update(state, mean):
        measured = nj.Moments(mean, mean**2, jnp.full(4, 8.0))
        return nj.ema(state, measured, decay=decay), None

    start = nj.Running(jnp.zeros(4), jnp.ones(4))
    got = jax.jit(lambda m: jax.lax.scan(update, start, m)[0])(means)
    mean, var = np.zeros(4), np.ones(4)
    for new in means.astype(np.float64):
        mean, var = decay * mean + (1 - decay) * new, decay * var + (1 - decay) * new**2
    np.testing.assert_allclose(got.mean, mean, rtol=bound)
    np.testing.assert_allclose(got.var, var, rtol=bound)


@pytest.mark.parametrize("decay", [0.999, 0.9999])
def test_a_running_average_stops_within_half_a_unit_of_its_last_place(decay):
    m = nj.Moments(jnp.full(1, 3.0), jnp.full(1, 7.0), jnp.full(1, 8.0))
    start = nj.Running(jnp.zeros(1), jnp.ones(1))
    update = lambda _, state: nj.ema(state, m, decay=decay)  # noqa: E731
    got = jax.jit(lambda: jax.lax.fori_loop(0, round(20 / (1 - decay)), update, start))()
    np.testing.assert_allclose(got.mean, 3, rtol=6e-8 / (1 - decay))
    np.testing.assert_allclose(got.var, 7, rtol=6e-8 / (1 - decay))


@pytest.mark.parametrize("decay", [0.0, 0.25])
@pytest.mark.parametrize("traced", [False, True])
def test_a_running_average_that_forgets_does_not_round_through_the_old_value(decay, traced):
    m = nj.Moments(jnp.full(1, 1e-10), jnp.full(1, 1e-12), jnp.full(1, 8.0))
    state = nj.Running(jnp.zeros(1), jnp.zeros(1) if decay else jnp.ones(1))
    given = jnp.float32(decay) if traced else decay
    got = jax.jit(lambda s, d: nj.ema(s, m, decay=d if traced else decay))(state, given)
    np.testing.assert_allclose(got.mean, (1 - decay) * 1e-10, rtol=1e-6)
    np.testing.assert_allclose(got.var, (1 - decay) * 1e-12, rtol=1e-6)
