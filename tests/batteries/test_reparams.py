"""Every weight method of `normjax.testing` through every battery."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import testing
from tests._support.check import with_repeats
from tests._support.properties import (
    finite,
    gradients_of,
    is_value,
    same,
    scattered,
    traces_once,
    transforms_of,
)


def started(sample, dtype=jnp.float32, seed=0):
    """Params away from their start values, and a state that has moved."""
    return _started(sample, jnp.dtype(dtype), seed, jax.config.jax_enable_x64)


@functools.cache
def _started(sample, dtype, seed, x64):
    @jax.jit  # one program for what are dozens of small ones otherwise
    def start():
        params, state = sample.reparam.init(sample.weight(seed, dtype))
        params = scattered(params, 0.2, seed + 7)
        return params, sample.reparam.apply(params, state, stats="batch")[1]

    return start()


def settled(sample, params, state, steps=400):
    """The state after so many updates that it no longer moves."""
    step = jax.jit(lambda s: sample.reparam.apply(params, s, stats="batch")[1])
    for _ in range(steps if sample.reparam.stateful else 0):
        state = step(state)
    return state


def loss_of(sample, state, stats, dtype=jnp.float32):
    c = jax.random.normal(jax.random.key(42), sample.shape, dtype)
    return lambda params: jnp.sum(c * sample.reparam.apply(params, state, stats=stats)[0])


def value(sample):
    is_value(sample.reparam)
    is_value(nj.reparam(nj.cosine_dense(3), {"kernel": sample.reparam}))


def unchanged(sample):
    w = sample.weight()
    params, state = sample.reparam.init(w)
    for stats in ("batch", "running"):
        got, _ = sample.reparam.apply(params, state, stats=stats)
        assert np.allclose(got, w, rtol=1e-5, atol=1e-6) == sample.unchanged


def half(sample):
    """Half-precision weights: theirs is the dtype of the output, at least float32 all else."""
    for dtype in (jnp.bfloat16, jnp.float16):
        w = sample.weight(0, dtype)
        params, state = sample.reparam.init(w)
        got, state = sample.reparam.apply(params, state, stats="batch")
        assert got.dtype == params.v.dtype == dtype and got.shape == w.shape
        for leaf in jax.tree.leaves((params._replace(v=None), state)):
            assert jnp.finfo(leaf.dtype).bits >= 32
        wide = params._replace(v=params.v.astype(jnp.float32))
        exact, _ = sample.reparam.apply(wide, state, stats="running")
        eps = float(jnp.finfo(dtype).eps)
        same(got, exact, rtol=eps, atol=eps / 100)
        if sample.unchanged:
            same(got, w, rtol=eps, atol=eps / 100)
        # A whole model cast to half precision, gains too.
        cast = jax.tree.map(lambda a, d=dtype: a.astype(d), params)
        assert sample.reparam.apply(cast, state, stats="batch")[0].dtype == dtype


def transforms(sample):
    params, state = started(sample)
    many = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a, a + 1]), params)
    same(jax.jit(jax.vmap(sample.reparam.init))(many.v)[0].v, many.v)
    for stats in ("batch", "running"):
        transforms_of(functools.partial(sample.reparam.apply, stats=stats), many, state)
        loss = loss_of(sample, state, stats)
        grads = [jax.grad(f) for f in (jax.checkpoint(loss), loss)]
        same(*jax.jit(lambda params, grads=grads: [grad(params) for grad in grads])(params))
    same(sample.reparam.apply(params, state, stats="running")[1], state, rtol=0, atol=0)


def gradients(sample):
    with jax.enable_x64(True):
        params, state = started(sample, jnp.float64)
        # Singular vectors carry no gradient, rightly so once they have settled.
        state = settled(sample, params, state)
        loss = loss_of(sample, state, "running", jnp.float64)
        gradients_of(loss, params, not sample.detached)


def free_scale(sample):
    """The size of v has no say, so the gradient is orthogonal to v."""
    if sample.free is None:
        return
    with jax.enable_x64(True):
        params, state = started(sample, jnp.float64)
        if isinstance(params, nj.DirectionAndGain):
            factor = jnp.exp(jax.random.normal(jax.random.key(1), sample.free, jnp.float64))
            factor = jnp.broadcast_to(factor, sample.shape)
            want = sample.reparam.apply(params, state, stats="running")[0]
            moved = params._replace(v=params.v * factor)
            same(sample.reparam.apply(moved, state, stats="running")[0], want, rtol=1e-7)
        grad = jax.jit(jax.grad(loss_of(sample, state, "running", jnp.float64)))(params)
        axes = tuple(i for i, s in enumerate(sample.free) if s == 1 or sample.shape[i] == 1)
        inner = jnp.sum(grad.v * params.v, axes)
        same(inner, jnp.zeros_like(inner), rtol=0, atol=1e-8)


def hard_weights(sample):
    """Zero, constant, huge and tiny weights, at the start and later: finite, with gradient."""
    params, state = started(sample)
    slopes = [jax.jit(jax.grad(loss_of(sample, state, stats))) for stats in ("batch", "running")]
    flats = (jnp.zeros(sample.shape), jnp.full(sample.shape, 3.1), sample.weight() * 1e20)
    for flat in (*flats, sample.weight() * 1e-22):
        first, own = sample.reparam.init(flat)
        w, own = sample.reparam.apply(first, own, stats="batch")
        finite((first, w, own))
        if sample.unchanged:
            same(w, flat, rtol=1e-5, atol=1e-30)
        later = params._replace(v=flat)
        for stats, slope in zip(("batch", "running"), slopes, strict=True):
            finite(sample.reparam.apply(later, state, stats=stats))
            finite(slope(first._replace(v=flat)))
    zero = params._replace(v=jnp.zeros(sample.shape))
    finite(jax.jvp(loss_of(sample, state, "batch"), (zero,), (params,)))
    # A broken weight never enters what is kept.
    broken = params._replace(v=params.v.at[(0,) * len(sample.shape)].set(jnp.nan))
    finite(sample.reparam.apply(broken, state, stats="batch")[1])


def one_trace(sample):
    traces_once(sample.reparam, started(sample), started(sample))


def stored(sample):
    """What is stored is not written to; a second call gives the first one's weight."""
    params, state = started(sample)
    before = jax.tree.map(np.array, params)
    first, _ = sample.reparam.apply(params, state, stats="batch")
    same(params, before, rtol=0, atol=0)
    again, _ = sample.reparam.apply(params, state, stats="batch")
    same(first, again, rtol=0, atol=0)
    # An optimizer step on what is stored is seen by the next weight.
    grad = jax.grad(loss_of(sample, state, "batch"))(params)
    stepped = jax.tree.map(lambda p, g: p - 0.1 * g, params, grad)
    assert not np.allclose(sample.reparam.apply(stepped, state, stats="batch")[0], first)


