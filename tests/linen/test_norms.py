"""Drop-in norms for Linen: what Flax has right is the same, what it has wrong is not."""

from __future__ import annotations

import inspect

import flax.errors
import flax.linen as fnn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import linen
from tests._support import reference
from tests._support.few import few

pytestmark = pytest.mark.standard_numerics

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 3, 5, 6)) * 2 + 0.5
INIT = {"scale_init": fnn.initializers.normal(1.0), "bias_init": fnn.initializers.normal(1.0)}
FULL = jax.random.bernoulli(jax.random.key(2), 0.7, X.shape).at[:, :, :2].set(True)
MASKS = {"none": None, "full": FULL, "rank_3": FULL[0], "integers": FULL.astype(jnp.int32)}
NAMES = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")
CASES = [
    ("BatchNorm", {"use_running_average": False, **INIT}),
    ("BatchNorm", {"use_running_average": False, "axis": (1, -1), "momentum": 0.5}),
    ("BatchNorm", {"use_running_average": False, "use_bias": False, "epsilon": 1e-2}),
    ("BatchNorm", {"use_running_average": True, **INIT}),
    ("LayerNorm", INIT),
    ("LayerNorm", {"reduction_axes": (1, 2, 3), "feature_axes": (-1, 1), **INIT}),
    ("LayerNorm", {"reduction_axes": -2, "use_scale": False}),
    ("RMSNorm", {"scale_init": INIT["scale_init"]}),
    ("RMSNorm", {"reduction_axes": (1, -1), "feature_axes": (1, 3), "epsilon": 1e-3}),
    ("GroupNorm", {"num_groups": 3, **INIT}),
    ("GroupNorm", {"num_groups": None, "group_size": 3, "use_bias": False}),
    ("GroupNorm", {"num_groups": 2, "reduction_axes": (2, 3), **INIT}),
    ("InstanceNorm", INIT),
    ("InstanceNorm", {"feature_axes": (1, 3), "use_scale": False}),
]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(CASES)]
DTYPES = {
    "plain": (jnp.float32, {}),
    "bf16": (jnp.bfloat16, {"dtype": jnp.bfloat16}),
    "f16_of_f32": (jnp.float32, {"dtype": jnp.float16, "param_dtype": jnp.float16}),
    "bf16_inferred": (jnp.bfloat16, {"param_dtype": jnp.bfloat16}),
    "not_forced": (jnp.float32, {"force_float32_reductions": False}),
}


def pair(name, **kwargs):
    """Our module, and Flax's with the variance that does not cancel."""
    return getattr(linen, name)(**kwargs), getattr(fnn, name)(use_fast_variance=False, **kwargs)


def close(got, want, dtype=jnp.float32, unit=1.0):
    """Equal up to rounding: 1e-5 in float32, two units in the last place in half precision."""
    assert got.dtype == want.dtype
    ulp = 2 * float(jnp.finfo(dtype).eps) if jnp.finfo(dtype).bits < 32 else 1e-5
    got, want = (np.asarray(v).astype(np.float64) / unit for v in (got, want))
    np.testing.assert_allclose(got, want, rtol=ulp, atol=ulp)


def shapes(tree):
    return jax.tree.map(lambda v: (v.shape, v.dtype), tree)


def initialize(make):
    """The initial variables for each dtype."""
    return {
        case: make(**extra).init(KEY, X.astype(dtype)) for case, (dtype, extra) in DTYPES.items()
    }


def with_masks(make, variables, x, weight, masks):
    """Gradients, outputs and new statistics with each mask."""
    module = make()

    def loss(params, x, mask):
        y, new = module.apply(
            {**variables, "params": params}, x, mask=mask, mutable=["batch_stats"]
        )
        return jnp.sum(y * weight), (y, new)

    gradient = jax.grad(loss, (0, 1), has_aux=True)
    params = variables.get("params", {})
    return {case: gradient(params, x, mask) for case, mask in masks.items()}


def with_dtypes(make, variables, x):
    """Outputs and new statistics for each dtype."""
    return {
        case: make(**extra).apply(variables[case], x.astype(dtype), mutable=["batch_stats"])
        for case, (dtype, extra) in DTYPES.items()
    }


