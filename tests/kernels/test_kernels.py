"""The kernels, interpreted, beside float64 and their plain twins.

The norms that use them stand in `normjax.testing` as well, so all batteries run over them.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from normjax.kernels import (
    _batch_norm,
    _block_moments,
    _bn_lstm,
    _layer_norm,
    _pallas,
    _registry,
)
from tests._support import properties
from tests._support.few import few
from tests.conftest import unchecked

RNG = np.random.default_rng(0)
NORMS = {
    "layer": (functools.partial(nj.layer_norm), (37, 24)),
    "layer, two axes": (functools.partial(nj.layer_norm, axes=(1, 2)), (6, 5, 8)),
    "layer, no affine": (
        functools.partial(nj.layer_norm, use_scale=False, use_bias=False),
        (3, 7, 8),
    ),
    "rms": (functools.partial(nj.rms_norm), (37, 24)),
    "rms, unit offset": (functools.partial(nj.rms_norm, unit_offset=True), (4, 3, 16)),
    "batch": (functools.partial(nj.batch_norm), (6, 5, 7, 4)),
    "batch, wide": (functools.partial(nj.batch_norm), (300, 520)),
    "batch, no affine": (
        functools.partial(nj.batch_norm, use_scale=False, use_bias=False),
        (21, 5),
    ),
    "group": (functools.partial(nj.group_norm, groups=4), (6, 5, 3, 8)),
    "instance": (functools.partial(nj.instance_norm), (6, 5, 3, 8)),
}
CASES = pytest.mark.parametrize(("make", "shape"), NORMS.values(), ids=NORMS)
FEW = ("layer", "batch")  # of what takes seconds each, `make test` runs these
MOST = pytest.mark.parametrize(("make", "shape"), few(NORMS, *FEW))


@pytest.fixture(autouse=True)
def interpreted():
    """On a CPU a program has a kernel's plain twin, unless the interpreter is asked for."""
    with _pallas.interpreted():
        yield


@pytest.fixture
def kernels_run(monkeypatch):
    """The kernels' names as they are called: a test that none was called tests nothing."""
    called = []

    def watch(module, name):
        plain = getattr(module, name)

        def call(*args, **kwargs):
            called.append(f"{module.__name__}.{name}")
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for module, name in (
        (_layer_norm, "row_norm"),
        (_batch_norm, "moments"),
        (_batch_norm, "standardize"),
        (_bn_lstm, "run"),
    ):
        watch(module, name)
    return called


def started(norm, shape, dtype=jnp.float32, mean=0.7):
    params, state = norm.init(shape)
    params = jax.tree.map(
        lambda v: jnp.asarray(1 + 0.3 * RNG.normal(size=v.shape), v.dtype), params
    )
    x = jnp.asarray(RNG.normal(size=shape) * 2 + mean, dtype)
    return params, state, x, jnp.asarray(RNG.normal(size=shape), dtype)


def everything(norm, params, state, x, dy):
    """Output, state, gradients, a tangent, a Hessian-vector product, and per-example gradients."""

    def f(params, x):
        return norm.apply(params, state, x, stats="batch")

    def loss(params, x):
        return jnp.sum(jnp.sin(f(params, x)[0]) * dy)

    grad = jax.grad(loss, argnums=(0, 1))
    way = jax.tree.map(jnp.cos, (params, x))
    several = jnp.stack([x, 2 * x + 1, -x])
    return {
        "apply": f(params, x),
        "grad": grad(params, x),
        "jvp": jax.jvp(f, (params, x), way),
        "hvp": jax.jvp(grad, (params, x), way)[1],
        "vmap": jax.vmap(grad, (None, 0))(params, several),
        "grad of vmap": jax.grad(lambda p: jax.vmap(loss, (None, 0))(p, several).sum())(params),
        "reverse twice": jax.grad(lambda x: jnp.sum(jnp.sin(jax.grad(loss, 1)(params, x))))(x),
    }


@MOST
def test_everything_is_the_twins(make, shape, kernels_run):
    args = started(make(), shape)
    plain = jax.jit(functools.partial(everything, make()))(*args)
    assert not kernels_run
    fast = jax.jit(functools.partial(everything, make(impl="kernel")))(*args)
    assert kernels_run
    properties.same(fast, plain, rtol=2e-4, atol=2e-4)


