"""Properties that a norm, a weight method or a layer has: each of plain functions and trees."""

from __future__ import annotations

import functools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj


def scattered(tree, by, seed):
    """Random numbers of a size added to every leaf, so that equal start values differ."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), max(len(leaves), 1))
    return structure.unflatten(
        v + jnp.asarray(by, v.dtype) * jax.random.normal(k, v.shape, v.dtype)
        for v, k in zip(leaves, keys, strict=False)
    )


def same(a, b, **tolerance):
    """Assert two trees equal to a tolerance (default: float32 rounding)."""
    tolerance = tolerance or {"rtol": 2e-5, "atol": 2e-5}
    la, lb = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(la) == len(lb)
    for x, y in zip(la, lb, strict=True):
        np.testing.assert_allclose(
            np.asarray(x, np.float64), np.asarray(y, np.float64), **tolerance
        )


def finite(tree):
    """Assert that every number is finite."""
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()


def is_value(made):
    """Equal to its pickled copy, with one hash, and to what its repr says."""
    copy = pickle.loads(pickle.dumps(made))
    assert copy == made and hash(copy) == hash(made) and repr(copy) == repr(made)
    assert eval(repr(made), {k: getattr(nj, k) for k in nj.__all__}) == made


def traces_once(made, *calls):
    """Calls of a value and of its copy, with arrays of the same shapes, share one trace."""
    traces = []

    @functools.partial(jax.jit, static_argnames="made")
    def step(made, *args):
        traces.append(made)
        return made.apply(*args, stats="batch")

    for args in calls:
        step(pickle.loads(pickle.dumps(made)), *args)
    assert len(traces) == 1


def transforms_of(apply, many, state):
    """jit, vmap, scan and eval_shape of `apply(value, state)` give what plain calls give."""
    each = [jax.tree.map(lambda a, i=i: a[i], many) for i in range(len(jax.tree.leaves(many)[0]))]
    want = apply(each[0], state)
    same(jax.jit(apply)(each[0], state), want)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(apply, each[0], state), want)
    # The state keeps its structure, shapes and dtypes: it can be carried through a scan.
    chex.assert_trees_all_equal_shapes_and_dtypes(want[1], state)
    mapped, _ = jax.jit(jax.vmap(apply, in_axes=(0, None)))(many, state)
    same(mapped, jnp.stack([apply(value, state)[0] for value in each]))

    def body(state, value):
        y, state = apply(value, state)
        return state, y

    scanned = jax.lax.scan(body, state, many)
    outs = []
    for value in each:
        state, y = body(state, value)
        outs.append(y)
    same(scanned, (state, jnp.stack(outs)))


def gradients_of(loss, args, whole, atol=0.0):
    """Finite differences if `whole`, forward mode and Hessian-vector products, in float64."""
    keys = iter(jax.random.split(jax.random.key(5), 64))
    v = jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape, a.dtype), args)
    dot = lambda a, b: sum(  # noqa: E731
        jnp.sum(p * q) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    step, grad = 1e-5, jax.grad(loss)

    @jax.jit  # one program: a step at a time compiles hundreds of small ones
    def everything(args):
        ahead = jax.tree.map(lambda a, d: a + step * d, args, v)
        behind = jax.tree.map(lambda a, d: a - step * d, args, v)
        forward = jax.jvp(loss, (args,), (v,))[1], jax.jvp(grad, (args,), (v,))[1]
        two = (ahead, behind)
        return [loss(m) for m in two], [grad(m) for m in two], grad(args), forward

    (ahead, behind), (up, down), slope, (forward, hvp) = everything(args)
    finite((slope, hvp))
    same(forward, dot(slope, v), rtol=1e-9, atol=1e-10)
    if whole:
        same(dot(slope, v), (ahead - behind) / (2 * step), rtol=1e-6, atol=atol)
        differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), up, down)
        same(hvp, differences, rtol=1e-5, atol=1e-5)


def own_buffers(params, state, stateful):
    """No two arrays share a buffer, nor do those that accumulate."""
    trees = [(params, state)]
    if stateful:
        trees += [nj.accumulate_statistics(state, how) for how in ("pooled", "mean")]
    for tree in trees:
        leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
        assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