def mode(sample):
    params, state = started(sample)
    with pytest.raises(ValueError, match='write stats="batch"'):
        # Behind the checker of the tests, as users meet it.
        inspect.unwrap(type(sample.reparam).apply)(sample.reparam, params, state, stats=False)
    with pytest.raises(TypeError, match="astype"):
        sample.reparam.init(jnp.ones(sample.shape, jnp.int32))


ALL = {
    f.__name__: f
    for f in (
        value,
        unchanged,
        half,
        transforms,
        gradients,
        free_scale,
        hard_weights,
        one_trace,
        stored,
        mode,
    )
}


def cases():
    """Of several samples of one factory, `make test` runs what is costly with the first only."""
    for sample, again in with_repeats(testing.REPARAMS):
        for battery in ALL:
            slow = again and battery not in ("value", "unchanged", "mode")
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(sample, battery, id=f"{sample.name}-{battery}", marks=marks)


@pytest.mark.parametrize(("sample", "battery"), list(cases()))
def test_reparam(sample, battery):
    ALL[battery](sample)


def test_every_factory_is_in_the_list():
    made = {s.reparam.factory for s in testing.REPARAMS}
    public = {
        name
        for name in nj.__all__
        if getattr(getattr(nj, name), "__annotations__", {}).get("return")
        in ("Reparam", nj.Reparam)
    }
    assert public and public <= made


def test_names_are_unique():
    names = [s.name for s in testing.REPARAMS]
    assert len(set(names)) == len(names)
