"""A norm's gain and bias in the weights behind it: the same outputs, or a refusal."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import linen, testing
from tests._support import check
from tests._support.few import few

RNG = np.random.default_rng(11)
FOLDED = {
    *("layer_norm", "rms_norm", "group_norm", "instance_norm", "l2_norm", "scale_norm"),
    *("dynamic_tanh", "dynamic_erf", "identity"),
    *("batch_norm", "batch_renorm", "ghost_batch_norm", "mean_only_batch_norm"),
}
# Samples whose features are not the last axis, which a dense layer reads.
OTHER_AXES = {"batch_norm_per_activation", "batch_norm_channels_first"}


def draw(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def moved(params):
    """Params away from their start."""
    return jax.tree.map(lambda v: v + draw(*v.shape, dtype=v.dtype), params)


def bare(params):
    return params._replace(scale=None, bias=None)


def near(got, want):
    want = np.asarray(want, np.float64)
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize(
    "sample",
    few(
        {sample.name: sample for sample in testing.SAMPLES},
        *check.REPRESENTATIVES,
        "batch_norm_channels_first",
    ),
)
def test_a_dense_layer_takes_the_affine_of_every_norm_that_ends_in_one(sample, x64):
    norm = sample.norm
    params, state = norm.init(sample.shape, jnp.float64, key=jax.random.key(0))
    params, x = moved(params), draw(*sample.shape, dtype=jnp.float64)
    kernel = draw(sample.shape[-1], 3, dtype=jnp.float64)
    if norm.factory not in FOLDED:
        with pytest.raises(TypeError, match="does not end in a gain and a bias"):
            nj.fold_next(norm, params, kernel, None)
        return
    if sample.name in OTHER_AXES:
        with pytest.raises(ValueError, match="does not fit a kernel"):
            nj.fold_next(norm, params, kernel, None)
        return
    apply = jax.jit(lambda p: norm.apply(p, state, x, stats="batch")[0])
    for bias in (None, draw(3, dtype=jnp.float64)):
        plus = jnp.zeros(3) if bias is None else bias
        want = apply(params) @ kernel + plus.reshape((1,) * (x.ndim - 1) + (3,))
        folded, new = nj.fold_next(norm, params, kernel, bias)
        assert (new is None) == (bias is None and params.bias is None)
        got = apply(bare(params)) @ folded
        near(got if new is None else got + new.reshape((1,) * (x.ndim - 1) + (3,)), want)


@pytest.mark.parametrize(
    "norm",
    few(
        {"layer": nj.layer_norm(), "tanh": nj.dynamic_tanh(), "group": nj.group_norm(groups=2)},
        "layer",
    ),
)
@pytest.mark.parametrize("padding", ["VALID", "CIRCULAR", [(0, 0), (0, 0)]])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_that_pads_no_zeros_takes_the_bias_too(norm, padding, groups):
    x = draw(2, 5, 6, 4)
    params, state = norm.init(x.shape)
    params = moved(params)
    layer = nn.Conv(6, (3, 2), padding=padding, feature_group_count=groups)
    own = layer.init(jax.random.key(0), x)["params"]
    own = {**own, "bias": draw(6)}
    want = layer.apply({"params": own}, norm.apply(params, state, x, stats="batch")[0])
    kernel, bias = nj.fold_next(
        norm, params, own["kernel"], own["bias"], padding=padding, feature_group_count=groups
    )
    y, _ = norm.apply(bare(params), state, x, stats="batch")
    got = layer.apply({"params": {"kernel": kernel, "bias": bias}}, y)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


def test_a_gain_alone_is_exact_with_zeros_around_and_a_bias_is_refused():
    x, norm = draw(2, 5, 5, 4), nj.rms_norm(unit_offset=True)
    layer = nn.Conv(3, (3, 3), padding="SAME", use_bias=False)
    own = layer.init(jax.random.key(0), x)["params"]
    params = moved(norm.init(x.shape)[0])
    want = layer.apply({"params": own}, norm.apply(params, (), x, stats="batch")[0])
    kernel, bias = nj.fold_next(norm, params, own["kernel"], None)
    y, _ = norm.apply(nj.Affine(None, None), (), x, stats="batch")
    np.testing.assert_allclose(
        layer.apply({"params": {"kernel": kernel}}, y), want, rtol=1e-5, atol=1e-5
    )
    assert bias is None
    params = nj.Affine(draw(4), draw(4))
    with pytest.raises(ValueError, match='write padding="VALID"'):
        nj.fold_next(nj.layer_norm(), params, own["kernel"], None)
    for padding in ("SAME", "same", 1, [(0, 0), (1, 1)]):
        with pytest.raises(ValueError, match="puts zeros around"):
            nj.fold_next(nj.layer_norm(), params, own["kernel"], None, padding=padding)


def test_folding_the_bias_under_zeros_would_be_wrong():
    """What the refusal prevents: the edges differ, the middle does not."""
    x, norm = draw(1, 5, 5, 4), nj.layer_norm()
    params = moved(norm.init(x.shape)[0])
    layer = nn.Conv(2, (3, 3), padding="SAME")
    own = layer.init(jax.random.key(0), x)["params"]
    want = layer.apply({"params": own}, norm.apply(params, (), x, stats="batch")[0])
    kernel, bias = nj.fold_next(norm, params, own["kernel"], own["bias"], padding="VALID")
    y, _ = norm.apply(bare(params), (), x, stats="batch")
    off = jnp.abs(layer.apply({"params": {"kernel": kernel, "bias": bias}}, y) - want)
    assert float(off[:, 1:-1, 1:-1].max()) < 1e-4 < 1e-1 < float(off[:, 0].max())


def test_layouts_of_other_layers():
    norm, params = nj.layer_norm(), nj.Affine(draw(4), draw(4))
    x = draw(3, 4)
    y, _ = norm.apply(params, (), x, stats="batch")
    n, _ = norm.apply(bare(params), (), x, stats="batch")
    heads = draw(4, 2, 5)  # Flax's DenseGeneral
    kernel, bias = nj.fold_next(norm, params, heads, draw(2, 5) * 0, input_axis=0)
    got = jnp.einsum("bi,ihd->bhd", n, kernel) + bias[None]
    np.testing.assert_allclose(got, jnp.einsum("bi,ihd->bhd", y, heads), rtol=1e-5, atol=1e-5)
    linear = draw(5, 4)  # PyTorch's Linear
    kernel, bias = nj.fold_next(norm, params, linear, None, input_axis=1)
    np.testing.assert_allclose(n @ kernel.T + bias[None], y @ linear.T, rtol=1e-5, atol=1e-5)
    both = nj.layer_norm(axes=(1, 2))
    params2 = nj.Affine(draw(2, 4), draw(2, 4))
    x2, weights = draw(3, 2, 4), draw(2, 4, 5)
    kernel, bias = nj.fold_next(both, params2, weights, None, input_axis=(0, 1))
    want = jnp.einsum("bti,tio->bo", both.apply(params2, (), x2, stats="batch")[0], weights)
    got = jnp.einsum("bti,tio->bo", both.apply(bare(params2), (), x2, stats="batch")[0], kernel)
    np.testing.assert_allclose(got + bias[None], want, rtol=1e-5, atol=1e-5)
    window = draw(5, 4, 3)  # PyTorch's Conv1d
    kernel, bias = nj.fold_next(
        norm, params, window, None, input_axis=1, output_axis=0, padding="VALID"
    )
    np.testing.assert_allclose(kernel, window * params.scale[None, :, None], rtol=1e-6)
    want = jnp.einsum("oiw,i->o", window, params.bias)
    np.testing.assert_allclose(bias, want, rtol=1e-5, atol=1e-5)


def test_half_precision_kernels_are_folded_in_float32():
    params = nj.Affine(draw(4, dtype=jnp.bfloat16), draw(4, dtype=jnp.bfloat16))
    kernel = draw(4, 3, dtype=jnp.bfloat16)
    got, bias = nj.fold_next(nj.layer_norm(), params, kernel, draw(3, dtype=jnp.bfloat16) * 0)
    wide = [np.asarray(v, np.float64) for v in (kernel, *params)]
    assert got.dtype == bias.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, float), wide[0] * wide[1][:, None], rtol=2**-8)
    np.testing.assert_allclose(np.asarray(bias, float), wide[2] @ wide[0], rtol=2**-8)


def test_what_does_not_fit_says_so():
    kernel = jnp.ones((4, 3))
    with pytest.raises(ValueError, match="values for each sample"):
        nj.fold_next(nj.layer_norm(), nj.Affine(jnp.ones((2, 4)), None), kernel, None)
    with pytest.raises(ValueError, match="has the names"):
        nj.fold_next(nj.layer_norm(), {"gamma": jnp.ones(4)}, kernel, None)
    with pytest.raises(ValueError, match="write output_axis="):
        nj.fold_next(
            nj.rms_norm(), nj.Affine(jnp.ones(4), None), jnp.ones((3, 2, 4)), None, input_axis=-1
        )
    with pytest.raises(ValueError, match="share an axis"):
        nj.fold_next(nj.rms_norm(), nj.Affine(jnp.ones(4), None), kernel, None, output_axis=0)
    with pytest.raises(ValueError, match="does not divide"):
        nj.fold_next(
            nj.rms_norm(),
            nj.Affine(jnp.ones(4), None),
            jnp.ones((3, 2, 3)),
            None,
            feature_group_count=2,
        )


# Whole models ---------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention's projections and a convolution, with norms before and behind."""

    served: bool = False

    @nn.compact
    def __call__(self, x):
        affine = not self.served
        y = nn.LayerNorm(use_scale=affine, use_bias=affine, name="ln")(x)
        heads = [nn.DenseGeneral((2, 3), name=name)(y) for name in ("query", "key")]
        y = heads[0] * heads[1]
        y = nn.DenseGeneral(4, axis=(-2, -1), name="out")(y)
        y = nn.RMSNorm(use_scale=affine, name="rms")(y)
        return x + nn.Dense(4, use_bias=False, name="up")(y)


