"""Folded inference equals unfolded inference; statistics survive a change of convention."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj

RNG = np.random.default_rng(3)
NORMS = [
    nj.batch_norm(),
    nj.batch_norm(use_scale=False),
    nj.batch_norm(use_scale=False, use_bias=False, correction=1),
    nj.batch_renorm(eps=1e-3),
    nj.ghost_batch_norm(size=2),
    nj.mean_only_batch_norm(),
    nj.mean_only_batch_norm(use_bias=False),
    nj.identity(use_bias=True),
    nj.identity(use_scale=True),
]


def warm(norm, features=5):
    """A norm's params and state, away from their start."""
    params, state = norm.init((1, features))
    params = jax.tree.map(lambda v: jnp.asarray(RNG.normal(size=v.shape), v.dtype), params)
    for _ in range(3):
        x = RNG.normal(size=(6, features)) * 3 + 50
        _, state = norm.apply(params, state, x.astype(np.float32), stats="batch")
    return params, state


def near(got, want):
    """Equal to float32 rounding of numbers as large as the output, and of what cancels in it."""
    want = np.asarray(want)
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6 * scale)


@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_dense(norm):
    params, state = warm(norm)
    x = RNG.normal(size=(7, 3)).astype(np.float32)
    kernel = jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32)
    for bias in (None, jnp.asarray(RNG.normal(size=5), jnp.float32)):
        z = x @ kernel + (0 if bias is None else bias[None])
        want, _ = norm.apply(params, state, z, stats="running")
        constants = nj.fold(norm, params, state)
        near(z * constants.scale[None] + constants.bias[None], want)
        folded_kernel, folded_bias = nj.fold_dense(kernel, bias, constants)
        near(x @ folded_kernel + folded_bias[None], want)
        assert folded_kernel.dtype == folded_bias.dtype == jnp.float32


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_conv(padding):
    norm = nj.batch_norm()
    params, state = warm(norm)
    x = RNG.normal(size=(2, 6, 6, 3)).astype(np.float32)
    kernel = RNG.normal(size=(3, 3, 3, 5)).astype(np.float32)
    bias = jnp.asarray(RNG.normal(size=5), jnp.float32)

    def conv(kernel, bias):
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout)
        return y + bias[None, None, None]

    want, _ = norm.apply(params, state, conv(kernel, bias), stats="running")
    near(conv(*nj.fold_conv(kernel, bias, nj.fold(norm, params, state))), want)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("inputs", [4, 3])
def test_a_transposed_convolution_is_folded_over_its_outputs(inputs, transposed):
    norm = nj.batch_norm()
    params, state = norm.init((1, 1, 1, 4))
    draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)  # noqa: E731
    x = draw(2, 5, 5, inputs)
    state = nj.Running(draw(4), draw(4) ** 2 + 0.5)
    layer = nn.ConvTranspose(4, (3, 3), strides=(2, 2), transpose_kernel=transposed)
    own = layer.init(jax.random.key(0), x)["params"]
    own = {**own, "bias": draw(4)}
    want, _ = norm.apply(params, state, layer.apply({"params": own}, x), stats="running")
    folded = nj.fold(norm, params, state)
    axis = -2 if transposed else -1
    kernel, bias = nj.fold_conv(own["kernel"], own["bias"], folded, output_axis=axis)
    near(layer.apply({"params": {"kernel": kernel, "bias": bias}}, x), want)
    if inputs == 4:
        with pytest.raises(ValueError, match=r"as many inputs as outputs.*output_axis=-2"):
            nj.fold_conv(own["kernel"], own["bias"], folded)
    elif transposed:
        with pytest.raises(ValueError, match=r"axis -1 must be the outputs.*output_axis=…"):
            nj.fold_conv(own["kernel"], own["bias"], folded)
    with pytest.raises(ValueError, match="output_axis=4 is no axis"):
        nj.fold_conv(own["kernel"], own["bias"], folded, output_axis=4)


