"""Drop-in norms for NNX: the same numbers as for Linen, and nothing of Flax's lost."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as fnn

from normjax import linen, nnx
from tests._support import reference
from tests._support.few import few
from tests.linen.test_norms import FULL, INIT, NAMES, X, close, two_shards

pytestmark = pytest.mark.standard_numerics

MASKS = {"none": None, "full": FULL}
CASES = [
    ("BatchNorm", {"use_running_average": False, **INIT}),
    ("BatchNorm", {"use_running_average": False, "axis": 3, "momentum": 0.5, "use_bias": False}),
    ("BatchNorm", {"use_running_average": True, "epsilon": 1e-2}),
    ("LayerNorm", INIT),
    ("LayerNorm", {"reduction_axes": (1, 2, 3), "use_scale": False}),
    ("RMSNorm", {"scale_init": INIT["scale_init"]}),
    ("RMSNorm", {"reduction_axes": (1, -1), "use_scale": False}),
    ("GroupNorm", {"num_groups": 3, **INIT}),
    ("GroupNorm", {"num_groups": None, "group_size": 3, "use_bias": False}),
    ("InstanceNorm", INIT),
]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(CASES)]
DTYPES = {
    "plain": (jnp.float32, {}),
    "bf16": (jnp.bfloat16, {"dtype": jnp.bfloat16}),
    "f16_of_f32": (jnp.float32, {"dtype": jnp.float16, "param_dtype": jnp.float16}),
    "bf16_inferred": (jnp.bfloat16, {"param_dtype": jnp.bfloat16}),
}


def pair(name, **kwargs):
    return (
        getattr(nnx, name)(6, rngs=fnn.Rngs(0), **kwargs),
        getattr(fnn, name)(6, rngs=fnn.Rngs(0), use_fast_variance=False, **kwargs),
    )


def values(module, kind=fnn.Variable):
    return fnn.to_pure_dict(fnn.state(module, kind))


def shapes(tree):
    return jax.tree.map(lambda v: (v.shape, v.dtype), tree)


def call(module, x, mask):
    return module(x) if mask is None else module(x, mask=mask)


def with_masks(make, x, weight, masks):
    """Initial values, gradients, output and new statistics with each mask."""

    def run(mask):
        def loss(module, x):
            y = call(module, x, mask)
            return jnp.sum(y * weight), y

        module = make()
        initial = values(module)
        (grads, grad_x), y = fnn.grad(loss, argnums=(0, 1), has_aux=True)(module, x)
        return initial, (fnn.to_pure_dict(grads), grad_x), y, values(module, fnn.BatchStat)

    return {case: run(mask) for case, mask in masks.items()}


def with_dtypes(make, x):
    """Initial values, output and new values for each dtype."""

    def run(dtype, extra):
        module = make(**extra)
        initial = values(module)
        return initial, module(x.astype(dtype)), values(module)

    return {case: run(*settings) for case, settings in DTYPES.items()}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    few(dict(zip(IDS, CASES, strict=True)), "BatchNorm-0", "GroupNorm-7"),
)
def test_agrees_with_flax(name, kwargs):
    """With every mask and dtype, op by op: all cases share XLA's small programs."""
    makes = [lambda i=i, **extra: pair(name, **kwargs, **extra)[i] for i in (0, 1)]
    weight = jax.random.normal(jax.random.key(9), X.shape)
    got, want = (with_masks(make, X, weight, MASKS) for make in makes)
    for case in MASKS:
        initial, grads, y, stats = got[case]
        want_initial, want_grads, want_y, want_stats = want[case]
        assert jax.tree.structure(initial) == jax.tree.structure(want_initial)
        jax.tree.map(np.testing.assert_array_equal, initial, want_initial)
        close(y, want_y)
        jax.tree.map(close, stats, want_stats)
        scale = max(1.0, float(np.abs(want_grads[1]).max()))
        jax.tree.map(lambda g, w, s=scale: close(g, w, unit=s), grads, want_grads)

    got, want = (with_dtypes(make, X) for make in makes)
    for case in DTYPES:
        initial, y, moved = got[case]
        want_initial, want_y, want_moved = want[case]
        assert shapes(initial) == shapes(want_initial)
        close(y, want_y, y.dtype)
        assert shapes(moved) == shapes(want_moved)


