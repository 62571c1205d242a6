"""A residual and a norm in one call: the two steps' values and gradients, in fewer passes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from tests._support import reference

RNG = np.random.default_rng(13)
FAST = [
    nj.layer_norm(),
    nj.layer_norm(use_scale=False, eps=1e-3),
    nj.layer_norm(use_scale=False, use_bias=False),
    nj.layer_norm(axes=(-2, -1)),
    nj.rms_norm(),
    nj.rms_norm(unit_offset=True, use_bias=True),
]
# These run as two steps.
PLAIN = [
    nj.rms_norm(partial=0.5),
    nj.layer_norm(axes=1),
    nj.layer_norm(axes=(1, 2), feature_axes=-1),
    nj.layer_norm(impl="kernel"),
]


def draw(*shape, dtype=np.float32):
    return jnp.asarray(RNG.normal(0.5, 2.0, shape).astype(dtype))


def started(norm, shape, dtype=np.float32):
    params, _ = norm.init(shape, jnp.dtype(dtype))
    return jax.tree.map(lambda v: v + draw(*v.shape, dtype=dtype) / 4, params)


def two_steps(norm, params, x, residual, mask=None):
    total = x + residual
    return norm.apply(params, (), total, stats="batch", mask=mask)[0], total


def with_gradients(function, norm):
    @jax.jit
    def run(params, x, residual, cotangents):
        out, pull = jax.vjp(functools.partial(function, norm), params, x, residual)
        return out, pull(cotangents)

    return run


@pytest.mark.parametrize("norm", FAST + PLAIN, ids=repr)
def test_values_and_gradients_are_those_of_the_two_steps(norm, x64):
    args = started(norm, (3, 5, 8), np.float64), *(draw(3, 5, 8, dtype=float) for _ in range(2))
    cotangents = draw(3, 5, 8, dtype=float), draw(3, 5, 8, dtype=float)
    got = with_gradients(nj.add_norm, norm)(*args, cotangents)
    want = with_gradients(two_steps, norm)(*args, cotangents)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)
    if norm == nj.layer_norm():
        want = reference.batch_norm(np.asarray(args[1] + args[2]), eps=1e-5, axes=2)
        want = want * np.asarray(args[0].scale) + np.asarray(args[0].bias)
        np.testing.assert_allclose(got[0][0], want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("norm", [nj.layer_norm(), nj.rms_norm()], ids=repr)
def test_other_transformations(norm, x64):
    params, (x, r) = started(norm, (4, 6), float), (draw(4, 6, dtype=float) for _ in range(2))
    tangents = jax.tree.map(lambda v: draw(*v.shape, dtype=float), (params, x, r))

    def loss(function, args):
        y, total = function(norm, *args)
        return jnp.sum(jnp.sin(y) + total**2)

    @jax.jit
    def everything(args, tangents):
        found = []
        for function in (nj.add_norm, two_steps):
            f = functools.partial(loss, function)
            found.append(
                (
                    jax.jvp(f, (args,), (tangents,)),
                    jax.jvp(jax.grad(f), (args,), (tangents,)),
                    jax.vmap(jax.grad(lambda x, f=f: f((args[0], x, x))))(args[1][:, None]),
                    jax.grad(jax.checkpoint(f))(args),
                )
            )
        return found

    got, want = everything((params, x, r), tangents)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_gradient_in_half_precision_is_rounded_once(dtype):
    """The two steps round the norm's gradient, add the sum's, and round again."""
    norm = nj.layer_norm()
    dy, ds = (draw(16, 32).astype(dtype) for _ in range(2))
    # Their sum has few digits, so that it is exact in any dtype.
    x, r = (jnp.round(8 * jnp.clip(draw(16, 32), -4, 4)).astype(dtype) / 8 for _ in range(2))
    params = started(norm, (1, 32))
    off = {}
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda v: v.astype(jnp.float64), (params, x, r, (dy, ds)))
        exact = np.asarray(with_gradients(two_steps, norm)(*wide)[1][1])
        for function in (nj.add_norm, two_steps):
            out, (_, dx, dr) = with_gradients(function, norm)(params, x, r, (dy, ds))
            assert all(v.dtype == dtype for v in (*out, dx, dr))
            off[function] = np.abs(np.asarray(dx, float) - exact) / np.abs(exact)
    half_ulp = float(jnp.finfo(dtype).eps) / 2
    assert (off[nj.add_norm] < 1.1 * half_ulp).mean() > 0.99
    assert off[nj.add_norm].mean() <= off[two_steps].mean()


@pytest.mark.parametrize("norm", [nj.layer_norm(), nj.rms_norm()], ids=repr)
def test_a_mask_hides_nan(norm):
    x, r = draw(3, 8), draw(3, 8)
    mask = jnp.arange(8)[None] < 5
    params = started(norm, (1, 8))
    y, total = nj.add_norm(norm, params, jnp.where(mask, x, jnp.nan), r, mask=mask)
    want, _ = two_steps(norm, params, x, r, mask)
    np.testing.assert_array_equal(np.where(mask, y, 0), np.where(mask, want, 0))
    assert np.isfinite(y).all() and np.isnan(total[:, 5:]).all()


@pytest.mark.optimized
@pytest.mark.parametrize("norm, fewer", [(nj.layer_norm(), 5), (nj.rms_norm(), 3)], ids=repr)
def test_a_training_step_reads_and_writes_fewer_arrays(norm, fewer):
    """Of the compiler's own count of bytes, in arrays of the size of x."""
    x = jax.ShapeDtypeStruct((128, 512), jnp.float32)
    params = norm.init((1, 512))[0]

    def arrays(function):
        def step(params, x, residual, dy, ds):
            out, pull = jax.vjp(functools.partial(function, norm), params, x, residual)
            dparams, dx, _ = pull((dy, ds))
            return out, dparams, dx

        cost = jax.jit(step).lower(params, x, x, x, x).compile().cost_analysis()
        return cost["bytes accessed"] / (4 * 128 * 512)

    assert arrays(nj.add_norm) <= arrays(two_steps) - fewer + 0.5


def test_what_does_not_fit_says_so():
    norm, x = nj.layer_norm(), draw(2, 4)
    params = norm.init((1, 4))[0]
    with pytest.raises(TypeError, match="write s = x"):
        nj.add_norm(nj.batch_norm(), params, x, x)
    with pytest.raises(TypeError, match=r"write residual\.astype"):
        nj.add_norm(norm, params, x.astype(jnp.bfloat16), x)
    from tests.conftest import unchecked

    with pytest.raises(ValueError, match="broadcast one"):
        unchecked(nj.add_norm)(norm, params, x, x[:1])
    y, _ = nj.add_norm(norm, params._asdict(), x, x)
    np.testing.assert_array_equal(y, nj.add_norm(norm, params, x, x)[0])
