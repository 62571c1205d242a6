"""The paths of large arrays beside their plain twins, and beside float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import testing
from normjax.statistics import _large, _large_cpu
from tests._support import check, properties
from tests._support.few import few

# These paths are there for what the optimizer makes of them: its bits, and its memory.
pytestmark = pytest.mark.optimized

RNG = np.random.default_rng(0)
NORMS = {
    "layer": (nj.layer_norm(), (6, 40)),
    "layer, two axes": (nj.layer_norm(axes=(1, 2)), (6, 5, 8)),
    "layer, one affine per sample": (nj.layer_norm(), (6, 5, 8)),
    "rms": (nj.rms_norm(), (6, 40)),
    "batch": (nj.batch_norm(), (6, 5, 4)),
    "batch, first axis": (nj.batch_norm(axes=0), (6, 5, 4)),
    "batch, no affine": (nj.batch_norm(use_scale=False, use_bias=False), (6, 5, 4)),
    "group": (nj.group_norm(groups=4), (6, 5, 3, 8)),
    "instance": (nj.instance_norm(), (6, 5, 8)),
}
CASES = pytest.mark.parametrize(("norm", "shape"), NORMS.values(), ids=NORMS)


@pytest.fixture
def large(monkeypatch):
    """A switch: on, arrays of any size take the path; off, none does."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(_large, "MIN_SIZE", 0 if on else 10**9)

    switch(True)
    return switch


def _started(norm, shape, mean=0.7, dtype=jnp.float32):
    params, state = norm.init(shape)
    lead = (shape[0], 1) if len(shape) == 3 and norm == nj.layer_norm() else ()
    params = jax.tree.map(
        lambda v: jnp.asarray(1 + 0.3 * RNG.normal(size=(*lead, *v.shape)), v.dtype), params
    )
    x = jnp.asarray(RNG.normal(size=shape) + mean, dtype)
    return params, state, x, jnp.asarray(RNG.normal(size=shape), dtype)


def _all(norm, params, state, x, dy):
    """Output, state, gradients, a tangent, and a Hessian-vector product."""

    def f(params, x):
        return norm.apply(params, state, x, stats="batch")

    def loss(params, x):
        return jnp.sum(jnp.sin(f(params, x)[0]) * dy)

    grad = jax.grad(loss, argnums=(0, 1))
    way = jax.tree.map(jnp.cos, (params, x))
    return (
        f(params, x),
        grad(params, x),
        jax.jvp(f, (params, x), way),
        jax.jvp(grad, (params, x), way),
    )


@pytest.mark.parametrize(("norm", "shape"), few(NORMS, "layer"))
@pytest.mark.parametrize("mean", few({"0.7": 0.7, "50": 50.0}, "50"))
def test_values_and_gradients_are_those_of_the_plain_twin(norm, shape, mean, large, x64):
    params, state, x, dy = _started(norm, shape, mean, jnp.float64)
    params = jax.tree.map(lambda v: v.astype(jnp.float64), params)
    fast, plain = jax.jit(functools.partial(_all, norm)), jax.jit(functools.partial(_all, norm))
    fast = fast.trace(params, state, x, dy)
    large(False)
    plain = plain.trace(params, state, x, dy)
    assert str(fast.jaxpr) != str(plain.jaxpr)
    fast, plain = (way.lower().compile()(params, state, x, dy) for way in (fast, plain))
    properties.same(fast, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("norm", "shape"), few(NORMS, "batch, first axis"))
def test_under_vmap_and_in_half(norm, shape, large):
    params, state, x, _ = _started(norm, shape)
    xs = jnp.stack([x, 100 + x, -x])
    apply = lambda v: norm.apply(params, state, v, stats="batch")[0]  # noqa: E731
    properties.same(jax.vmap(apply)(xs), jnp.stack([apply(v) for v in xs]))
    short = x.astype(jnp.bfloat16)
    fast = apply(short)
    large(False)
    assert fast.dtype == jnp.bfloat16
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    properties.same(fast, apply(short), rtol=eps, atol=eps)


AXES = {"rows": (1,), "columns": (0,), "all": (0, 1)}


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
@pytest.mark.parametrize(
    ("mean", "std"), [(0, 1), (1.9, 1), (2.1, 1), (1e4, 1), (-100, 0.01), (1e-15, 1e-14), (3, 0)]
)
def test_statistics_are_those_of_two_passes(axes, mean, std, large):
    x = np.asarray(RNG.normal(size=(700, 500)) * std + mean, np.float32)
    got = nj.moments(jnp.asarray(x), axes)
    exact = x.astype(np.float64)
    want, centre = exact.var(axes), exact.mean(axes)
    # A rounding of the mean, and a few of the variance, of the numbers that there really are.
    np.testing.assert_allclose(got.mean, centre, rtol=3e-7, atol=1e-6 * std)
    np.testing.assert_allclose(got.var, want, rtol=3e-6, atol=(1e-7 * mean) ** 2)