@MOST
def test_values_and_gradients_against_float64(make, shape):
    params, state, x, dy = started(make(), shape, mean=300.0)

    def loss(norm, params, x):
        return jnp.sum(norm.apply(params, state, x, stats="batch")[0] * dy.astype(x.dtype))

    run = lambda norm, *args: jax.value_and_grad(functools.partial(loss, norm), (0, 1))(*args)  # noqa: E731
    fast = run(make(impl="kernel"), params, x)
    with jax.enable_x64(True):
        exact = run(make(), *jax.tree.map(lambda v: v.astype(jnp.float64), (params, x)))
    for got, want in zip(jax.tree.leaves(fast), jax.tree.leaves(exact), strict=True):
        scale = max(float(np.abs(want).max()), 1.0)
        np.testing.assert_allclose(np.asarray(got) / scale, np.asarray(want) / scale, atol=3e-4)


@pytest.fixture
def pallas_calls(monkeypatch):
    """The backends of the kernels that are made."""
    made, call = [], _pallas.pallas_call
    monkeypatch.setattr(
        _pallas, "pallas_call", lambda *a, **k: made.append(k["backend"]) or call(*a, **k)
    )
    return made


@MOST
def test_a_cpu_has_the_twin_unless_the_interpreter_is_asked_for(make, shape, pallas_calls):
    args = started(make(), shape)
    plain = jax.jit(functools.partial(everything, make()))(*args)
    with _pallas.interpreted(False):
        fast = jax.jit(functools.partial(everything, make(impl="kernel")))(*args)
    assert not pallas_calls
    properties.same(fast, plain, rtol=2e-4, atol=2e-4)
    jax.jit(lambda *a: make(impl="kernel").apply(*a, stats="batch")).lower(*args[:3])
    assert {*pallas_calls} == {"interpreter"}


FAR = {
    # Of a row the kernel has the centred values; a column's mean is rounded where it is handed on.
    "layer": (nj.layer_norm, (64, 512), -1, 2e-6, 2e-6),
    "batch": (nj.batch_norm, (700, 8), 0, 2e-3, 5e-4),
    "instance": (nj.instance_norm, (3, 30, 20, 4), (1, 2), 2e-3, 5e-4),
    "group": (functools.partial(nj.group_norm, groups=1), (3, 30, 20, 4), (1, 2, 3), 2e-3, 5e-4),
}


