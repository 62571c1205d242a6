"""Weight norms for Linen and NNX: what Flax computes, without writing into parameters."""

from __future__ import annotations

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx as fnn

from normjax import linen, nnx
from tests._support.few import few
from tests.linen.test_norms import flax_bytes, shapes

pytestmark = pytest.mark.standard_numerics

X = jax.random.normal(jax.random.key(0), (5, 4))
KEY = jax.random.key(1)


def dense(seed=0, **kwargs):
    return fnn.Linear(4, 3, rngs=fnn.Rngs(seed), **kwargs)


def kernel_of(layer):
    return np.asarray(layer.layer_instance.kernel[...])


WEIGHT = [
    {},
    {"feature_axes": 0},
    {"feature_axes": (0, 1)},
    {"feature_axes": None},
    {"variable_filter": None},
    {"variable_filter": {"bias"}, "use_scale": False},
    {"scale_init": flax.linen.initializers.normal(1.0), "epsilon": 1e-3},
    {"dtype": jnp.float16, "param_dtype": jnp.float16},
]


def inner():
    return flax.linen.Dense(3, bias_init=flax.linen.initializers.normal(1.0))


@pytest.mark.parametrize(
    "kwargs", few({str(i): how for i, how in enumerate(WEIGHT)}, "0", "1", "7")
)
def test_linen_weight_norm_agrees_with_flax(kwargs):
    ours, flax_ = linen.WeightNorm(inner(), **kwargs), flax.linen.WeightNorm(inner(), **kwargs)
    variables = flax_.init(KEY, X)
    made = ours.init(KEY, X)
    assert shapes(made) == shapes(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), made, variables)
    variables = jax.tree.map(lambda v: v + 0.5, variables)
    loaded = flax_bytes(variables, made)
    got, want = ours.apply(loaded, X), flax_.apply(variables, X)
    assert got.dtype == want.dtype
    # Two units in the last place of the kernel, which may be rounded to half precision.
    ulp = 2e-3 if kwargs.get("dtype") == jnp.float16 else 1e-5
    np.testing.assert_allclose(got, want, rtol=ulp, atol=ulp)
    grads, want = (
        jax.grad(lambda v, m=m: jnp.sum(m.apply(v, X)))(variables) for m in (ours, flax_)
    )
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=2 * ulp, atol=2 * ulp), grads, want
    )


@pytest.mark.parametrize("steps", few({"0": 0, "1": 1, "4": 4}, "1"))
@pytest.mark.parametrize("update", [True, False])
def test_linen_spectral_norm_agrees_with_flax(steps, update):
    def make(module):
        return module(flax.linen.DenseGeneral((3, 2)), n_steps=steps)

    ours, flax_ = make(linen.SpectralNorm), make(flax.linen.SpectralNorm)
    variables = flax_.init(KEY, X, update_stats=False)
    made = ours.init(KEY, X, update_stats=False)
    assert shapes(made) == shapes(variables)
    # The kernel is divided by sigma, which not every CPU rounds alike in the two programs.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), made, variables)
    got, want = (
        m.apply(flax_bytes(variables, made), X, update_stats=update, mutable=["batch_stats"])
        for m in (ours, flax_)
    )
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6), got, want)
    grads = [
        jax.grad(lambda v, m=m: jnp.sum(m.apply(v, X, update_stats=False) ** 2))(variables)
        for m in (ours, flax_)
    ]
    # Where u is a variable its gradient is Flax's too.
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), *grads)


def test_sigma_is_the_largest_singular_value():
    kernel = np.asarray(jax.random.normal(KEY, (4, 3)))
    layer = nnx.SpectralNorm(dense(), n_steps=50, rngs=fnn.Rngs(1))
    layer.layer_instance.kernel[...] = jnp.asarray(kernel)
    sigma = np.linalg.svd(kernel.astype(np.float64))[1][0]
    want = X @ (kernel / sigma) + np.asarray(layer.layer_instance.bias[...])
    np.testing.assert_allclose(layer(X), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.batch_stats[("kernel", "sigma")][...], sigma, rtol=1e-6)