class Net(nn.Module):
    """A convolution with a batch norm, then two blocks."""

    served: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=self.served, name="conv")(x)
        if not self.served:
            x = linen.Normalize(nj.batch_norm(), stats="running", name="bn")(x)
        for i in range(2):
            x = Block(self.served, name=f"block_{i}")(x)
        return x


RULES = [
    nj.FoldRule(nj.batch_norm(), "bn", before="conv"),
    nj.FoldRule(
        nj.layer_norm(eps=1e-6),
        "block_*/ln",
        behind=("block_*/query", "block_*/key"),
        options={"input_axis": 0},
    ),
    nj.FoldRule(nj.rms_norm(eps=1e-6), "block_*/rms", behind="block_*/up"),
]


def test_a_whole_model_is_folded_by_path():
    x = draw(2, 5, 5, 3)
    variables = jax.tree.map(jnp.asarray, Net().init(jax.random.key(0), x))
    variables = jax.tree.map(lambda v: v + jnp.abs(draw(*v.shape)) / 4, variables)
    want = Net().apply(variables, x)
    folded = nj.fold_model(variables, RULES)
    shapes = jax.eval_shape(Net(served=True).init, jax.random.key(0), x)
    assert jax.tree.structure(folded["params"]) == jax.tree.structure(shapes["params"])
    assert not folded["batch_stats"]
    got = Net(served=True).apply({"params": folded["params"]}, x)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * float(jnp.abs(want).max()))
    assert "bn" in variables["params"]  # the model that was given is as it was