@pytest.mark.parametrize(("mean", "std"), [(1e4, 1.0), (100.0, 0.01)])
@pytest.mark.parametrize(("make", "shape", "axes", "far", "far_back"), few(FAR, "layer", "batch"))
def test_a_mean_far_from_zero_costs_no_more_digits_than_it_must(
    make, shape, axes, far, far_back, mean, std
):
    """At most the bars of `benchmarks.hard_inputs`, against the numbers as they are in float64."""
    norm = make(impl="kernel")
    params, state = norm.init(shape)
    x = jnp.asarray(RNG.normal(size=shape) * std + mean, jnp.float32)
    dy = RNG.normal(size=shape)
    exact = np.asarray(x, np.float64)
    d = exact - exact.mean(axes, keepdims=True)
    inverse = 1 / np.sqrt((d * d).mean(axes, keepdims=True) + 1e-5)
    y = d * inverse
    back = dy - dy.mean(axes, keepdims=True) - y * (dy * y).mean(axes, keepdims=True)
    got, pull = jax.vjp(lambda x: norm.apply(params, state, x, stats="batch")[0], x)
    np.testing.assert_allclose(got, y, atol=far, rtol=0)
    slope = np.asarray(pull(jnp.asarray(dy, jnp.float32))[0]) / inverse
    np.testing.assert_allclose(slope, back, atol=far_back, rtol=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_second_pass_finds_what_the_first_rounded_away(axis):
    """At 1e6 a mean of float32 is off by hundredths: uncorrected, so is every value."""
    x = jnp.asarray(RNG.normal(size=(300, 500)) + 1e6, jnp.float32)
    exact = np.asarray(x, np.float64)
    mean, d = _block_moments.centred(x, axis, x.shape[axis])
    np.testing.assert_allclose(mean, exact.mean(axis, keepdims=True), rtol=4e-8)
    np.testing.assert_allclose(d, exact - exact.mean(axis, keepdims=True), atol=2e-6)


@MOST
def test_half_precision_has_statistics_in_float32(make, shape):
    params, state, x, _ = started(make(), shape, jnp.bfloat16)
    y, _ = make(impl="kernel").apply(params, state, x, stats="batch")
    assert y.dtype == jnp.bfloat16
    want, _ = make().apply(params, state, x.astype(jnp.float32), stats="batch")
    np.testing.assert_allclose(y.astype(jnp.float32), want, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("name", ["layer", "batch", "group", "instance", "rms"])
@pytest.mark.parametrize("why", ["mask", "float64"])
def test_what_no_kernel_serves_goes_the_plain_way(name, why, kernels_run):
    make, shape = NORMS[name]
    with jax.enable_x64(why == "float64"):
        params, state, x, _ = started(make(), shape, jnp.dtype("float32" if why == "mask" else why))
        mask = jnp.asarray(RNG.random(size=(*shape[:-1], 1)) < 0.7)
        if name in ("layer", "rms"):  # each of whose sets must have some values
            mask = jnp.asarray(RNG.random(size=shape) < 0.7)
        how = {"mask": mask} if why == "mask" else {}
        fast, plain = (
            make(**kind).apply(params, state, x, stats="batch", **how)
            for kind in ({"impl": "kernel"}, {})
        )
        properties.same(fast, plain, rtol=0, atol=0)
    assert not kernels_run


def test_running_statistics_are_the_twins(kernels_run):
    make, shape = NORMS["batch"]
    args = started(make(), shape)[:3]
    fast, plain = (make(**kind).apply(*args, stats="running") for kind in ({"impl": "kernel"}, {}))
    properties.same(fast, plain, rtol=1e-5, atol=1e-5)
    assert kernels_run == ["normjax.kernels._batch_norm.standardize"]


def test_a_padded_last_block_is_nobodys_value():
    """Rows of a block beyond the end may hold anything, NaN too."""
    x = jnp.asarray(RNG.normal(size=(1000, 640)) + 5, jnp.float32)
    block, columns = _batch_norm._block(*x.shape, "interpreter")
    assert x.shape[0] % block and x.shape[1] % columns
    mean, var = _batch_norm.moments(x, (0,))
    np.testing.assert_allclose(mean, np.asarray(x, np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(var, np.asarray(x, np.float64).var(0), rtol=1e-5)


def test_an_unknown_implementation_is_told():
    for factory in (nj.layer_norm, nj.rms_norm, nj.batch_norm, nj.group_norm, nj.instance_norm):
        with pytest.raises(ValueError, match="impl='pallas': write impl='xla'"):
            unchecked(factory)(impl="pallas")


def test_the_registry_is_whole():
    """It names every function with `impl`, once, and files that are there."""
    public = {"": nj, "recurrent.": recurrent}
    choosers = [
        f"{prefix}{name}"
        for prefix, module in public.items()
        for name in module.__all__
        if inspect.isfunction(value := getattr(module, name))
        and "impl" in inspect.signature(value).parameters
    ]
    operations = _registry.OPERATIONS.values()
    assert sorted(name for o in operations for name in o.norms) == sorted(choosers)
    for operation in operations:
        for file in (operation.module, *operation.kernels.values()):
            assert importlib.util.find_spec(f"normjax.kernels.{file}"), file


# ------------------------------------------------------------------------------------- the BN-LSTM


def lstm(**how):
    return recurrent.bn_lstm(6, max_steps=7, **how)


def taught(layer, batch=5, features=3, steps=7):
    params, state = layer.init(jax.random.key(0), features)
    params = jax.tree.map(lambda v: v + 0.1 * jnp.cos(jnp.arange(v.size)).reshape(v.shape), params)
    x = jnp.asarray(RNG.normal(size=(batch, steps, features)), jnp.float32)
    return params, state, x


def through(layer, params, state, x, **how):
    def loss(params, x):
        (y, carry), after = layer.apply(params, state, x, stats="batch", **how)
        moved = sum(jnp.sum(jnp.sin(s)) for s in jax.tree.leaves(after) if s.dtype == jnp.float32)
        return jnp.sum(jnp.sin(y)) + jnp.sum(carry.c * carry.h) + moved, (y, carry, after)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)


@pytest.mark.parametrize("learn_carry", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("steps", few({"7": 7, "1": 1, "9": 9}, "7"))
def test_the_recurrence_is_the_scans(steps, learn_carry, kernels_run):
    """Outputs, carry, state and gradients, of the statistics too; beyond `max_steps` as well."""
    how = {"learn_carry": learn_carry}
    args = taught(lstm(**how), steps=steps)
    plain = jax.jit(functools.partial(through, lstm(**how)))(*args)
    assert not kernels_run
    fast = jax.jit(functools.partial(through, lstm(impl="kernel", **how)))(*args)
    assert kernels_run == ["normjax.kernels._bn_lstm.run"]
    properties.same(fast, plain, rtol=2e-4, atol=2e-4)


def test_a_cpu_has_the_recurrences_twin(pallas_calls):
    args = taught(lstm(learn_carry=True))
    plain = jax.jit(functools.partial(through, lstm(learn_carry=True)))(*args)
    with _pallas.interpreted(False):
        fast = jax.jit(functools.partial(through, lstm(impl="kernel", learn_carry=True)))(*args)
    assert not pallas_calls
    properties.same(fast, plain, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_the_recurrence_goes_through_other_transformations(kernels_run):
    params, state, x = taught(lstm(), steps=3)

    def told(layer, params, x):
        def f(params, x):
            return layer.apply(params, state, x, stats="batch")[0][0]

        way = jax.tree.map(jnp.cos, (params, x))
        grad = jax.grad(lambda p, x: jnp.sum(jnp.sin(f(p, x))))
        return (
            jax.jvp(f, (params, x), way),
            jax.jvp(grad, (params, x), way)[1],
            jax.vmap(grad, (None, 0))(params, jnp.stack([x, 2 * x])),
            jax.grad(lambda p: jnp.sum(jax.checkpoint(f)(p, x)))(params),
        )

    plain, fast = (
        jax.jit(functools.partial(told, layer))(params, x)
        for layer in (lstm(), lstm(impl="kernel"))
    )
    properties.same(fast, plain, rtol=5e-4, atol=5e-4)
    assert kernels_run


def test_what_the_recurrence_does_not_serve_goes_the_plain_way(kernels_run):
    params, state, x = taught(lstm())
    ways = (
        {"stats": "running"},
        {"stats": "batch", "lengths": jnp.array([7, 3, 1, 0, 7])},
        {"stats": "batch", "hidden_perturbation": jnp.zeros((5, 7, 6))},
    )
    for how in ways:
        fast, plain = (lstm(**k).apply(params, state, x, **how) for k in ({"impl": "kernel"}, {}))
        properties.same(fast, plain, rtol=0, atol=0)
    assert not kernels_run
    found, _ = lstm(impl="kernel").apply_with_info(params, state, x, stats="batch")
    assert found.shape == (5, 7, 6) and not kernels_run


def test_population_statistics_come_from_the_kernel_too(kernels_run):
    params, state, x = taught(lstm())
    fast = nj.population_statistics(lstm(impl="kernel"), params, state, [x, x + 1])
    assert kernels_run
    properties.same(
        fast, nj.population_statistics(lstm(), params, state, [x, x + 1]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "how",
    [
        {"norm_sum": recurrent.shared(nj.batch_norm())},
        {"zoneout_h": 0.1},
        {"dropout_h": 0.1},
        {"norm_c": nj.layer_norm()},
        {"carry_normalized": True},
        {"norm_h": None},
        {"norm_h": recurrent.per_step(nj.batch_norm(), 7, share_params=False)},
    ],
    ids=lambda how: next(iter(how)),
)
def test_a_layer_that_no_kernel_ever_serves_is_told_at_once(how):
    term = recurrent.per_step(nj.batch_norm(), 7)
    norms = {"norm_x": term, "norm_h": term, "norm_c": term}
    with pytest.raises(ValueError, match=r"impl='kernel' serves .* write impl=\"xla\""):
        recurrent.lstm(6, **(norms | how), impl="kernel")