@pytest.mark.parametrize(
    ("name", "kwargs"),
    few(dict(zip(IDS, CASES, strict=True)), "BatchNorm-0", "LayerNorm-5", "GroupNorm-10"),
)
def test_agrees_with_flax(name, kwargs):
    """With every mask and dtype, op by op: all cases share XLA's small programs."""
    makes = [lambda i=i, **extra: pair(name, **kwargs, **extra)[i] for i in (0, 1)]
    masks = MASKS
    if name == "GroupNorm":
        masks = {**MASKS, "rank_3": FULL}  # Flax reshapes the mask as it is.

    got, variables = map(initialize, makes)
    assert shapes(got) == shapes(variables)
    jax.tree.map(np.testing.assert_array_equal, got, variables)  # the same keys, too

    weight = jax.random.normal(jax.random.key(9), X.shape)
    got, want = (with_masks(make, variables["plain"], X, weight, masks) for make in makes)
    for case in masks:
        (grads, aux), (want_grads, want_aux) = got[case], want[case]
        jax.tree.map(close, aux, want_aux)
        scale = max(1.0, float(np.abs(want_grads[1]).max()))
        jax.tree.map(lambda g, w, s=scale: close(g, w, unit=s), grads, want_grads)

    got, want = (with_dtypes(make, variables, X) for make in makes)
    for case in DTYPES:
        (y, new), (want_y, want_new) = got[case], want[case]
        close(y, want_y, y.dtype)
        jax.tree.map(close, new, want_new)


@pytest.mark.parametrize("name", [*NAMES, "WeightNorm", "SpectralNorm"])
def test_constructor_and_call_have_flax_parameters(name):
    for method in ("__init__", "__call__"):
        ours = inspect.signature(getattr(getattr(linen, name), method)).parameters
        flax = inspect.signature(getattr(getattr(fnn, name), method)).parameters
        kept = [p for p in ours if p in flax]
        assert kept == list(flax)
        for p in flax:
            assert ours[p].kind == flax[p].kind
            default = flax[p].default
            assert ours[p].default == default or repr(ours[p].default) == repr(default)
    assert issubclass(getattr(linen, name), getattr(fnn, name))


def test_integer_and_complex_and_numpy_inputs():
    for x in (np.arange(12).reshape(4, 3), np.asarray(X[0, 0], np.float64)):
        ours, flax = pair("LayerNorm")
        variables = flax.init(KEY, x)
        close(ours.apply(variables, x), flax.apply(variables, x))
    x = jax.random.normal(KEY, (8, 3), jnp.complex64)
    ours, flax = pair("BatchNorm", use_running_average=False, dtype=jnp.complex64)
    variables = flax.init(KEY, x)
    (y, new), (want, want_new) = (
        m.apply(variables, x, mutable=["batch_stats"]) for m in (ours, flax)
    )
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    assert shapes(new) == shapes(want_new)
    np.testing.assert_allclose(new["batch_stats"]["mean"], want_new["batch_stats"]["mean"], 1e-5)


def test_float64(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (16, 4)))
    ours, flax = pair("BatchNorm", use_running_average=False)
    variables = flax.init(KEY, x)
    (y, new), (want, want_new) = (
        m.apply(variables, x, mutable=["batch_stats"]) for m in (ours, flax)
    )
    assert shapes(new) == shapes(want_new)
    assert y.dtype == want.dtype == jnp.float64
    np.testing.assert_allclose(y, reference.batch_norm(x, eps=1e-5), rtol=1e-12, atol=1e-12)


BAD = [
    ("BatchNorm", {}, ValueError),
    ("BatchNorm", {"use_running_average": True, "axis": 5}, IndexError),
    ("LayerNorm", {"reduction_axes": 5}, IndexError),
    ("LayerNorm", {"dtype": jnp.int32}, ValueError),
    ("GroupNorm", {"num_groups": 4}, ValueError),
    ("GroupNorm", {"num_groups": 0}, ValueError),
    ("GroupNorm", {"num_groups": None}, ValueError),
    ("GroupNorm", {"num_groups": 3, "group_size": 2}, ValueError),
    ("GroupNorm", {"num_groups": None, "group_size": 4}, ValueError),
    ("GroupNorm", {"num_groups": 3, "reduction_axes": (1, 2)}, ValueError),
    ("InstanceNorm", {"feature_axes": (0, 3)}, ValueError),
]


@pytest.mark.parametrize(("name", "kwargs", "error"), BAD)
def test_errors_have_flax_types(name, kwargs, error):
    for module in pair(name, **kwargs):
        with pytest.raises(error):
            module.init(KEY, X)


def test_statistics_need_mutable_as_in_flax():
    for module in pair("BatchNorm", use_running_average=False):
        variables = module.init(KEY, X)
        with pytest.raises(flax.errors.ModifyScopeVariableError):
            module.apply(variables, X)


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_load_both_ways(name):
    extra = {"num_groups": 2} if name == "GroupNorm" else {}
    extra |= {"use_running_average": True} if name == "BatchNorm" else {}
    ours, flax = pair(name, **extra)
    for source, target in ((ours, flax), (flax, ours)):
        values = jax.tree.map(lambda v: v + 0.25, source.init(KEY, X))
        loaded = flax_bytes(values, target.init(jax.random.key(5), X))
        close(target.apply(loaded, X), source.apply(values, X))