def test_rules_that_fit_nothing_say_so():
    variables = Net().init(jax.random.key(0), draw(1, 5, 5, 3))
    with pytest.raises(ValueError, match=r"no norm is at 'bm'.*'bn'"):
        nj.fold_model(variables, [nj.FoldRule(nj.batch_norm(), "bm", before="conv")])
    with pytest.raises(ValueError, match=r"no layer with a kernel is at 'cond'.*'conv'"):
        nj.fold_model(variables, [nj.FoldRule(nj.batch_norm(), "bn", before="cond")])
    with pytest.raises(ValueError, match="has no statistics"):
        nj.fold_model(variables["params"], [nj.FoldRule(nj.batch_norm(), "bn", before="conv")])
    with pytest.raises(ValueError, match="a layer reads one norm"):
        twice = nj.FoldRule(
            nj.layer_norm(), "block_*/ln", behind="block_0/query", options={"input_axis": 0}
        )
        nj.fold_model(variables, [twice])
    with pytest.raises(ValueError, match="more \\* than"):
        nj.fold_model(variables, [nj.FoldRule(nj.layer_norm(), "bn", behind="block_*/up")])
    with pytest.raises(ValueError, match="not a norm"):
        nj.fold_model(variables, [nj.FoldRule(nj.layer_norm(), "conv", behind="block_0/up")])
    with pytest.raises(ValueError, match="names one side"):
        nj.FoldRule(nj.batch_norm(), "bn")
    with pytest.raises(TypeError, match="not an affine"):
        nj.fold_model(variables, [nj.FoldRule(nj.layer_norm(), "bn", before="conv")])


def test_a_tree_with_parameters_and_statistics_in_one():
    """What `nnx.to_pure_dict` gives."""
    kernel, x = draw(3, 4), draw(5, 3)
    own = {"scale": draw(4), "bias": draw(4)}
    running = {"mean": draw(4), "var": draw(4) ** 2}
    tree = {"linear": {"kernel": kernel}, "bn": {**own, **running}}
    norm = nj.batch_norm()
    want, _ = norm.apply(own, running, x @ kernel, stats="running")
    folded = nj.fold_model(tree, [nj.FoldRule(norm, "bn", before="linear")])
    assert set(folded) == {"linear"}
    got = x @ folded["linear"]["kernel"] + folded["linear"]["bias"][None]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