def test_start_norm_leaves_the_function_as_it_is():
    module = linen.WeightNorm(inner(), start="norm")
    plain = inner().init(KEY, X)["params"]
    variables = module.init(KEY, X)
    stored = variables["params"]
    kernel = stored["layer_instance"]["kernel"] * 1.0
    length = np.linalg.norm(np.asarray(kernel, np.float64), axis=0)
    scale = stored["layer_instance/kernel/scale"]
    want = X @ (kernel / length * scale) + stored["layer_instance"]["bias"]
    np.testing.assert_allclose(module.apply(variables, X), want, rtol=1e-5, atol=1e-6)
    assert shapes(variables) == shapes(flax.linen.WeightNorm(inner()).init(KEY, X))
    assert shapes(plain) == shapes(stored["layer_instance"])
    y, made = module.init_with_output(KEY, X)
    bare = inner().apply({"params": made["params"]["layer_instance"]}, X)
    np.testing.assert_allclose(y, bare, rtol=1e-5, atol=1e-6)
    layer = dense()
    before = layer(X)
    wrapped = nnx.WeightNorm(layer, start="norm", rngs=fnn.Rngs(2))
    np.testing.assert_allclose(wrapped(X), before, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="start"):
        nnx.WeightNorm(layer, start="nrom", rngs=fnn.Rngs(2))