@pytest.mark.parametrize("mean", [0.0, 1.9, 2.1, 1e3])
def test_gradients_lose_no_digits_where_the_mean_is_far(mean, large):
    """Against float64: sums over rows of dy, of which half is common to all rows."""
    norm = nj.batch_norm(eps=1e-12)
    params, state, _, _ = _started(norm, (4000, 8))
    x = jnp.asarray(RNG.normal(size=(4000, 8)) + mean, jnp.float32)
    dy = jnp.asarray(RNG.normal(size=x.shape) + 1, jnp.float32)

    def pull(params, x, dy):
        return jax.vjp(lambda p, x: norm.apply(p, state, x, stats="batch")[0], params, x)[1](dy)

    affine, dx = pull(params, x, dy)
    exact, exact_dx = _batch_gradient(params, x, dy)
    # 2,000 or so of the terms, of size 1, are of one sign: a few roundings of their sum, and of the
    # mean where it is far.
    far, n = max(1.0, mean / 10), x.shape[0]
    np.testing.assert_allclose(affine.scale, exact[0], rtol=0, atol=3e-7 * n * far)
    np.testing.assert_allclose(affine.bias, exact[1], rtol=0, atol=1e-7 * n)
    np.testing.assert_allclose(dx, exact_dx, rtol=0, atol=2e-6 * far)


def _batch_gradient(params, x, dy):
    x, dy = (np.asarray(v, np.float64) for v in (x, dy))
    scale = np.asarray(params.scale, np.float64)
    inverse = 1 / np.sqrt(x.var(0) + 1e-12)
    hat = (x - x.mean(0)) * inverse
    g = dy * scale
    dx = inverse * (g - g.mean(0) - hat * (g * hat).mean(0))
    return ((dy * hat).sum(0), dy.sum(0)), dx


def test_sets_near_and_far_in_one_array(large):
    mean = np.array([0, 1e4, -3, 0.5, 300])[:, None]
    x = np.asarray(RNG.normal(size=(5, 2000)) + mean, np.float32)
    got = nj.moments(jnp.asarray(x), 1)
    np.testing.assert_allclose(got.var, x.astype(np.float64).var(1), rtol=3e-6)


def test_a_sample_does_not_depend_on_its_neighbours_to_the_bit(large):
    norm = nj.layer_norm()
    params, state, x, _ = _started(norm, (8, 64))
    apply = jax.jit(lambda x: norm.apply(params, state, x, stats="batch")[0])
    far = apply(x.at[0].add(1e4))
    np.testing.assert_array_equal(far[1:], apply(x)[1:])


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nj.layer_norm(), (512, 512)),
        (nj.rms_norm(), (512, 512)),
        (nj.batch_norm(), (16, 8, 32, 64)),
        (nj.group_norm(groups=32), (8, 8, 32, 128)),
    ],
    ids=["layer", "rms", "batch", "group"],
)
def test_memory_holds_nothing_of_the_size_of_x_but_the_results(norm, shape):
    params, state = norm.init(shape)
    x = jnp.zeros(shape)

    def both(params, x, dy):
        y, pull = jax.vjp(lambda p, x: norm.apply(p, state, x, stats="batch")[0], params, x)
        return y, pull(dy)

    compiled = jax.jit(both).lower(params, x, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < x.nbytes / 4


def test_which_arrays_are_served():
    x = jnp.zeros((512, 512))
    assert _large.serves(x)
    assert not _large.serves(x, jnp.ones((512, 1), bool))
    assert not _large.serves(x[:8])
    assert not _large.serves(x.astype(jnp.complex64))


def test_formulas_for_a_cpu_are_in_programs_for_a_cpu_only():
    """Whatever machine traces: its branch between one pass and two, and its barriers."""
    norm = nj.layer_norm()
    params, state = norm.init((512, 512))

    def loss(params, x):
        return jnp.sum(norm.apply(params, state, x, stats="batch")[0] ** 2)

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(params, jnp.zeros((512, 512)))
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda", "tpu")}
    for platform, text in texts.items():
        found = ("stablehlo.case" in text, "optimization_barrier" in text)
        assert found == (platform == "cpu",) * 2
    assert texts["cuda"].splitlines()[1:] == texts["tpu"].splitlines()[1:]


def test_eager_and_forward_mode_take_the_path_too(monkeypatch):
    norm = nj.layer_norm()
    params, state, x, _ = _started(norm, (512, 512))
    taken = []

    def watch(name):
        plain = getattr(_large_cpu, name)
        monkeypatch.setattr(_large_cpu, name, lambda *args: taken.append(name) or plain(*args))

    watch("mean_and_var")
    watch("standardize")
    apply = lambda x: norm.apply(params, state, x, stats="batch")[0]  # noqa: E731
    y, dy = jax.jvp(apply, (x,), (x,))
    assert {*taken} == {"mean_and_var", "standardize"}
    with jax.enable_x64(True):
        wide = x.astype(jnp.float64)
        params = jax.tree.map(lambda v: v.astype(jnp.float64), params)
        want = jax.jvp(apply, (wide,), (wide,))
    properties.same((y, dy), want, rtol=1e-4, atol=1e-4)


# Rows, rows without a centre, columns, columns that do not come last, and parts of rows. That
# their gradients are the plain twin's is tested above.
PATHS = ("layer_norm", "rms_norm", "batch_norm_conv", "batch_norm_channels_first", "group_norm")
BATTERIES = ("transforms_batch", "constant", "moments_of_output", "sharded")


@pytest.mark.slow
@pytest.mark.parametrize("battery", BATTERIES)
@pytest.mark.parametrize(
    "sample", [s for s in testing.SAMPLES if s.name in PATHS], ids=lambda s: s.name
)
def test_batteries(sample, battery, large):
    check.ALL[battery](sample)
