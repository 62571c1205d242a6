"""Local, filter and global response norms: against the equations and torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj

RNG = np.random.default_rng(5)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def draw(*shape):
    return RNG.normal(0.5, 2.0, shape).astype(np.float32)


def run(norm, x, params=None, **kw):
    start, state = norm.init(x.shape)
    return norm.apply(start if params is None else params, state, x, stats="batch", **kw)[0]


def local_reference(x, *, size, alpha, beta, k, over="sum"):
    """Section 3.3 of the AlexNet paper, channel by channel."""
    x = np.asarray(x, np.float64)
    y = np.zeros_like(x)
    last = x.shape[-1] - 1
    for c in range(last + 1):
        lo, hi = max(0, c - size // 2), min(last, c + (size - 1) // 2)
        square = (x[..., lo : hi + 1] ** 2).sum(-1)
        y[..., c] = x[..., c] / (k + alpha * square / (size if over == "mean" else 1)) ** beta
    return y


@pytest.mark.parametrize("size", [1, 3, 4, 5, 20])
@pytest.mark.parametrize("over", ["sum", "mean"])
def test_local_response_is_the_equation(size, over):
    x = draw(2, 3, 9)
    given = {"size": size, "alpha": 0.3, "beta": 0.6, "k": 1.5, "over": over}
    want = local_reference(x, **given)
    np.testing.assert_allclose(run(nj.local_response_norm(**given), x), want, **CLOSE)


def test_local_response_defaults_are_the_paper_s():
    x = 30 * draw(2, 3, 9)
    want = local_reference(x, size=5, alpha=1e-4, beta=0.75, k=2.0)
    np.testing.assert_allclose(run(nj.local_response_norm(), x), want, rtol=2e-6)


def test_local_response_keeps_small_values_beside_large_ones():
    """A difference of running sums would return 0 or noise for the small channels."""
    x = np.full((1, 12), 1e-3, np.float32)
    x[0, 0] = 1e4
    given = {"size": 3, "alpha": 1e6, "beta": 1.0, "k": 1e-3}
    want = local_reference(x, **given)
    np.testing.assert_allclose(run(nj.local_response_norm(**given), x), want, rtol=1e-5)


def test_local_response_without_masked_channels():
    x = draw(2, 9)
    mask = RNG.random((2, 9)) < 0.6
    given = {"size": 5, "alpha": 0.3, "beta": 0.6, "k": 1.5}
    want = local_reference(np.where(mask, x, 0), **given)
    got = run(nj.local_response_norm(**given), x, mask=jnp.asarray(mask))
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize("size", [3, 4])
def test_torch_local_response_norm(size):
    torch = pytest.importorskip("torch")
    x = draw(2, 3, 9)
    first = torch.tensor(np.moveaxis(x, -1, 1).copy())
    want = torch.nn.functional.local_response_norm(first, size, alpha=0.3, beta=0.6, k=1.5)
    norm = nj.local_response_norm(size=size, alpha=0.3, beta=0.6, k=1.5, over="mean")
    np.testing.assert_allclose(run(norm, x), np.moveaxis(want.numpy(), 1, -1), **CLOSE)


def filter_reference(x, p, *, eps=1e-6, axes=(1, 2), mask=None):
    """Equations 1 to 3 of the paper, with its learned eps."""
    p = type(p)(*(None if v is None else np.asarray(v, np.float64) for v in p))
    x = np.asarray(x, np.float64)
    keep = np.ones(x.shape) if mask is None else np.broadcast_to(mask, x.shape).astype(float)
    count = np.maximum(keep.sum(axes, keepdims=True), 1)
    square = (x**2 * keep).sum(axes, keepdims=True) / count
    eps = eps + (0 if p.eps is None else np.abs(p.eps))
    y = x / np.sqrt(square + eps) * p.scale + p.bias
    return y if p.threshold is None else np.maximum(y, p.threshold)


@pytest.mark.parametrize("threshold", [True, False])
@pytest.mark.parametrize("learn_eps", [True, False])
def test_filter_response_is_the_equation(threshold, learn_eps):
    x = draw(3, 4, 2, 5)
    norm = nj.filter_response_norm(threshold=threshold, learn_eps=learn_eps)
    params, _ = norm.init(x.shape)
    np.testing.assert_allclose(run(norm, x), filter_reference(x, params), **CLOSE)
    params = jax.tree.map(lambda v: draw(*v.shape), params)
    np.testing.assert_allclose(run(norm, x, params), filter_reference(x, params), **CLOSE)
    mask = RNG.random((3, 4, 2, 1)) < 0.6
    got = run(norm, x, params, mask=jnp.asarray(mask))
    want = filter_reference(x, params, mask=mask)
    np.testing.assert_allclose(np.where(mask, got, 0), np.where(mask, want, 0), **CLOSE)


def test_filter_response_starts_as_in_the_paper():
    params, state = nj.filter_response_norm(learn_eps=True).init((1, 2, 2, 3))
    assert state == ()
    for value, want in zip(params, (1.0, 0.0, 0.0, 1e-4), strict=True):
        np.testing.assert_array_equal(value, np.full(3, np.float32(want)))
    params, _ = nj.filter_response_norm(threshold=False).init((1, 2, 2, 3))
    assert params.threshold is None and params.eps is None


def test_filter_response_without_space():
    """Each unit by itself, a learned eps deciding how far it is from a sign."""
    x = draw(4, 5)
    norm = nj.filter_response_norm(learn_eps=True, threshold=False)
    params, _ = norm.init(x.shape)
    want = x / np.sqrt(x.astype(float) ** 2 + 1e-6 + 1e-4)
    np.testing.assert_allclose(run(norm, x, params), want, **CLOSE)


def test_filter_response_parameters_per_sample():
    x = draw(3, 4, 2, 5)
    norm = nj.filter_response_norm(learn_eps=True)
    params, _ = norm.init(x.shape)
    params = jax.tree.map(lambda v: draw(3, *v.shape), params)
    got = run(norm, x, params)
    for n in range(3):
        one = jax.tree.map(lambda v, n=n: v[n], params)
        np.testing.assert_allclose(got[n], run(norm, x[n : n + 1], one)[0], **CLOSE)


def global_reference(x, gamma, beta, *, eps=1e-6):
    x = np.asarray(x, np.float64)
    length = np.sqrt((x**2).sum((1, 2), keepdims=True))
    share = length / (length.mean(-1, keepdims=True) + eps)
    return gamma * (x * share) + beta + x


def test_global_response_is_the_equation():
    x, gamma, beta = draw(3, 4, 2, 5), draw(5), draw(5)
    norm = nj.global_response_norm()
    got = run(norm, x, nj.Affine(gamma, beta))
    np.testing.assert_allclose(got, global_reference(x, gamma, beta), **CLOSE)
    got = run(nj.global_response_norm(eps=3.0), x, nj.Affine(gamma, beta))
    np.testing.assert_allclose(got, global_reference(x, gamma, beta, eps=3.0), **CLOSE)


def test_global_response_starts_as_identity():
    x = draw(3, 4, 2, 5)
    np.testing.assert_array_equal(run(nj.global_response_norm(), x), x)


def test_global_response_under_a_mask_is_that_of_what_remains():
    """Masked positions have no length, masked channels no share in the mean."""
    x, gamma, beta = draw(1, 4, 2, 5), draw(5), draw(5)
    mask = np.ones(x.shape, bool)
    mask[:, 3] = False
    mask[..., 2] = False
    keep = [0, 1, 3, 4]
    got = run(nj.global_response_norm(), x, nj.Affine(gamma, beta), mask=jnp.asarray(mask))
    want = global_reference(x[:, :3][..., keep], gamma[keep], beta[keep])
    np.testing.assert_allclose(got[:, :3][..., keep], want, **CLOSE)


def test_gradient_of_a_dead_channel():
    """The length of a zero channel has no slope; a NaN there would kill the others' gradient."""
    x = draw(1, 3, 2, 4)
    x[..., 1] = 0
    norm = nj.global_response_norm(scale_init=0.5)
    params, state = norm.init(x.shape)
    grad = jax.grad(lambda x: jnp.sum(norm.apply(params, state, x, stats="batch")[0]))(
        jnp.asarray(x)
    )
    assert np.isfinite(grad).all()
    # Nothing flows through a share of 0: what is left is the residual's slope.
    np.testing.assert_allclose(grad[..., 1], np.ones((1, 3, 2)), rtol=1e-6)


def test_errors_say_what_to_write():
    # In these tests jaxtyping speaks first, and our own message outside them.
    with pytest.raises((TypeError, ValueError), match="over"):
        nj.local_response_norm(over="average")
    with pytest.raises(ValueError, match=r"k=0\.0"):
        nj.local_response_norm(k=0.0)
    with pytest.raises(TypeError, match="threshold=False"):
        run(nj.filter_response_norm(), jnp.ones((1, 2, 3), jnp.complex64))
    with pytest.raises(ValueError, match="last axis"):
        run(nj.global_response_norm(axes=(1, 3)), draw(1, 2, 3, 4))