def flax_bytes(values, template):
    return flax.serialization.from_bytes(template, flax.serialization.to_bytes(values))


def two_shards(seed=0):
    """Two devices with 4 and 1 valid rows of 4."""
    x = np.random.default_rng(seed).normal(2, 3, (2, 4, 3)).astype(np.float32)
    mask = np.array([[True] * 4, [True, False, False, False]])[..., None]
    return x, mask


@pytest.mark.parametrize("spread", [jax.vmap, jax.pmap])
def test_masked_statistics_over_uneven_devices_are_exact(spread):
    x, mask = two_shards()
    x = np.where(mask, x, np.nan)
    module = linen.BatchNorm(use_running_average=False, momentum=0.0, axis_name="d")
    variables = module.init(KEY, x[0])

    def step(x, mask):
        return module.apply(variables, x, mask=mask, mutable=["batch_stats"])

    y, new = spread(step, axis_name="d")(x, mask)
    flat, flags = x.reshape(8, 3), mask.reshape(8, 1)
    mean, var, _ = reference.moments(np.where(flags, flat, 0), 0, flags)
    for device in range(2):
        np.testing.assert_allclose(new["batch_stats"]["mean"][device], mean, rtol=1e-5)
        np.testing.assert_allclose(new["batch_stats"]["var"][device], var, rtol=1e-5)
    want = (flat - mean) / np.sqrt(var + 1e-5)
    keep = np.broadcast_to(flags, flat.shape)
    np.testing.assert_allclose(np.asarray(y).reshape(8, 3)[keep], want[keep], rtol=1e-4, atol=1e-5)


def test_layer_norm_over_devices_that_share_features():
    x, _ = two_shards()
    keep = np.array([[True, True, True], [True, False, False]])[:, None, :]
    module = linen.LayerNorm(axis_name="d", use_bias=False, use_scale=False)
    rms = linen.RMSNorm(axis_name="d", use_scale=False)
    y, z = (
        jax.vmap(lambda x, k, m=m: m.apply({}, x, mask=k), axis_name="d")(x, keep)
        for m in (module, rms)
    )
    rows, flags = np.moveaxis(x, 0, 1).reshape(4, 6), np.moveaxis(keep, 0, 1).reshape(1, 6)
    mean, var, n = reference.moments(rows, 1, flags)
    want = (rows - mean[:, None]) / np.sqrt(var[:, None] + 1e-6)
    flags = np.broadcast_to(flags, rows.shape)
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(y), 0, 1).reshape(4, 6)[flags], want[flags], rtol=1e-4, atol=1e-5
    )
    square = np.where(flags, rows.astype(np.float64) ** 2, 0).sum(1) / n
    want = rows / np.sqrt(square[:, None] + 1e-6)
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(z), 0, 1).reshape(4, 6)[flags], want[flags], rtol=1e-4, atol=1e-5
    )


def test_device_groups_are_pooled_apart():
    x = np.random.default_rng(3).normal(1, 2, (4, 5, 3)).astype(np.float32)
    for name in ("BatchNorm", "LayerNorm", "RMSNorm"):
        extra = {"use_running_average": False} if name == "BatchNorm" else {}
        extra |= {"axis_name": "d", "axis_index_groups": [[0, 1], [2, 3]]}
        ours, flax = pair(name, **extra)
        variables = ours.init(KEY, x[0])  # the device axis need not exist yet
        got, want = (
            jax.pmap(lambda x, m=m, v=variables: m.apply(v, x, mutable=["batch_stats"])[0], "d")(x)
            for m in (ours, flax)
        )
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_fully_masked_slice_is_finite_in_value_and_gradient(name):
    extra = {"num_groups": 2} if name == "GroupNorm" else {}
    extra |= {"use_running_average": False} if name == "BatchNorm" else {}
    module = getattr(linen, name)(**extra)
    mask = jnp.zeros((4, 1, 1, 1), bool).at[0].set(name != "BatchNorm")
    x = jnp.where(mask, X, jnp.nan)
    variables = module.init(KEY, X)

    def loss(params, x):
        y, _ = module.apply({**variables, "params": params}, x, mask=mask, mutable=["batch_stats"])
        return jnp.sum(y * jnp.where(mask, y, 1)), y

    grads, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((grads, y)))


