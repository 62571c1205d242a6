"""The batch family: against the papers' equations in float64, its peers, and its own identities."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import normjax as nj
from tests._support import reference
from tests._support.few import few

RNG = np.random.default_rng(1)
X = RNG.normal(size=(10, 4)).astype(np.float32) * 2 + 1
EPS = 1e-5


def close(got, want, rtol=2e-5, atol=2e-5):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=rtol, atol=atol)


def params(features=4):
    return nj.Affine(*(jnp.asarray(RNG.normal(size=features), jnp.float32) for _ in range(2)))


def running(features=4):
    mean, var = RNG.normal(size=features), RNG.uniform(0.5, 2, features)
    return nj.Running(jnp.asarray(mean, jnp.float32), jnp.asarray(var, jnp.float32))


# Batch norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [None, (0,), (0, 2)])
def test_batch_norm_is_algorithm_1(axes):
    x = RNG.normal(size=(5, 3, 4)).astype(np.float32)
    norm = nj.batch_norm(axes=axes, decay=0.9, correction=1)
    p, s = norm.init(x.shape)
    at = (0, 1) if axes is None else axes
    y, new = norm.apply(p, s, x, stats="batch")
    close(y, reference.batch_norm(x, eps=EPS, axes=at))
    mean, var, n = reference.moments(x, at)
    close(new.mean, 0.1 * mean)
    close(new.var, 0.9 + 0.1 * var * n / (n - 1))
    y, same = norm.apply(p, new, x, stats="running")
    assert same is new
    mean, var = (np.expand_dims(v, at) for v in new)
    close(y, reference.batch_norm(x, eps=EPS, axes=at, mean=mean, var=var))


def test_gamma_sigma_and_beta_mu_restore_the_input():
    norm = nj.batch_norm()
    mean, var, _ = reference.moments(X, 0)
    p = nj.Affine(jnp.asarray(np.sqrt(var + EPS), jnp.float32), jnp.asarray(mean, jnp.float32))
    close(norm.apply(p, norm.init(X.shape)[1], X, stats="batch")[0], X, 1e-6, 1e-6)


FAMILY = {
    "batch_norm": nj.batch_norm(),
    "mean_only": nj.mean_only_batch_norm(),
    "ghost": nj.ghost_batch_norm(size=4),
    "decorrelated": nj.decorrelated_batch_norm(group_size=2),
    "iterative": nj.iterative_norm(),
}


def through(norm, w, b, x):
    y, _ = norm.apply(*norm.init((1, w.shape[1]), w.dtype), x @ w + b[None], stats="batch")
    return y


SLOW = ("ghost", "decorrelated", "iterative")  # to compile


def of_family(*names):
    marks = dict.fromkeys(SLOW, pytest.mark.slow)
    return pytest.mark.parametrize("name", [pytest.param(n, marks=marks.get(n, [])) for n in names])


@of_family(*FAMILY)
def test_gradient_of_a_bias_before_a_centring_norm_is_zero(name, x64):
    w, b = RNG.normal(size=(4, 6)), RNG.normal(size=6)
    target = RNG.normal(size=(10, 6))
    x = jnp.asarray(X, jnp.float64)

    def loss(w, b):
        return jnp.sum((through(FAMILY[name], w, b, x) - target) ** 2)

    by_w, by_b = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(w), jnp.asarray(b))
    close(by_b, 0, 0, 1e-10)
    assert np.abs(by_w).max() > 1e-2


@of_family("batch_norm", *SLOW)
def test_invariance_to_the_scale_of_weights_and_data(name, x64):
    """Equation of section 3.3: BN((aW)u) = BN(Wu), and the gradient by aW is 1/a of that by W."""
    norm = FAMILY[name]
    w = jnp.asarray(RNG.normal(size=(4, 4)) * 1e3)
    x, b = jnp.asarray(X, jnp.float64), jnp.zeros(4)
    run = jax.jit(functools.partial(through, norm))
    y = run(w, b, x)
    close(run(10 * w, b, x), y, 1e-7, 1e-7)
    close(run(w, b, 10 * x), y, 1e-7, 1e-7)
    target = jnp.asarray(RNG.normal(size=y.shape))

    def loss(w):
        return jnp.sum(target * through(norm, w, b, x))

    grad = jax.jit(jax.grad(loss))
    g = grad(w)
    close(grad(10 * w) * 10, g, 1e-5, 1e-5 * float(jnp.abs(g).max()))


@pytest.mark.standard_numerics
def test_same_as_flax():
    import flax.linen as nn

    x = RNG.normal(size=(6, 3, 3, 4)).astype(np.float32)
    module = nn.BatchNorm(momentum=0.9, use_fast_variance=False)
    variables = module.init(jax.random.key(0), x, use_running_average=True)
    want, new = module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    norm = nj.batch_norm(decay=0.9)
    y, state = norm.apply(*norm.init(x.shape), x, stats="batch")
    close(y, want, 1e-5, 1e-5)
    close(state.mean, new["batch_stats"]["mean"], 1e-6, 1e-7)
    close(state.var, new["batch_stats"]["var"], 1e-6, 1e-7)


def test_same_as_torch():
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm1d(4, momentum=0.25)
    want = module(torch.tensor(X)).detach().numpy()
    norm = nj.batch_norm(decay=nj.decay_from_torch(0.25), correction=1)
    y, state = norm.apply(*norm.init(X.shape), X, stats="batch")
    close(y, want)
    mean, var = nj.running_to_torch(state, len(X), correction=1)
    close(mean, module.running_mean.numpy()), close(var, module.running_var.numpy())


# Over devices --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm",
    [
        nj.batch_norm(),
        nj.mean_only_batch_norm(),
        pytest.param(nj.decorrelated_batch_norm(group_size=2), marks=pytest.mark.slow),
    ],
    ids=repr,
)
@pytest.mark.parametrize("how", [pytest.param("pmap", marks=pytest.mark.slow), "shard_map"])
def test_masked_statistics_of_uneven_devices_are_those_of_the_whole_batch(norm, how):
    x = RNG.normal(size=(16, 4)).astype(np.float32) + np.arange(16, dtype=np.float32)[:, None]
    mask = np.array([1] * 5 + [0] * 8 + [1] * 3, bool)[:, None]
    p, s = norm.init(x.shape)
    want, state = norm.apply(p, s, x, stats="batch", mask=mask)
    run = functools.partial(norm.apply, p, s, stats="batch", axis_name="batch")
    if how == "pmap":
        mapped = jax.pmap(lambda x, m: run(x, mask=m), axis_name="batch")
        y, new = mapped(x.reshape(4, 4, 4), mask.reshape(4, 4, 1))
        y, new = y.reshape(16, 4), jax.tree.map(lambda v: v[2], new)
    else:
        batch = PartitionSpec("batch")
        mapped = jax.shard_map(
            lambda x, m: run(x, mask=m),
            mesh=jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,)),
            in_specs=(batch, batch),
            out_specs=(batch, PartitionSpec()),
        )
        y, new = jax.jit(mapped)(x, mask)
    close(np.where(mask, y, 0), np.where(mask, want, 0), 1e-4, 1e-4)
    for a, b in zip(new, state, strict=True):
        close(a, b)


GROUPS = ((0, 2), (1, 3))


@pytest.mark.parametrize(
    "norm, plain",
    [
        (nj.batch_norm(axis_index_groups=GROUPS), nj.batch_norm()),
        (nj.mean_only_batch_norm(axis_index_groups=GROUPS), nj.mean_only_batch_norm()),
        (
            nj.iterative_norm(axis_index_groups=GROUPS),
            nj.iterative_norm(),
        ),
    ],
    ids=lambda norm: norm.factory,
)
def test_axis_index_groups_of_devices_are_normalized_apart(norm, plain):
    x = RNG.normal(size=(4, 5, 4)).astype(np.float32)
    p, s = norm.init((1, 4))
    run = functools.partial(norm.apply, p, s, stats="batch", axis_name="batch")
    y, new = jax.pmap(lambda x: run(x), axis_name="batch")(x)
    for group in GROUPS:
        want, state = plain.apply(p, s, np.concatenate([x[d] for d in group]), stats="batch")
        close(np.concatenate([y[d] for d in group]), want)
        for d in group:
            for a, b in zip(new, state, strict=True):
                close(a[d], b)


# Mean only -----------------------------------------------------------------------------------


def test_mean_only_batch_norm_is_the_equation():
    norm = nj.mean_only_batch_norm(bias_init=0.5)
    p, s = norm.init(X.shape)
    assert p.scale is None and s == nj.RunningMean(s.mean)
    y, new = norm.apply(p, s, X, stats="batch")
    mean = np.asarray(X, np.float64).mean(0)
    close(y, X - mean + 0.5), close(new.mean, 0.1 * mean)
    close(norm.apply(p, new, X, stats="running")[0], X - 0.1 * mean + 0.5)


@pytest.mark.parametrize("how", ["pooled", "unbiased", "mean"])
def test_mean_only_population_statistics(how):
    norm = nj.mean_only_batch_norm()
    p, s = norm.init(X.shape)
    got = nj.population_statistics(norm, p, s, [X[:2], X[2:]], how=how)
    whole = np.asarray(X, np.float64)
    batches = (whole[:2].mean(0) + whole[2:].mean(0)) / 2
    close(got.mean, whole.mean(0) if how == "pooled" else batches)


# Renormalization -----------------------------------------------------------------------------


def renorm(x, p, s, r_max, d_max, fixed=None):
    """Algorithm 1 of the paper in float64; `fixed` are r and d held constant."""
    x = np.asarray(x, np.float64)
    gamma, beta = (np.asarray(v, np.float64) for v in p)
    mean, var, _ = reference.moments(x, 0)
    sigma_b = np.sqrt(var + EPS)
    mu, sigma = np.asarray(s.mean, np.float64), np.sqrt(np.asarray(s.var, np.float64) + EPS)
    r = np.clip(sigma_b / sigma, 1 / r_max, r_max)
    d = np.clip((mean - mu) / sigma, -d_max, d_max)
    r, d = (r, d) if fixed is None else fixed
    return gamma * ((x - mean) / sigma_b * r + d) + beta, (r, d)


@pytest.mark.parametrize("r_max, d_max", [(3.0, 5.0), (1.2, 0.3), (1.0, 0.0)])
def test_renorm_is_algorithm_1(r_max, d_max):
    p, s = params(), running()
    want, _ = renorm(X, p, s, r_max, d_max)
    y, new = nj.batch_renorm(r_max=r_max, d_max=d_max).apply(p, s, X, stats="batch")
    close(y, want)
    hyper = {"r_max": jnp.float32(r_max), "d_max": d_max}
    close(nj.batch_renorm().apply(p, s, X, stats="batch", hyper=hyper)[0], want)
    for a, b in zip(new, nj.batch_norm().apply(p, s, X, stats="batch")[1], strict=True):
        np.testing.assert_array_equal(a, b)
    close(
        nj.batch_renorm().apply(p, s, X, stats="running")[0],
        nj.batch_norm().apply(p, s, X, stats="running")[0],
        0,
        0,
    )


def test_renorm_of_one_and_zero_is_batch_norm():
    p, s = params(), running()
    got = nj.batch_renorm(r_max=1.0, d_max=0.0).apply(p, s, X, stats="batch")
    want = nj.batch_norm().apply(p, s, X, stats="batch")
    close(got[0], want[0], 1e-6, 1e-6)


def test_free_renorm_is_inference():
    p, s = params(), running()
    got, _ = nj.batch_renorm(r_max=1e9, d_max=1e9).apply(p, s, X, stats="batch")
    close(got, nj.batch_norm().apply(p, s, X, stats="running")[0])


def test_no_gradient_through_r_and_d(x64):
    p = jax.tree.map(lambda v: v.astype(jnp.float64), params())
    s = jax.tree.map(lambda v: v.astype(jnp.float64), running())
    x, w = jnp.asarray(X, jnp.float64), RNG.normal(size=X.shape)
    norm = nj.batch_renorm(r_max=1.5, d_max=0.4)
    got = jax.grad(lambda x: jnp.sum(w * norm.apply(p, s, x, stats="batch")[0]))(x)
    _, fixed = renorm(x, p, s, 1.5, 0.4)
    assert np.ptp(fixed[0]) > 0.1  # not all clipped
    want = np.zeros(x.shape)
    for at in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[at] = 1e-6
        up, down = (
            np.sum(w * renorm(x + sign * step, p, s, 1.5, 0.4, fixed)[0]) for sign in (1, -1)
        )
        want[at] = (up - down) / 2e-6
    close(got, want, 1e-6, 1e-7)


def test_schedule_is_the_papers():
    at = {0: (1, 0), 5_000: (1, 0), 15_000: (1 + 2 * 10 / 35, 2.5), 25_000: (1 + 40 / 35, 5)}
    at |= {40_000: (3, 5), 160_000: (3, 5)}
    step = jax.jit(nj.renorm_schedule)
    for t, (r, d) in at.items():
        got = step(t)
        close(got["r_max"], r, 1e-6, 0), close(got["d_max"], d, 1e-6, 1e-7)


def test_one_trace_for_all_of_the_schedule():
    norm, traces = nj.batch_renorm(), []

    @jax.jit
    def train(p, s, x, step):
        traces.append(1)
        return norm.apply(p, s, x, stats="batch", hyper=nj.renorm_schedule(step))

    for t in (0, 10_000, 50_000):
        train(params(), running(), X, t)
    assert len(traces) == 1


# Ghost ---------------------------------------------------------------------------------------

CUTS = {(10, 4): [4, 3, 3], (8, 4): [4, 4], (5, 4): [3, 2], (3, 4): [3], (9, 1): [1] * 9}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch, size", few({f"{b}-{s}": (b, s) for b, s in CUTS}, "10-4", "3-4"))
def test_ghost_is_a_loop_over_virtual_batches(batch, size, masked):
    x = RNG.normal(size=(batch, 3, 4)).astype(np.float32)
    mask = RNG.random((batch, 3, 1)) < 0.7 if masked else None
    p, s = params(), running()
    norm = nj.ghost_batch_norm(size=size, decay=0.9)
    y, new = norm.apply(p, s, x, stats="batch", mask=mask)
    start = 0
    for n in CUTS[batch, size]:
        at = slice(start, start + n)
        m = None if mask is None else mask[at]
        want = reference.batch_norm(x[at], *map(np.asarray, p), eps=EPS, axes=(0, 1), mask=m)
        keep = np.broadcast_to(True if m is None else m, want.shape)
        close(np.asarray(y[at])[keep], want[keep], 1e-4, 1e-4)
        start += n
    assert start == batch
    # What is kept, and so evaluation, is batch norm's.
    _, want = nj.batch_norm(decay=0.9).apply(p, s, x, stats="batch", mask=mask)
    for a, b in zip(new, want, strict=True):
        close(a, b, 1e-6, 1e-6)


def test_one_ghost_is_batch_norm():
    p, s = params(), running()
    got = nj.ghost_batch_norm(size=64).apply(p, s, X, stats="batch")
    want = nj.batch_norm().apply(p, s, X, stats="batch")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        close(a, b, 1e-6, 1e-6)


def test_ghosts_stay_on_their_device_and_their_statistics_do_not():
    x = RNG.normal(size=(16, 4)).astype(np.float32)
    p, s = params(), running()
    norm = nj.ghost_batch_norm(size=2)
    want, state = norm.apply(p, s, x, stats="batch")
    y, new = jax.pmap(
        lambda x: norm.apply(p, s, x, stats="batch", axis_name="batch"), axis_name="batch"
    )(x.reshape(4, 4, 4))
    close(y.reshape(16, 4), want)
    for a, b in zip(new, state, strict=True):
        close(a[3], b, 1e-6, 1e-6)


def test_ghosts_inside_a_recurrence():
    """Virtual batches of every step, statistics of the whole batch per step."""
    from normjax import recurrent

    x = RNG.normal(size=(6, 5, 3)).astype(np.float32)
    ghost = recurrent.lstm(4, norm_x=recurrent.per_step(nj.ghost_batch_norm(size=2), 5))
    plain = recurrent.lstm(4, norm_x=recurrent.per_step(nj.batch_norm(), 5))
    p, s = ghost.init(jax.random.key(0), 3)
    _, got = ghost.apply(p, s, x, stats="batch")
    _, want = plain.apply(p, s, x, stats="batch")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        close(a, b, 1e-5, 1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nj.batch_renorm(r_max=0.5), "r_max=1, d_max=0 is batch norm"),
        (lambda: nj.batch_renorm(d_max=-1.0), "d_max"),
        (lambda: nj.ghost_batch_norm(size=0), "size=0"),
        (lambda: nj.mean_only_batch_norm(decay=2.0), "decay"),
        (lambda: nj.renorm_schedule(0, r_end=10), "after start"),
        (
            lambda: nj.ghost_batch_norm(size=2, axes=1).apply(
                params(), running(), X, stats="batch"
            ),
            "batch first",
        ),
    ],
)
def test_errors_say_what_to_write(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_renorm_refuses_complex():
    with pytest.raises(TypeError, match=r"x\.real and x\.imag"):
        nj.batch_renorm().apply(params(), running(), X + 0j, stats="batch")