@pytest.mark.parametrize("kwargs", [{}, {"feature_axes": 0}, {"feature_axes": None}])
def test_nnx_weight_norm_agrees_with_flax(kwargs):
    ours = nnx.WeightNorm(dense(), rngs=fnn.Rngs(1), **kwargs)
    flax_ = fnn.WeightNorm(dense(), rngs=fnn.Rngs(1), **kwargs)
    a, b = (fnn.to_pure_dict(fnn.state(m)) for m in (ours, flax_))
    assert shapes(a) == shapes(b)
    np.testing.assert_allclose(ours(X), flax_(X), rtol=1e-5, atol=1e-6)
    # What Flax stored loads: names, shapes and, when it is an array, kinds.
    state = fnn.state(ours)
    fnn.replace_by_pure_dict(state, jax.tree.map(lambda v: v * 2, b))
    fnn.update(ours, state)
    kernel = np.asarray(b["layer_instance"]["kernel"], np.float64) * 2
    axes = {(): 0, (0,): 1}.get(tuple(np.atleast_1d(kwargs.get("feature_axes", ()))), 0)
    axes = None if kwargs.get("feature_axes", -1) is None else axes
    want = X @ (2 * kernel / np.sqrt((kernel**2).sum(axes, keepdims=True)))
    np.testing.assert_allclose(ours(X), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_nnx_forward_writes_into_no_parameter(name):
    layer = getattr(nnx, name)(dense(), rngs=fnn.Rngs(1))
    before = jax.tree.map(np.asarray, fnn.to_pure_dict(fnn.state(layer, fnn.Param)))
    run = fnn.jit(lambda m, x: m(x))
    first = layer(X)
    if name == "WeightNorm":
        np.testing.assert_allclose(run(layer, X), first, rtol=1e-6, atol=1e-6)
    run(layer, X)
    layer.eval()
    still = layer(X)
    np.testing.assert_array_equal(layer(X), still)
    after = fnn.to_pure_dict(fnn.state(layer, fnn.Param))
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_nnx_spectral_norm_moves_u_in_training_alone():
    layer = nnx.SpectralNorm(dense(), rngs=fnn.Rngs(1))
    u = np.asarray(layer.batch_stats[("kernel", "u")][...])
    layer.eval()
    layer(X)
    np.testing.assert_array_equal(layer.batch_stats[("kernel", "u")][...], u)
    layer.train()
    layer(X)
    moved = np.asarray(layer.batch_stats[("kernel", "u")][...])
    assert np.abs(moved - u).max() > 1e-3
    layer(X, update_stats=False)
    np.testing.assert_array_equal(layer.batch_stats[("kernel", "u")][...], moved)
    # A weight that broke does not take u with it.
    layer.layer_instance.kernel[...] = jnp.full((4, 3), jnp.nan)
    layer(X)
    np.testing.assert_array_equal(layer.batch_stats[("kernel", "u")][...], moved)
    # In evaluation a closed-over module is only read.
    layer.layer_instance.kernel[...] = jnp.ones((4, 3))
    layer.eval()
    assert np.isfinite(jax.grad(lambda x: layer(x).sum())(X)).all()


def test_nnx_training_moves_g_and_v_as_a_plain_parameter_tree_would():
    layer = nnx.WeightNorm(dense(), rngs=fnn.Rngs(1))
    assert ("scales", ("kernel",)) in dict(fnn.to_flat_state(fnn.state(layer, fnn.Param)))
    optimizer = fnn.Optimizer(layer, optax.sgd(0.1), wrt=fnn.Param)
    v, g, bias = kernel_of(layer), np.ones(3), np.asarray(layer.layer_instance.bias[...])

    def loss(layer):
        return jnp.mean(layer(X) ** 2)

    def plain(v, g, bias):
        return jnp.mean((X @ (g * v / jnp.linalg.norm(v, axis=0)) + bias) ** 2)

    for _ in range(3):
        optimizer.update(layer, fnn.jit(fnn.grad(loss))(layer))
        dv, dg, db = jax.grad(plain, (0, 1, 2))(*map(jnp.asarray, (v, g, bias)))
        v, g, bias = v - 0.1 * dv, g - 0.1 * dg, bias - 0.1 * db
    np.testing.assert_allclose(kernel_of(layer), v, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layer.scales[("kernel",)][...], g, rtol=1e-4)
    assert np.abs(g - 1).max() > 1e-3


def test_nnx_equal_modules_share_one_trace():
    for make in (
        lambda: nnx.WeightNorm(dense(), scale_init=fnn.initializers.normal(), rngs=fnn.Rngs(0)),
        lambda: nnx.SpectralNorm(dense(), rngs=fnn.Rngs(0)),
    ):
        traces = []

        def run(module, x, traces=traces):
            traces.append(1)
            return module(x)

        run = fnn.jit(run)
        assert fnn.graphdef(make()) == fnn.graphdef(make())
        run(make(), X), run(make(), X)
        assert len(traces) == 1


class Block(fnn.Module):
    """A layer with everything: nested, a tied weight, statistics, random keys."""

    def __init__(self, rngs):
        self.first = fnn.Linear(4, 4, rngs=rngs)
        self.second = fnn.Linear(4, 4, rngs=rngs)
        self.second.kernel = self.first.kernel
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = fnn.Dropout(0.5, rngs=rngs)

    def __call__(self, x, scale=1.0):
        return scale * self.dropout(self.norm(self.second(self.first(x))))


def test_nnx_wrapped_layer_keeps_its_own_state():
    layer = nnx.WeightNorm(Block(fnn.Rngs(0)), rngs=fnn.Rngs(1))
    inside = layer.layer_instance
    kernel, mean = np.asarray(inside.first.kernel[...]), np.asarray(inside.norm.mean[...])
    a, b = layer(X), layer(X, scale=2.0)
    assert not np.array_equal(2 * a, b)  # the key of dropout moved
    assert np.abs(inside.norm.mean[...] - mean).max() > 0
    np.testing.assert_array_equal(inside.first.kernel[...], kernel)
    assert inside.first.kernel is inside.second.kernel
    layer.eval()
    unit = kernel / np.linalg.norm(kernel, axis=0)
    z = X @ unit + inside.first.bias[...]
    z = z @ unit + inside.second.bias[...]
    want = (z - inside.norm.mean[...]) / np.sqrt(inside.norm.var[...] + 1e-5)
    np.testing.assert_allclose(layer(X), want, rtol=1e-4, atol=1e-5)


def test_half_precision_kernels_neither_overflow_nor_vanish():
    for size in (300.0, 1e-6):
        kernel = jnp.full((64, 2), size, jnp.float16)
        layer = nnx.WeightNorm(
            fnn.Linear(64, 2, param_dtype=jnp.float16, rngs=fnn.Rngs(0)),
            epsilon=0.0,
            rngs=fnn.Rngs(0),
        )
        layer.layer_instance.kernel[...] = kernel
        np.testing.assert_allclose(layer(jnp.ones((1, 64), jnp.float16)), 8.0, rtol=5e-3)


def test_not_a_matrix_is_refused_on_request():
    conv = fnn.Conv(2, 3, (2, 2), rngs=fnn.Rngs(0))
    with pytest.raises(ValueError, match="error_on_non_matrix"):
        nnx.SpectralNorm(conv, error_on_non_matrix=True, rngs=fnn.Rngs(0))
    layer = nnx.SpectralNorm(conv, rngs=fnn.Rngs(0), n_steps=60)
    x = jax.random.normal(KEY, (1, 5, 5, 2))
    plain = conv(x)
    sigma = np.linalg.svd(np.asarray(conv.kernel[...], np.float64).reshape(-1, 3))[1][0]
    np.testing.assert_allclose(layer(x), plain / sigma, rtol=1e-4, atol=1e-5)