@pytest.mark.parametrize("name", NAMES)
def test_same_numbers_as_linen(name):
    """To the bit, also of slices that are all masked, of a large mean, of unbiased variances."""
    extra = {"num_groups": 2} if name == "GroupNorm" else {}
    extra |= {"use_running_average": False} if name == "BatchNorm" else {}
    gone = jnp.zeros((4, 1, 1, 1), bool).at[0].set(name != "BatchNorm")
    cases = [(X, mask, {"dtype": d}) for mask in (None, FULL) for d in (jnp.float32, jnp.float16)]
    cases += [(jnp.where(gone, X, jnp.nan), gone, {}), (1e4 + X, None, {})]
    cases += [(X, None, {"correction": 1})] if name == "BatchNorm" else []

    def of_nnx():
        for x, mask, settings in cases:
            own = {"promote_dtype": lambda x, **_: x} if "dtype" in settings else {}
            layer = getattr(nnx, name)(6, rngs=fnn.Rngs(0), **settings, **own, **extra)
            yield call(layer, x, mask), values(layer, fnn.BatchStat)

    def of_linen():
        for x, mask, settings in cases:
            module = getattr(linen, name)(**settings, **extra)
            variables = module.init(jax.random.key(0), x)
            y, new = module.apply(variables, x, mask=mask, mutable=["batch_stats"])
            yield y, new.get("batch_stats", {})

    got, want = list(of_nnx()), list(of_linen())
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", [*NAMES, "WeightNorm", "SpectralNorm"])
def test_constructor_and_call_have_flax_parameters(name):
    for method in ("__init__", "__call__"):
        ours = inspect.signature(getattr(getattr(nnx, name), method)).parameters
        flax = inspect.signature(getattr(getattr(fnn, name), method)).parameters
        assert [p for p in ours if p in flax] == list(flax)
        for p in flax:
            assert ours[p].kind == flax[p].kind
            default = flax[p].default
            same = ours[p].default == default or getattr(
                ours[p].default, "__qualname__", 0
            ) == getattr(default, "__qualname__", 1)
            assert same, p
    assert issubclass(getattr(nnx, name), getattr(fnn, name))


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_load_both_ways(name):
    extra = {"num_groups": 2} if name == "GroupNorm" else {}
    extra |= {"use_running_average": True} if name == "BatchNorm" else {}
    for a, b in (pair(name, **extra), pair(name, **extra)[::-1]):
        fnn.update(a, jax.tree.map(lambda v: v + 0.25, fnn.state(a)))
        state = fnn.state(b)
        fnn.replace_by_pure_dict(state, values(a))
        fnn.update(b, state)
        close(b(X), a(X))


def test_errors_have_flax_types():
    for module in (nnx, fnn):
        with pytest.raises(ValueError, match="does not divide"):
            module.GroupNorm(6, num_groups=4, rngs=fnn.Rngs(0))
        with pytest.raises(ValueError, match="num_groups"):
            module.GroupNorm(6, num_groups=None, rngs=fnn.Rngs(0))
        with pytest.raises(ValueError, match="use_running_average"):
            module.BatchNorm(6, use_running_average=None, rngs=fnn.Rngs(0))(X)
        with pytest.raises(ValueError, match="leading dimension"):
            module.InstanceNorm(4, feature_axes=0, rngs=fnn.Rngs(0))(X)
    with pytest.raises(ValueError, match="correction"):
        nnx.BatchNorm(1, correction=2, rngs=fnn.Rngs(0))
    with pytest.raises(ValueError, match="last axis"):
        nnx.GroupNorm(6, num_groups=3, reduction_axes=(1, 2), rngs=fnn.Rngs(0))(X)


def test_metadata_and_modes_and_views():
    layer = nnx.BatchNorm(6, rngs=fnn.Rngs(0), scale_metadata={"tag": "here"})
    assert layer.scale.get_metadata("tag") == "here"
    layer.eval()
    before = values(layer)
    layer(X)
    jax.tree.map(np.testing.assert_array_equal, values(layer), before)
    layer.train()
    layer(X)
    assert not np.array_equal(values(layer)["mean"], before["mean"])
    view = fnn.view(layer, use_running_average=True)
    moved = values(layer)
    view(X)
    jax.tree.map(np.testing.assert_array_equal, values(layer), moved)