def test_the_outputs_of_a_convolution_of_pytorch_are_first():
    folded = nj.Affine(jnp.array([2.0, 3.0]), jnp.zeros(2))
    kernel, _ = nj.fold_conv(jnp.ones((2, 5, 3, 3)), None, folded, output_axis=0)
    np.testing.assert_array_equal(kernel, np.broadcast_to([[[[2]]], [[[3]]]], (2, 5, 3, 3)))


def test_a_gathering_state_folds_what_normalizes():
    norm = nj.batch_norm()
    params, state = warm(norm)
    for a, b in zip(
        nj.fold(norm, params, nj.accumulate_statistics(state)),
        nj.fold(norm, params, state),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_half_precision_kernels_are_folded_in_float32():
    norm = nj.batch_norm()
    params, state = warm(norm)
    kernel = jnp.asarray(RNG.normal(size=(3, 5)), jnp.bfloat16)
    constants = nj.fold(norm, params, state)
    got, _ = nj.fold_dense(kernel, None, constants)
    assert got.dtype == jnp.bfloat16
    want = np.asarray(kernel, np.float64) * np.asarray(constants.scale, np.float64)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-8)


def test_what_cannot_be_folded_says_so():
    for norm in (nj.layer_norm(), nj.decorrelated_batch_norm(), nj.switchable_norm()):
        with pytest.raises(TypeError, match="not an affine of each feature"):
            nj.fold(norm, *norm.init((1, 4, 4, 2)))
    with pytest.raises(TypeError, match="leave it out"):
        nj.fold(nj.identity(), *nj.identity().init((1, 2)))
    with pytest.raises(ValueError, match="its axis -1 must be the outputs"):
        nj.fold_dense(jnp.ones((5, 3)), None, nj.Affine(jnp.ones(5), jnp.ones(5)))
    with pytest.raises(ValueError, match="what fold"):
        nj.fold_dense(jnp.ones((5, 3)), None, nj.Affine(None, jnp.ones(3)))


# Conventions ---------------------------------------------------------------------------------


def torch_style(batches, momentum):
    """PyTorch's documented rule: update rate, and the unbiased variance."""
    mean, var = np.zeros(4), np.ones(4)
    for x in batches:
        mean = (1 - momentum) * mean + momentum * x.mean(0)
        var = (1 - momentum) * var + momentum * x.var(0, ddof=1)
    return mean, var


@pytest.mark.parametrize("correction", [0, 1])
def test_torch_statistics(correction):
    batches = RNG.normal(size=(60, 8, 4)) * 2 + 1
    norm = nj.batch_norm(decay=nj.decay_from_torch(0.5), correction=correction)
    params, state = norm.init((1, 4))
    for x in batches:
        _, state = norm.apply(params, state, x.astype(np.float32), stats="batch")
    mean, var = torch_style(batches, nj.decay_to_torch(norm.decay))
    got = nj.running_to_torch(state, 8, correction=correction)
    np.testing.assert_allclose(got[0], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1], var, rtol=1e-5)
    back = nj.running_from_torch(
        mean.astype(np.float32), var.astype(np.float32), 8, correction=correction
    )
    np.testing.assert_allclose(back.mean, state.mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back.var, state.var, rtol=1e-5)


def test_torch_itself():
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm2d(3, momentum=0.5)
    for _ in range(60):
        module(torch.tensor(RNG.normal(size=(4, 3, 2, 2)), dtype=torch.float32))
    x = RNG.normal(size=(4, 3, 2, 2)).astype(np.float32)
    want = module.eval()(torch.tensor(x)).detach().numpy()
    state = nj.running_from_torch(
        module.running_mean.numpy(), module.running_var.numpy(), 16, correction=1
    )
    norm = nj.batch_norm(axes=(0, 2, 3), correction=1)
    y, _ = norm.apply(norm.init(x.shape)[0], state, x, stats="running")
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


def test_conventions_refuse_nonsense():
    with pytest.raises(ValueError, match="no unbiased variance"):
        nj.running_from_torch(jnp.zeros(1), jnp.ones(1), 1)
    with pytest.raises(ValueError, match="weight of the new value"):
        nj.decay_from_torch(1.5)
