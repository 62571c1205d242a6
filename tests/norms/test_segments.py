"""Statistics of segments: float64 loops over the segments, graphs and packed sequences."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import linen
from tests._support import reference
from tests.conftest import unchecked

RNG = np.random.default_rng(17)


def draw(*shape):
    return RNG.normal(3.0, 2.0, shape)


def loop(x, ids, number, normalize, mask=None):
    """Apply `normalize` to the positions of each segment of each row, one after the other."""
    y = np.zeros_like(x)
    for row in range(len(x)):
        for k in range(number):
            here = ids[row] == k
            if mask is not None:
                here &= mask[row]
            if here.any():
                y[row, here] = normalize(x[row, here][None])[0]
    return y


def norms():
    """Norms of `[row, position, 6]`, and what each does to one segment `[1, positions, 6]`."""

    def standard(axes):
        return lambda v: reference.batch_norm(v, eps=1e-5, axes=axes)

    def rms(v):
        return v / np.sqrt((v**2).mean((1, 2), keepdims=True) + 1e-5)

    def groups(v):
        parts = v.reshape(*v.shape[:2], 2, 3)
        return reference.batch_norm(parts, eps=1e-5, axes=(1, 3)).reshape(v.shape)

    return [
        (nj.instance_norm(axes=1), standard(1)),
        (nj.layer_norm(axes=(1, 2), feature_axes=-1), standard((1, 2))),
        (nj.rms_norm(axes=(1, 2), feature_axes=-1), rms),
        (nj.group_norm(groups=2, axes=1), groups),
        (nj.layer_norm(), standard(2)),  # of each position: segments make no difference
    ]


@pytest.mark.parametrize("norm, alone", [pytest.param(n, a, id=repr(n)[:40]) for n, a in norms()])
@pytest.mark.parametrize("masked", [False, True])
def test_a_segment_is_normalized_as_if_it_were_alone(norm, alone, masked, x64):
    x, number = draw(3, 12, 6), 4
    ids = RNG.integers(-1, number + 1, (3, 12))  # -1 and 4: padding
    mask = RNG.random((3, 12)) < 0.7 if masked else None
    params, state = norm.init(x.shape, jnp.float64)
    params = jax.tree.map(lambda v: v + draw(*v.shape) / 4, params)
    want = loop(x, ids, number, alone, mask) * np.asarray(params.scale)
    want = want if params.bias is None else want + np.asarray(params.bias)
    inside = (ids >= 0) & (ids < number) & (True if mask is None else mask)
    dirty = np.where(inside[..., None], x, np.nan)

    @jax.jit
    def run(params, x):
        def outputs(params, x):
            y, _ = norm.apply(
                params,
                state,
                x,
                stats="batch",
                mask=None if mask is None else jnp.asarray(mask)[..., None],
                segment_ids=ids,
                num_segments=number,
            )
            return y

        y = outputs(params, x)
        w = jnp.where(inside[..., None], jnp.cos(jnp.arange(x.size).reshape(x.shape)), 0.0)
        return y, jax.grad(lambda p, x: jnp.sum(w * outputs(p, x)), (0, 1))(params, x)

    y, grads = run(params, dirty)
    np.testing.assert_allclose(
        np.where(inside[..., None], y, 0),
        np.where(inside[..., None], want, 0),
        rtol=1e-10,
        atol=1e-10,
    )
    assert np.isfinite(y).all()
    # Gradients: finite differences of the loop over segments.
    w = np.where(inside[..., None], np.cos(np.arange(x.size).reshape(x.shape)), 0)
    v, h = draw(*x.shape), 1e-6
    scale = np.asarray(params.scale)
    ahead, behind = (
        (w * scale * loop(x + s * h * v, ids, number, alone, mask)).sum() for s in (1, -1)
    )
    slope = np.where(inside[..., None], np.asarray(grads[1]) * v, 0).sum()
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)


def test_graphs_of_one_batch_are_one_axis_of_nodes(x64):
    x, ids = draw(10, 3), np.array([2, 0, 0, 2, 1, 2, 0, 1, 2, 0])
    norm = nj.instance_norm(axes=0)
    params, state = norm.init(x.shape, jnp.float64)
    y, _ = norm.apply(params, state, x, stats="batch", segment_ids=ids, num_segments=3)
    want = loop(x[None], ids[None], 3, lambda v: reference.batch_norm(v, eps=1e-5, axes=1))[0]
    np.testing.assert_allclose(y, want, rtol=1e-12, atol=1e-12)
    # Of one segment it is the norm itself.
    y, _ = norm.apply(params, state, x, stats="batch", segment_ids=0 * ids, num_segments=1)
    np.testing.assert_allclose(y, norm.apply(params, state, x, stats="batch")[0], rtol=1e-12)


def test_moments_of_segments_far_from_zero_and_of_none():
    x = (draw(6, 2) / 100 + 1e4).astype(np.float32)
    ids = np.array([0, 2, 0, 2, 2, 7])
    m = nj.segment_moments(x, ids, 4)
    for k in (0, 2):
        mean, var, count = reference.moments(x[ids == k], 0)
        np.testing.assert_allclose(m.mean[k], mean, rtol=1e-7)
        np.testing.assert_allclose(m.var[k], var, rtol=1e-4)
        np.testing.assert_array_equal(m.count[k], count)
    for k in (1, 3):
        np.testing.assert_array_equal(np.stack([m.mean[k], m.var[k], m.count[k]]), np.zeros((3, 2)))
    mask = jnp.array([True, True, False, True, True, True])[:, None]
    np.testing.assert_array_equal(nj.segment_moments(x, ids, 4, mask=mask).mean[0], x[0])
    rows = nj.segment_moments(np.stack([x, x + 1]), np.stack([ids, ids]), 4, axes=1)
    assert rows.mean.shape == (2, 4, 2)
    np.testing.assert_allclose(rows.mean[1, 0], m.mean[0] + 1, rtol=1e-6)


def test_vmap_bfloat16_and_a_linen_module():
    x = jnp.asarray(draw(2, 8, 4), jnp.bfloat16)
    ids = jnp.asarray(RNG.integers(0, 3, (2, 8)))
    norm = nj.instance_norm(axes=1)
    params, state = norm.init(x.shape)

    def apply(x, ids):
        return norm.apply(params, state, x, stats="batch", segment_ids=ids, num_segments=3)[0]

    y = jax.jit(apply)(x, ids)
    assert y.dtype == jnp.bfloat16
    each = jax.vmap(lambda x, ids: apply(x[None], ids[None])[0])(x, ids)
    np.testing.assert_allclose(*(np.asarray(v, np.float32) for v in (each, y)), atol=0.02)
    module = linen.Normalize(norm)
    variables = module.init(jax.random.key(0), x)
    call = functools.partial(module.apply, variables, segment_ids=ids, num_segments=3)
    np.testing.assert_array_equal(np.asarray(call(x), float), np.asarray(apply(x, ids), float))


def test_what_does_not_fit_says_so():
    x, ids = jnp.ones((4, 6, 2)), jnp.zeros((4, 6), int)
    norm = nj.instance_norm()
    apply = functools.partial(norm.apply, *norm.init(x.shape), x, stats="batch")
    with pytest.raises(ValueError, match="write num_segments="):
        apply(segment_ids=ids)
    with pytest.raises(ValueError, match="one id for each position"):
        apply(segment_ids=ids[0], num_segments=2)
    with pytest.raises(TypeError, match="must be integers"):
        unchecked(nj.segment_moments)(x, ids.astype(jnp.float32), 2)
    with pytest.raises(ValueError, match="write a plain integer"):
        unchecked(nj.segment_moments)(x, ids, jnp.max(ids) + 1)
    with pytest.raises(ValueError, match="leave it out"):
        nj.segment_moments(x, ids, 2, axes=-1)
    with pytest.raises(ValueError, match="leave axis_name out"):
        apply(segment_ids=ids, num_segments=2, axis_name="d")
    batch = nj.batch_norm()
    with pytest.raises(TypeError, match="takes no segment_ids"):
        batch.apply(*batch.init(x.shape), x, stats="batch", segment_ids=ids, num_segments=2)
    part = nj.rms_norm(axes=1, feature_axes=-1, partial=0.5)
    with pytest.raises(ValueError, match="leave out partial"):
        part.apply(*part.init(x.shape), x, stats="batch", segment_ids=ids, num_segments=2)