MAKE = {
    "BatchNorm": lambda: nnx.BatchNorm(6, rngs=fnn.Rngs(0), axis_index_groups=[[0, 1]]),
    "LayerNorm": lambda: nnx.LayerNorm(6, rngs=fnn.Rngs(0), reduction_axes=[1, 2, 3]),
    "RMSNorm": lambda: nnx.RMSNorm(6, rngs=fnn.Rngs(0), feature_axes=[-1]),
    "GroupNorm": lambda: nnx.GroupNorm(6, 2, rngs=fnn.Rngs(0), reduction_axes=[2, 3]),
    "InstanceNorm": lambda: nnx.InstanceNorm(6, rngs=fnn.Rngs(0), feature_axes=[3]),
}


@pytest.mark.parametrize("name", few([*MAKE], "BatchNorm", "GroupNorm"))
def test_equal_modules_share_one_trace_and_all_transforms_work(name):
    traces = []

    @fnn.jit
    def run(module, x):
        traces.append(1)
        return module(x)

    first, second = MAKE[name](), MAKE[name]()
    assert fnn.graphdef(first) == fnn.graphdef(second)
    assert hash(fnn.graphdef(first)) == hash(fnn.graphdef(second))
    y = run(first, X)
    np.testing.assert_array_equal(run(second, X), y)
    assert len(traces) == 1
    graph, state = fnn.split(MAKE[name]())
    np.testing.assert_allclose(fnn.merge(graph, state)(X), y, rtol=1e-6, atol=1e-6)

    @fnn.vmap(in_axes=(fnn.StateAxes({...: 0}), 0))
    def many(module, x):
        return module(x)

    @fnn.vmap(in_axes=0, out_axes=fnn.StateAxes({...: 0}))
    def make(_):
        return MAKE[name]()

    np.testing.assert_allclose(
        many(make(jnp.arange(2)), jnp.stack([X, X]))[1], y, rtol=1e-5, atol=1e-6
    )


def test_two_leading_batch_axes_in_group_norm():
    layer = nnx.GroupNorm(6, num_groups=3, reduction_axes=(2, 3), rngs=fnn.Rngs(0))
    split = np.asarray(X, np.float64).reshape(4, 3, 5, 3, 2)
    mean, var = split.mean((2, 4), keepdims=True), split.var((2, 4), keepdims=True)
    want = ((split - mean) / np.sqrt(var + 1e-6)).reshape(X.shape)
    np.testing.assert_allclose(layer(X), want, rtol=1e-4, atol=1e-5)


def test_evaluation_in_bfloat16_keeps_the_statistics():
    layer = nnx.BatchNorm(2, use_running_average=True, dtype=jnp.bfloat16, rngs=fnn.Rngs(0))
    layer.mean[...], layer.var[...] = jnp.full(2, 100.4), jnp.full(2, 0.01)
    y = layer(jnp.full((1, 2), 100.5, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), 1, atol=0.01)


def test_masked_statistics_over_uneven_devices_are_exact():
    x, mask = two_shards()
    x = np.where(mask, x, np.nan)

    def step(x, mask):
        layer = nnx.BatchNorm(3, momentum=0.0, axis_name="d", rngs=fnn.Rngs(0))
        layer(x, mask=mask)
        return layer.mean[...], layer.var[...]

    got = jax.vmap(step, axis_name="d")(x, mask)
    flat, flags = np.where(mask, x, 0).reshape(8, 3), mask.reshape(8, 1)
    for found, want in zip(got, reference.moments(flat, 0, flags)[:2], strict=True):
        np.testing.assert_allclose(found, np.stack([want, want]), rtol=1e-5)


def test_strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for name in NAMES:
            extra = {"num_groups": 2} if name == "GroupNorm" else {}
            layer = getattr(nnx, name)(6, rngs=fnn.Rngs(0), **extra)
            assert layer(X.astype(jnp.bfloat16), mask=FULL).dtype == jnp.float32
