"""The rules for large arrays on accelerators, run on a CPU beside their twins and float64.

Their arithmetic is plain JAX, so that only the order of sums is a device's own.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from benchmarks import hard_inputs, peers
from normjax._internal import _by_platform
from normjax.statistics import _large, _large_accelerator
from tests._support import properties
from tests._support.few import few
from tests.statistics import test_large_cpu as cpu

RNG = np.random.default_rng(0)
EPS = 2.0**-24  # half a unit in the last place of float32, relative


@pytest.fixture(params=["tpu", "cuda"])
def elsewhere(monkeypatch, request):
    """Have every program, for arrays of any size, take the rules of an accelerator."""
    run = _by_platform._run

    def on_it(platform, operands, **static):
        assert platform == "cpu"
        return run(request.param, operands, **static)

    monkeypatch.setattr(_large, "MIN_SIZE", 0)
    monkeypatch.setattr(_by_platform, "_run", on_it)
    return request.param


# Long enough for a GPU to sum over the batch, or over space, in two steps.
NORMS = {
    "layer": (nj.layer_norm(), (160, 4)),
    "layer, no affine": (nj.layer_norm(use_scale=False, use_bias=False), (6, 40)),
    "rms": (nj.rms_norm(), (160, 4)),
    "batch": (nj.batch_norm(), (16, 5, 2, 4)),
    "batch, channels first": (nj.batch_norm(axes=(0, 2, 3)), (6, 4, 5, 2)),
    "group": (nj.group_norm(groups=2), (2, 16, 10, 6)),
    "instance": (nj.instance_norm(use_bias=False), (2, 160, 3)),
}


# A TPU's rules are a GPU's without steps.
TWINS = {f"cuda-{name}": ("cuda", name) for name in NORMS}
TWINS |= {f"tpu-{name}": ("tpu", name) for name in ("layer", "group")}


@pytest.mark.parametrize(
    ("elsewhere", "name"),
    few(TWINS, "cuda-layer", "cuda-batch", "tpu-group"),
    indirect=["elsewhere"],
)
def test_values_and_gradients_are_those_of_the_plain_twin(name, elsewhere, x64, monkeypatch):
    norm, shape = NORMS[name]
    monkeypatch.setattr(_large_accelerator, "RUN", 16)
    params, state, x, dy = cpu._started(norm, shape, 50.0, jnp.float64)
    params = jax.tree.map(lambda v: v.astype(jnp.float64), params)
    fast = jax.jit(functools.partial(cpu._all, norm)).lower(params, state, x, dy)
    monkeypatch.setattr(_large, "MIN_SIZE", 10**9)
    plain = jax.jit(functools.partial(cpu._all, norm)).lower(params, state, x, dy)
    assert fast.as_text() != plain.as_text()
    rows = shape in ((6, 40), (6, 4, 5, 2))  # all sums are over the last axes
    in_steps = "optimization_barrier" in fast.as_text()
    assert in_steps == (elsewhere == "cuda" and not rows)
    same = [way.compile()(params, state, x, dy) for way in (fast, plain)]
    properties.same(*same, rtol=1e-9, atol=1e-9)


def test_a_long_sum_is_cut_where_devices_may_have_cut_it():
    def cut(shape, axes):
        split = _large_accelerator._split(shape, axes)
        return split and (split.shape, split.run, split.others)

    assert cut((4096, 1024), (0,)) == ((16, 256, 1024), 1, (0,))
    assert cut((64, 32, 32, 64), (0, 1, 2)) == ((256, 256, 64), 1, (0,))
    assert cut((2, 32, 32, 8, 4), (1, 2, 4)) == ((2, 4, 256, 8, 4), 2, (1, 3))
    # 2,400 rows over 16 devices are 150 each.
    assert cut((2400, 8), (0,)) == ((16, 150, 8), 1, (0,))
    for none in (
        ((4096, 1024), (1,)),
        ((8, 4, 32, 32), (0, 2, 3)),
        ((257, 3), (0,)),
        ((64, 3), (0,)),
    ):
        assert cut(*none) is None


def _moments(x, axes):
    """Statistics by the rules, and those of the same numbers in float64."""
    got = nj.moments(jnp.asarray(x), axes)
    exact = np.asarray(x, np.float64)
    return got, exact.mean(axes), exact.var(axes)


@pytest.mark.parametrize("axes", cpu.AXES.values(), ids=cpu.AXES)
@pytest.mark.parametrize(("mean", "std"), [(0, 1), (1e4, 1), (-100, 0.01), (1e-15, 1e-14), (3, 0)])
def test_statistics_of_one_pass_are_those_of_two(axes, mean, std, elsewhere):
    x = np.asarray(RNG.normal(size=(700, 500)) * std + mean, np.float32)
    got, want_mean, want = _moments(x, axes)
    np.testing.assert_allclose(got.mean, want_mean, rtol=3e-7, atol=1e-6 * std)
    np.testing.assert_allclose(got.var, want, rtol=3e-6, atol=(1e-7 * mean) ** 2)


@pytest.mark.parametrize("far", [30.0, 1e4, 1e15])
def test_a_part_that_is_like_no_other_costs_few_digits(far, elsewhere):
    """The worst there is: all of the part that a set is measured around lies far from the rest."""
    x = np.asarray(RNG.normal(size=(6, 4096)), np.float32)
    x[:, : 4096 // _large_accelerator.PART] += np.float32(far)
    x[3] *= -1
    got, mean, var = _moments(x, 1)
    np.testing.assert_allclose(got.mean, mean, rtol=0, atol=4 * EPS * far)
    np.testing.assert_allclose(got.var, var, rtol=4 * EPS * (1 + _large_accelerator.PART))


def test_one_outlier_in_the_part_and_sets_shorter_than_it(elsewhere):
    x = np.asarray(RNG.normal(size=(5, 1024)), np.float32)
    x[:, 0] = [0, 1e2, 1e4, 1e8, -1e16]
    got, mean, var = _moments(x, 1)
    # The shift is about one spread away: a rounding or two of the spread.
    assert (np.abs(got.mean - mean) <= 4 * EPS * np.sqrt(var)).all()
    np.testing.assert_allclose(got.var, var, rtol=3e-6)
    for short in (1, 2, 7):
        got, mean, var = _moments(x[:, 1 : 1 + short] + 100, 1)
        np.testing.assert_allclose(got.mean, mean, rtol=3e-7)
        np.testing.assert_allclose(got.var, var, rtol=1e-5, atol=1e-10)


def test_what_is_not_finite_stays_so(elsewhere):
    x = jnp.ones((3, 64)).at[0, 5].set(jnp.nan).at[1, 63].set(jnp.inf)
    got = nj.moments(x, 1)
    assert jnp.isnan(got.mean[0]) and not jnp.isfinite(got.mean[1]) and got.mean[2] == 1
    assert jnp.isnan(got.var[0]) and jnp.isnan(got.var[1]) and got.var[2] == 0
    assert jnp.isnan(nj.moments(jnp.full((1, 64), 1e30).at[0, :32].set(-1e30), 1).var)


@pytest.mark.parametrize("norm", [nj.layer_norm(), nj.rms_norm()], ids=repr)
def test_rows_are_normalized_from_x_alone_as_from_their_statistics(norm, elsewhere, monkeypatch):
    """Without a derivative, by the one kernel of a GPU; with one, by the statistics it needs."""
    x = np.asarray(RNG.normal(size=(9, 512)), np.float32)
    x[1] += 1e4
    x[2] *= 1e-15
    x[3] = 7
    x[4] *= 1e17
    x[5, 3], x[6, 9], x[7, ::2], x[8] = np.nan, -np.inf, 1e30, 0
    params, state = norm.init(x.shape)
    calls = []
    run = _large_accelerator.normalize_rows
    monkeypatch.setattr(
        _large_accelerator, "normalize_rows", lambda *args: calls.append(1) or run(*args)
    )

    def apply(x):
        return norm.apply(params, state, x, stats="batch")[0]

    alone = apply(jnp.asarray(x))
    assert len(calls) == (elsewhere == "cuda")
    with_derivative, _ = jax.vjp(apply, jnp.asarray(x))
    assert len(calls) == (elsewhere == "cuda")
    both = functools.partial(nj.add_norm, norm, params)
    np.testing.assert_array_equal(both(jnp.asarray(x), jnp.zeros_like(x))[0], alone)
    assert len(calls) == 2 * (elsewhere == "cuda")
    jax.vjp(both, jnp.asarray(x), jnp.zeros_like(x))
    assert len(calls) == 2 * (elsewhere == "cuda")
    assert np.isnan(alone[5:8]).all() and np.isnan(with_derivative[5:8]).all()
    real = np.delete(np.asarray(x, np.float64), [5, 6, 7], 0)
    mean = real.mean(1, keepdims=True) if norm == nj.layer_norm() else np.zeros((6, 1))
    spread = np.sqrt(((real - mean) ** 2).mean(1, keepdims=True) + 1e-5)
    want = (real - mean) / spread
    # A mean that is stored is rounded to float32; the GPU's kernel subtracts what is left of it.
    stored = EPS * np.abs(mean) / spread
    for y, rounding in ((alone, 0 if elsewhere == "cuda" else stored), (with_derivative, stored)):
        far = np.abs(np.delete(y, [5, 6, 7], 0) - want)
        assert (far <= 3e-7 + 2e-6 * np.abs(want) + rounding).all()


@pytest.mark.parametrize("case", hard_inputs.CASES, ids=lambda c: c.name)
def test_hard_inputs(case, elsewhere):
    assert hard_inputs.cell(case, peers.Normjax())["passes"]
