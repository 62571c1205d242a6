"""Group and instance norm: against the equation, other libraries, and each other's ends."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from tests._support import reference

RNG = np.random.default_rng(3)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def draw(*shape):
    return RNG.normal(3.0, 2.0, shape).astype(np.float32)


def group_reference(x, groups, gamma=1.0, beta=0.0, *, eps=1e-5, mask=None):
    """Loop over samples and groups; all axes between the first and the last are space."""
    x = np.asarray(x, np.float64)
    keep = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape)
    y = np.zeros_like(x)
    size = x.shape[-1] // groups
    for n in range(x.shape[0]):
        for g in range(groups):
            at = (n, ..., slice(g * size, (g + 1) * size))
            v = x[at][keep[at]]
            mean = v.mean() if v.size else 0.0
            var = ((v - mean) ** 2).mean() if v.size else 0.0
            y[at] = (x[at] - mean) / np.sqrt(var + eps)
    return y * gamma + beta


def run(norm, x, params=None, **kw):
    start, state = norm.init(x.shape)
    y, after = norm.apply(start if params is None else params, state, x, stats="batch", **kw)
    assert after == ()
    return y


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 3, 4, 8), (4, 8)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_is_the_equation(shape, groups):
    x, gamma, beta = draw(*shape), draw(8), draw(8)
    want = group_reference(x, groups, gamma, beta)
    params = nj.Affine(gamma, beta)
    np.testing.assert_allclose(run(nj.group_norm(groups=groups), x, params), want, **CLOSE)
    by_size = nj.group_norm(group_size=8 // groups)
    np.testing.assert_allclose(run(by_size, x, params), want, **CLOSE)


@pytest.mark.parametrize("mask_shape", [(3, 5, 1), (3, 1, 1), (1, 5, 8), (3, 5, 8), (1, 1, 8)])
def test_masks_that_only_broadcast(mask_shape):
    """(B, T, 1) is a mask: Flax wants it over all channels."""
    x = draw(3, 5, 8)
    mask = RNG.random(mask_shape) < 0.6
    want = group_reference(x, 4, mask=mask)
    got = run(nj.group_norm(groups=4), x, mask=jnp.asarray(mask))
    keep = np.broadcast_to(mask, x.shape)
    np.testing.assert_allclose(np.where(keep, got, 0), np.where(keep, want, 0), **CLOSE)


def test_statistics_of_groups():
    x = draw(2, 3, 8)
    mask = np.ones((2, 3, 1), bool)
    mask[0, 2] = False
    norm = nj.group_norm(groups=2)
    m = norm.moments(norm.init(x.shape)[0], x, mask=jnp.asarray(mask))
    np.testing.assert_array_equal(m.count, [[8, 8], [12, 12]])
    mean, var, _ = reference.moments(x[0, :2, :4], (0, 1))
    np.testing.assert_allclose([m.mean[0, 0], m.var[0, 0]], [mean, var], **CLOSE)


def test_one_group_is_layer_norm_over_all_but_the_batch():
    x = draw(3, 4, 2, 6)
    params = nj.Affine(draw(6), draw(6))
    layer = nj.layer_norm(axes=(1, 2, 3), feature_axes=-1)
    got = run(nj.group_norm(groups=1), x, params)
    np.testing.assert_allclose(got, run(layer, x, params), **CLOSE)


def test_as_many_groups_as_channels_is_instance_norm():
    x = draw(3, 4, 2, 6)
    params = nj.Affine(draw(6), draw(6))
    got = run(nj.group_norm(groups=6), x, params)
    np.testing.assert_allclose(got, run(nj.instance_norm(), x, params), **CLOSE)


def test_instance_norm_is_the_equation():
    x, gamma, beta = draw(3, 4, 2, 6), draw(6), draw(6)
    want = reference.batch_norm(x, gamma, beta, eps=1e-5, axes=(1, 2))
    got = run(nj.instance_norm(), x, nj.Affine(gamma, beta))
    np.testing.assert_allclose(got, want, **CLOSE)


def test_instance_norm_is_batch_norm_of_one_sample():
    x = draw(1, 4, 2, 6)
    bn = nj.batch_norm()
    params, state = bn.init(x.shape)
    want, _ = bn.apply(params, state, x, stats="batch")
    np.testing.assert_allclose(run(nj.instance_norm(), x, params), want, **CLOSE)


@pytest.mark.parametrize(
    "norm", [nj.group_norm(groups=2, axes=(2, 3)), nj.instance_norm(axes=(2, 3))]
)
def test_several_batch_axes_are_a_loop_over_them(norm):
    """Flax NNX repeats group statistics along the wrong axis here."""
    x = draw(3, 2, 4, 5, 6)
    params = nj.Affine(draw(6), draw(6))
    groups = 2 if norm.factory == "group_norm" else 6
    want = np.stack([group_reference(v, groups, params.scale, params.bias) for v in x])
    np.testing.assert_allclose(run(norm, x, params), want, **CLOSE)


def test_no_space_keeps_positions_apart():
    x = draw(3, 5, 8)
    want = group_reference(x.reshape(15, 8), 2).reshape(x.shape)
    np.testing.assert_allclose(run(nj.group_norm(groups=2, axes=()), x), want, **CLOSE)


@pytest.mark.parametrize("norm", [nj.group_norm(groups=3), nj.instance_norm()])
def test_an_affine_per_sample(norm):
    x, gamma, beta = draw(3, 4, 2, 6), draw(3, 6), draw(3, 6)
    got = run(norm, x, nj.Affine(gamma, beta))
    for n in range(3):
        want = run(norm, x[n : n + 1], nj.Affine(gamma[n], beta[n]))
        np.testing.assert_allclose(got[n], want[0], **CLOSE)


@pytest.mark.standard_numerics
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_flax_group_norm(groups):
    x = draw(3, 4, 2, 6)
    flax = nn.GroupNorm(num_groups=groups, epsilon=1e-5, use_fast_variance=False)
    variables = flax.init(jax.random.key(0), x)
    got = run(nj.group_norm(groups=groups), x)
    np.testing.assert_allclose(got, flax.apply(variables, x), **CLOSE)


@pytest.mark.standard_numerics
def test_flax_group_norm_with_two_batch_axes():
    x = draw(3, 2, 4, 6)
    flax = nn.GroupNorm(num_groups=2, epsilon=1e-5, reduction_axes=(2, 3), use_fast_variance=False)
    variables = flax.init(jax.random.key(0), x)
    got = run(nj.group_norm(groups=2, axes=(2,)), x)
    np.testing.assert_allclose(got, flax.apply(variables, x), **CLOSE)


@pytest.mark.standard_numerics
def test_flax_instance_norm():
    x = draw(3, 4, 2, 6)
    flax = nn.InstanceNorm(epsilon=1e-5, use_fast_variance=False)
    variables = flax.init(jax.random.key(0), x)
    np.testing.assert_allclose(run(nj.instance_norm(), x), flax.apply(variables, x), **CLOSE)


def test_torch_group_norm():
    torch = pytest.importorskip("torch")
    x, gamma, beta = draw(3, 4, 2, 6), draw(6), draw(6)
    first = torch.tensor(np.moveaxis(x, -1, 1).copy())
    want = torch.nn.functional.group_norm(first, 3, torch.tensor(gamma), torch.tensor(beta))
    got = run(nj.group_norm(groups=3), x, nj.Affine(gamma, beta))
    np.testing.assert_allclose(got, np.moveaxis(want.numpy(), 1, -1), **CLOSE)


def test_the_paper_has_32_groups():
    assert nj.group_norm() == nj.group_norm(groups=32)
    assert repr(nj.group_norm()) == "group_norm(groups=32)"
    nj.group_norm().init((1, 5, 64))


def test_errors_say_what_to_write():
    with pytest.raises(ValueError, match="write one of them"):
        nj.group_norm(groups=2, group_size=3)
    with pytest.raises(ValueError, match="groups=0"):
        nj.group_norm(groups=0)
    with pytest.raises(ValueError, match=r"write groups=12"):
        nj.group_norm().init((1, 5, 12))
    with pytest.raises(ValueError, match="write group_size=4"):
        nj.group_norm(group_size=5).init((1, 5, 12))
    with pytest.raises(ValueError, match="last axis"):
        nj.group_norm(groups=2, axes=(1, 2)).init((1, 5, 12))
    with pytest.raises(ValueError, match="between the batch") as raised:
        nj.instance_norm().init((4, 6))
    assert "write layer_norm()" in str(raised.value) and "axes=" not in str(raised.value)
    with pytest.raises(ValueError, match=r"eps=0\.0"):
        nj.instance_norm(eps=0.0)
    norm = nj.group_norm(groups=2)
    with pytest.raises(ValueError, match=r"give one of shape \(6,\).*per sample of shape \(3, 6\)"):
        run(norm, draw(3, 4, 6), nj.Affine(draw(4, 6), None))
    with pytest.raises(ValueError, match=r"give one of shape \(6,\)"):
        run(norm, draw(3, 4, 6), nj.Affine(draw(5), None))
    # As many axes as x: all of them would be batch axes and leave none for the features.
    with pytest.raises(ValueError, match="fit"):
        run(norm, draw(3, 4, 6), nj.Affine(draw(3, 4, 6, 6), None))


def test_large_mean_costs_no_digits():
    """Flax's default, E[x^2] - E[x]^2, gives a standard deviation of 1009 where it is 1."""
    x = (RNG.normal(size=(3, 40, 6)) + 1e4).astype(np.float32)
    got = run(nj.group_norm(groups=2), x)
    np.testing.assert_allclose(got, group_reference(x, 2), rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(np.std(got.reshape(3, 40, 2, 3), axis=(1, 3)), 1, rtol=1e-4)
