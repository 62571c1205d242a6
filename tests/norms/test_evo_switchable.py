"""EvoNorm and switchable norm: against the equations, in both modes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from tests._support import reference

RNG = np.random.default_rng(6)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def draw(*shape):
    return RNG.normal(0.5, 2.0, shape).astype(np.float32)


def drawn(norm, shape):
    params, state = norm.init(shape)
    return jax.tree.map(lambda v: draw(*v.shape), params), state


def statistics(x, mask=None):
    """Mean and variance of the instance, the layer and the batch, each broadcast to x."""
    out = []
    for axes in ((1, 2), (1, 2, 3), (0, 1, 2)):
        mean, var, _ = reference.moments(x, axes, mask)
        out.append((np.expand_dims(mean, axes), np.expand_dims(var, axes)))
    return out


def b0_reference(x, p, *, eps=1e-5, batch_var=None, mask=None):
    """Table 3 of the paper."""
    (_, own), _, (_, var) = statistics(x, mask)
    var = var if batch_var is None else batch_var
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.sqrt(var + eps), p.slope * x + np.sqrt(own + eps)) * p.scale + p.bias


def softmax(z):
    e = np.exp(np.asarray(z, np.float64) - np.max(z))
    return e / e.sum()


def switch_reference(x, p, *, eps=1e-5, batch=None, mask=None):
    """Equations 3 and 5 of the paper."""
    stats = statistics(x, mask)
    if batch is not None:
        stats[2] = batch
    mean = sum(w * m for w, (m, _) in zip(softmax(p.mean_weight), stats, strict=True))
    var = sum(w * v for w, (_, v) in zip(softmax(p.var_weight), stats, strict=True))
    return (np.asarray(x, np.float64) - mean) / np.sqrt(var + eps) * p.scale + p.bias


CASES = [
    (nj.evo_norm_b0(decay=0.75), b0_reference, lambda s: {"batch_var": np.asarray(s.var)}),
    (
        nj.switchable_norm(decay=0.75),
        switch_reference,
        lambda s: {"batch": (np.asarray(s.mean), np.asarray(s.var))},
    ),
]
each = pytest.mark.parametrize(
    "norm, equation, kept", CASES, ids=lambda v: getattr(v, "factory", "")
)


@each
def test_both_modes_are_the_equation(norm, equation, kept):
    x = draw(4, 3, 2, 5)
    params, state = drawn(norm, x.shape)
    y, after = norm.apply(params, state, x, stats="batch")
    np.testing.assert_allclose(y, equation(x, params), **CLOSE)
    mean, var, _ = reference.moments(x, (0, 1, 2))
    np.testing.assert_allclose(after.mean, 0.25 * mean, **CLOSE)
    np.testing.assert_allclose(after.var, 0.75 + 0.25 * var, **CLOSE)
    other = draw(2, 6, 3, 5)
    y, same = norm.apply(params, after, other, stats="running")
    np.testing.assert_allclose(y, equation(other, params, **kept(after)), **CLOSE)
    assert same is after


@each
@pytest.mark.parametrize("mask_shape", [(4, 3, 2, 1), (4, 1, 1, 1), (4, 3, 2, 5)])
def test_masks(norm, equation, kept, mask_shape):
    x = draw(4, 3, 2, 5)
    mask = RNG.random(mask_shape) < 0.6
    mask[0] = True
    params, state = drawn(norm, x.shape)
    y, after = norm.apply(params, state, x, stats="batch", mask=jnp.asarray(mask))
    want = equation(x, params, mask=mask)
    np.testing.assert_allclose(np.where(mask, y, 0), np.where(mask, want, 0), **CLOSE)
    mean, _, _ = reference.moments(x, (0, 1, 2), mask)
    np.testing.assert_allclose(after.mean, 0.25 * mean, **CLOSE)


@each
def test_over_devices_and_population(norm, equation, kept):
    x = draw(4, 3, 2, 5)
    params, state = drawn(norm, x.shape)
    halves = jnp.asarray(x).reshape(2, 2, 3, 2, 5)
    step = lambda v: norm.apply(params, state, v, stats="batch", axis_name="d")  # noqa: E731
    y, after = jax.vmap(step, axis_name="d")(halves)
    np.testing.assert_allclose(y.reshape(x.shape), equation(x, params), **CLOSE)
    mean, var, _ = reference.moments(x, (0, 1, 2))
    np.testing.assert_allclose(after.mean, np.stack([0.25 * mean] * 2), **CLOSE)
    exact = nj.population_statistics(norm, params, state, [x[:1], x[1:]])
    np.testing.assert_allclose(exact.mean, mean, **CLOSE)
    np.testing.assert_allclose(exact.var, var, **CLOSE)


@each
def test_several_batch_axes(norm, equation, kept):
    """Time before space: every frame is a sample of its own."""
    x = draw(2, 2, 3, 2, 5)
    from_flat = type(norm)(**{**vars(norm), "axes": (2, 3)})
    params, state = drawn(norm, x.shape)
    y, _ = from_flat.apply(params, state, x, stats="batch")
    want = equation(x.reshape(4, 3, 2, 5), params).reshape(x.shape)
    np.testing.assert_allclose(y, want, **CLOSE)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_s0_is_the_equation(groups):
    x = draw(4, 3, 2, 6)
    norm = nj.evo_norm_s0(groups=groups)
    p, state = drawn(norm, x.shape)
    assert state == ()
    wide = x.astype(np.float64)
    parts = np.split(wide, groups, axis=-1)
    std = [np.sqrt(v.var((1, 2, 3), keepdims=True) + 1e-5) * np.ones_like(v) for v in parts]
    want = wide / (1 + np.exp(-p.slope * wide)) / np.concatenate(std, -1) * p.scale + p.bias
    y, _ = norm.apply(p, state, x, stats="batch")
    np.testing.assert_allclose(y, want, **CLOSE)
    again, _ = norm.apply(p, state, x, stats="running")
    np.testing.assert_array_equal(y, again)


def test_s0_under_a_mask():
    x = draw(1, 4, 6)
    mask = jnp.array([[[True], [True], [False], [True]]])
    norm = nj.evo_norm_s0(groups=3)
    p, state = drawn(norm, x.shape)
    y, _ = norm.apply(p, state, x, stats="batch", mask=mask)
    want, _ = norm.apply(p, state, x[:, [0, 1, 3]], stats="batch")
    np.testing.assert_allclose(y[:, [0, 1, 3]], want, **CLOSE)


def test_switchable_starts_as_the_plain_mean_of_three():
    norm = nj.switchable_norm()
    params, _ = norm.init((1, 2, 2, 3))
    np.testing.assert_array_equal(params.mean_weight, np.ones(3))
    np.testing.assert_array_equal(params.var_weight, np.ones(3))


@pytest.mark.parametrize("which", ["instance", "layer", "batch"])
def test_switchable_can_be_each_of_the_three(which):
    x = draw(4, 3, 2, 5)
    peers = {
        "instance": nj.instance_norm(),
        "layer": nj.layer_norm(axes=(1, 2, 3), feature_axes=-1),
        "batch": nj.batch_norm(),
    }
    norm = nj.switchable_norm()
    params, state = norm.init(x.shape)
    logits = jnp.array([200.0 * (name == which) for name in peers])
    params = params._replace(mean_weight=logits, var_weight=logits)
    y, _ = norm.apply(params, state, x, stats="batch")
    start, kept = peers[which].init(x.shape)
    want, _ = peers[which].apply(start, kept, x, stats="batch")
    np.testing.assert_allclose(y, want, **CLOSE)


def test_decay_at_the_call():
    x = draw(4, 3, 2, 5)
    for norm in (nj.evo_norm_b0(), nj.switchable_norm()):
        params, state = norm.init(x.shape)
        _, after = norm.apply(params, state, x, stats="batch", hyper={"decay": 0.0})
        np.testing.assert_allclose(after.mean, reference.moments(x, (0, 1, 2))[0], **CLOSE)


def test_errors_say_what_to_write():
    for make in (nj.evo_norm_b0, nj.switchable_norm):
        with pytest.raises(ValueError, match="decay"):
            make(decay=1.5)
        with pytest.raises(ValueError, match="between the batch"):
            make().init((4, 5))
    with pytest.raises(TypeError, match=r"x\.real and x\.imag"):
        norm = nj.evo_norm_s0(groups=1)
        norm.apply(*norm.init((1, 2, 3)), jnp.ones((1, 2, 3), jnp.complex64), stats="batch")
    with pytest.raises(ValueError, match="write one of them"):
        nj.evo_norm_s0(groups=1, group_size=1)