def test_a_batch_without_values_leaves_the_statistics():
    module = linen.BatchNorm(use_running_average=False)
    variables = module.init(KEY, X)
    start = jax.tree.map(lambda v: v + 0.5, variables["batch_stats"])
    for mask, x in (
        (jnp.zeros_like(FULL), X),
        (None, X.at[0, 0, 0].set(jnp.nan)),
    ):
        _, new = module.apply(
            {**variables, "batch_stats": start}, x, mask=mask, mutable=["batch_stats"]
        )
        jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], start)


def test_masks_that_only_broadcast():
    mask = jnp.array([[True, True, False], [True, False, False]])[:, :, None, None]
    x = X[:2]
    for name, extra in (
        ("GroupNorm", {"num_groups": 3}),
        ("LayerNorm", {"reduction_axes": (1, 2, 3)}),
    ):
        module = getattr(linen, name)(**extra)
        variables = module.init(KEY, x)
        small = module.apply(variables, x, mask=mask)
        full = module.apply(variables, x, mask=jnp.broadcast_to(mask, x.shape))
        np.testing.assert_allclose(small, full, rtol=1e-6, atol=1e-6)
    split = np.asarray(x, np.float64).reshape(2, 3, 5, 3, 2)
    keep = np.broadcast_to(np.asarray(mask)[..., None], split.shape)
    mean, var, _ = (v[:, None, None, :, None] for v in reference.moments(split, (1, 2, 4), keep))
    y = linen.GroupNorm(3, use_scale=False, use_bias=False).apply({}, x, mask=mask)
    want = (split - mean) / np.sqrt(var + 1e-6)
    np.testing.assert_allclose(y.reshape(split.shape), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm"])
def test_a_large_mean_costs_no_digits(name):
    x = 1e4 + jax.random.normal(KEY, (8, 16, 16, 4))
    extra = {"num_groups": 2} if name == "GroupNorm" else {}
    extra |= {"use_running_average": False} if name == "BatchNorm" else {}
    extra |= {"reduction_axes": (1, 2, 3)} if name == "LayerNorm" else {}
    module = getattr(linen, name)(use_fast_variance=True, **extra)
    y, _ = module.init_with_output(KEY, x)
    np.testing.assert_allclose(np.asarray(y, np.float64).std(), 1, atol=1e-3)


def test_evaluation_in_bfloat16_keeps_the_statistics():
    module = linen.BatchNorm(use_running_average=True, dtype=jnp.bfloat16)
    x = jnp.full((1, 2), 100.5, jnp.bfloat16)
    variables = module.init(KEY, x)
    stats = {"mean": jnp.full(2, 100.4), "var": jnp.full(2, 0.01)}
    y = module.apply({**variables, "batch_stats": stats}, x)
    np.testing.assert_allclose(y.astype(np.float32), 1, atol=0.01)


def test_unbiased_variance_is_stored_on_request():
    x = jnp.array([[0.0], [2.0]])
    module = linen.BatchNorm(use_running_average=False, momentum=0.0, correction=1)
    (y, new), biased = (
        m.apply(m.init(KEY, x), x, mutable=["batch_stats"])
        for m in (module, module.clone(correction=0))
    )
    np.testing.assert_allclose(new["batch_stats"]["var"], [2.0])
    np.testing.assert_allclose(biased[1]["batch_stats"]["var"], [1.0])
    np.testing.assert_array_equal(y, biased[0])


def test_strict_promotion():
    x = X.astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for name in NAMES:
            extra = {"num_groups": 2} if name == "GroupNorm" else {}
            extra |= {"use_running_average": False} if name == "BatchNorm" else {}
            y, _ = getattr(linen, name)(**extra).init_with_output(KEY, x, mask=FULL)
            assert y.dtype == jnp.float32  # Flax's rule: the parameters are float32


def test_masked_outputs_are_normalized_as_in_flax():
    mask = jnp.array([True, False, True, True])[:, None, None, None]
    ours, flax = pair("BatchNorm", use_running_average=False)
    variables = flax.init(KEY, X)
    got, want = (m.apply(variables, X, mask=mask, mutable=["batch_stats"])[0] for m in (ours, flax))
    close(got, want)


def test_equal_modules_share_one_trace():
    traces = []

    @jax.jit
    def run(x):
        traces.append(1)
        return linen.LayerNorm(use_scale=False, use_bias=False).apply({}, x)

    run(X), run(X)
    assert len(traces) == 1
    assert linen.BatchNorm(axis=(1, -1)) == linen.BatchNorm(axis=(1, -1))
    assert hash(linen.BatchNorm(correction=1)) == hash(linen.BatchNorm(correction=1))
