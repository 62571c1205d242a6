"""The batteries: each a function of one `Sample`, so that any norm can be put to them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import normjax as nj
from tests._support.properties import (
    finite,
    gradients_of,
    is_value,
    own_buffers,
    same,
    scattered,
    traces_once,
    transforms_of,
)

# Batteries that take seconds each. `make test` runs them for one norm of each path through the
# code, `make test-slow` for all others; the cheap ones are run for all by `make test`.
COSTLY = {"transforms_batch", "gradients_batch", "masks", "all_masked", "sharded", "bfloat16"}
COSTLY |= {"half_gradients", "one_trace"}
REPRESENTATIVES = {
    "batch_norm": "mean and variance over the batch, and a running average",
    "ghost_batch_norm": "the same of parts of the batch, which a reshape cuts",
    "iterative_norm": "covariances, and the root of a matrix",
    "layer_norm": "mean and variance of each sample",
    "group_norm": "the same of groups of features, over space",
    "rms_norm": "mean squares of each sample",
    "filter_response_norm": "mean squares over space, params of its own, a threshold",
    "evo_norm_b0": "statistics of the batch and of each sample in one formula",
    "switchable_norm": "three statistics, mixed by learned weights",
    "dynamic_tanh": "no statistics",
}
# The other norms, each with the representative whose statistics, axes and modes it shares; what
# its formula adds has tests of its own in tests/norms.
REPRESENTED_BY = {
    "mean_only_batch_norm": "batch_norm",
    "batch_renorm": "batch_norm",
    "decorrelated_batch_norm": "iterative_norm",
    "instance_norm": "group_norm",
    "evo_norm_s0": "group_norm",
    "scale_norm": "rms_norm",
    "l2_norm": "rms_norm",
    "local_response_norm": "rms_norm",
    "global_response_norm": "filter_response_norm",
    "dynamic_erf": "dynamic_tanh",
    "identity": "dynamic_tanh",
}

# What would test a program twice is left out of `batteries`. Norms without statistics have one
# program for both modes (`modes`); masks, float64 and stored statistics are no kernel's
# (tests/kernels), so that there `impl="kernel"` is the norm without it.
RUNNING = {"transforms_running", "gradients_running"}
NO_KERNEL = {"gradients_batch", "gradients_masked", "masks", "all_masked", "sharded"} | RUNNING
# What depends on a norm's formulas alone, and samples that have those of their factory's first one,
# over other axes or with other numbers.
FORMULA = {"gradients_running", "half_gradients"}
SAME_FORMULA = {
    *("batch_norm_conv", "batch_norm_per_activation", "batch_norm_channels_first"),
    *("batch_norm_unbiased", "batch_renorm_off", "ghost_batch_norm_uneven"),
    *("layer_norm_image", "group_norm_two_batch_axes"),
}


def batteries(sample):
    """The names of the batteries that say something about a norm which no other sample says."""
    doubled = set() if sample.norm.stateful else RUNNING
    doubled = doubled | FORMULA if sample.name in SAME_FORMULA else doubled
    if getattr(sample.norm, "impl", "xla") == "kernel":
        doubled = NO_KERNEL
    return [name for name in ALL if name not in doubled]


def with_repeats(samples):
    """Each sample, and whether one of its factory came before: `make test` runs less of those."""
    factories = set()
    for sample in samples:
        factory = (sample.norm if hasattr(sample, "norm") else sample.reparam).factory
        yield sample, factory in factories
        factories.add(factory)


def started(sample, dtype=jnp.float32, seed=0):
    """Params away from their start values, a state that has measured a batch, an input."""
    return _started(sample, jnp.dtype(dtype), seed, jax.config.jax_enable_x64)


@functools.cache
def _started(sample, dtype, seed, x64):
    @jax.jit  # one program for what are forty small ones otherwise
    def start():
        params, state = sample.norm.init(sample.shape, dtype, key=jax.random.key(seed))
        params = scattered(params, 0.2, seed + 7)
        warm = sample.input(seed + 1, dtype) * jnp.asarray(1.5, dtype) + jnp.asarray(0.3, dtype)
        _, state = sample.norm.apply(params, state, warm, stats="batch")
        return params, state, sample.input(seed, dtype)

    return start()


def weights(sample, dtype=jnp.float32):
    """Fixed random weights, so that a scalar loss sees every output differently."""
    return jax.random.normal(jax.random.key(42), sample.shape, dtype)


def loss_of(sample, stats, mask=None, dtype=jnp.float32):
    """A scalar loss of params and input; the state is a constant, as in training."""
    w = weights(sample, dtype)
    if mask is not None:
        w = jnp.where(mask, w, 0)

    def loss(params, x, state):
        y, _ = sample.norm.apply(params, state, x, stats=stats, mask=mask)
        return jnp.sum(w * y.astype(dtype))

    return loss


def value(sample):
    """A norm is a value: equality, hash, pickle, a repr that says how to make it."""
    is_value(sample.norm)


def one_trace(sample):
    """Equal norms and equal shapes share one trace."""
    params, state, x = started(sample)
    traces_once(sample.norm, (params, state, x), (params, state, x + 1))


def transforms(sample, stats):
    """Run `transforms_of` over inputs, with the params as they are."""
    params, state, x = started(sample)

    def apply(x, state):
        return sample.norm.apply(params, state, x, stats=stats)

    transforms_of(apply, jnp.stack([x, x * 0.5 + 1, -x]), state)
    loss = loss_of(sample, stats)
    grads = [jax.grad(f, argnums=(0, 1)) for f in (jax.checkpoint(loss), loss)]
    same(*jax.jit(lambda *args: [grad(*args) for grad in grads])(params, x, state))


def gradients(sample, stats, masked=False):
    """Run `gradients_of` over params and input; the state is a constant, as in training."""
    with jax.enable_x64(True):
        params, state, x = started(sample, jnp.float64)
        loss = loss_of(sample, stats, sample.mask() if masked else None, jnp.float64)
        whole = not (sample.detached and stats == "batch")
        gradients_of(lambda args: loss(*args, state), (params, x), whole, atol=1e-7)


def half(sample, dtype):
    """Half-precision input: output of its dtype, state at least float32, value near float32's."""
    params, state, x = started(sample)
    x = x.astype(dtype)
    y, new = sample.norm.apply(params, state, x, stats="batch")
    assert y.dtype == dtype
    for leaf in jax.tree.leaves(new):
        assert jnp.finfo(leaf.dtype).bits >= 32
    exact, kept = sample.norm.apply(params, state, x.astype(jnp.float32), stats="batch")
    # One rounding of the output, and nothing lost before it.
    eps = float(jnp.finfo(dtype).eps)
    same(y, exact, rtol=eps, atol=eps)
    same(new, kept)


def half_gradients(sample):
    """A gradient in half precision is the float64 one, rounded once, also where dy hardly varies.

    The float64 gradient is the one that `gradients` compares with finite differences.
    """
    with jax.enable_x64(True):
        params, state, x = started(sample)
        noise = weights(sample)

        @jax.jit
        def slopes(params, x, state, dy):
            apply = lambda p, x: sample.norm.apply(p, state, x, stats="batch")[0]  # noqa: E731
            y, pull = jax.vjp(apply, params, x)
            return pull(dy.astype(y.dtype))

        for dtype, level in ((jnp.bfloat16, 10), (jnp.bfloat16, 100), (jnp.float16, 100)):
            dy = (noise + level).astype(dtype)
            wide = jax.tree.map(
                lambda v: v.astype(jnp.float64), (params, x.astype(dtype), state, dy)
            )
            got = slopes(params, x.astype(dtype), state, dy)
            want = slopes(*wide)
            assert got[1].dtype == dtype
            # A rounding is half an eps; dy of 100 costs a float32 sum 1e-5 of what is left of it.
            exact = np.asarray(want[1])
            rounding = 1.5 * float(jnp.finfo(dtype).eps) / 2
            np.testing.assert_allclose(
                np.asarray(got[1], np.float64), exact, rtol=rounding, atol=1e-4 * abs(exact).max()
            )
            for a, b in zip(jax.tree.leaves(got[0]), jax.tree.leaves(want[0]), strict=True):
                b = np.asarray(b)
                np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=1e-4 * abs(b).max())


def masks(sample):
    """What is under the mask does not matter: not to the output, the state or the gradient."""
    if sample.mask_shape is None:
        return
    params, state, x = started(sample)
    mask = sample.mask()
    whole = jnp.broadcast_to(mask, sample.shape)
    for stats in ("batch", "running"):
        want = sample.norm.apply(params, state, x, stats=stats, mask=mask)
        grad = jax.jit(jax.grad(loss_of(sample, stats, mask), argnums=(0, 1)))
        grads = grad(params, x, state)
        finite((want, grads))
        for junk in (jnp.nan, jnp.inf, -1e30):
            dirty = jnp.where(whole, x, junk)
            got = sample.norm.apply(params, state, dirty, stats=stats, mask=mask)
            finite(got)
            same(jnp.where(whole, got[0], 0), jnp.where(whole, want[0], 0), rtol=0, atol=0)
            same(got[1], want[1], rtol=0, atol=0)
            same(grad(params, dirty, state), grads, rtol=0, atol=0)
        # A mask written out in full is the same mask.
        same(sample.norm.apply(params, state, x, stats=stats, mask=whole), want)
        # All True is no mask.
        true = jnp.ones(sample.mask_shape, bool)
        same(
            sample.norm.apply(params, state, x, stats=stats, mask=true),
            sample.norm.apply(params, state, x, stats=stats),
        )


def all_masked(sample):
    """A batch with nothing in it: finite value and gradient, statistics untouched."""
    if sample.mask_shape is None:
        return
    params, state, x = started(sample)
    mask = jnp.zeros(sample.mask_shape, bool)
    y, new = sample.norm.apply(params, state, x * jnp.nan, stats="batch", mask=mask)
    finite(y)
    same(new, state, rtol=0, atol=0)
    grad = jax.jit(jax.grad(loss_of(sample, "batch", mask), argnums=(0, 1)))
    finite(grad(params, x * jnp.nan, state))


def nonfinite_batch(sample):
    """A NaN or an infinity in a batch never enters what is kept, averaged or gathered."""
    params, state, x = started(sample)
    update = jax.jit(lambda s, x: sample.norm.apply(params, s, x, stats="batch")[1])
    for junk in (jnp.nan, jnp.inf):
        dirty = x.at[(0,) * x.ndim].set(junk)
        finite(update(state, dirty))
        if sample.norm.stateful:
            finite(update(nj.accumulate_statistics(state), dirty))


def constant(sample):
    """Constant input, and a batch of one: finite value and gradient."""
    params, state, x = started(sample)
    grad = jax.jit(jax.grad(loss_of(sample, "batch"), argnums=(0, 1)))
    for flat in (jnp.zeros_like(x), jnp.full_like(x, 3000.1)):
        y, new = sample.norm.apply(params, state, flat, stats="batch")
        finite((y, new))
        finite(grad(params, flat, state))


def moments_of_output(sample):
    """Centred and scaled where promised, on easy input and on a mean far from 0."""
    if sample.centres is None:
        return
    norm = sample.norm
    params, state = norm.init(sample.shape, key=jax.random.key(0))
    apply = jax.jit(lambda x: norm.apply(params, state, x, stats="batch")[0])
    for mean, std in ((0.0, 10.0), (1e4, 10.0), (100.0, 0.1)):
        x = sample.input() * std + mean
        y = apply(x)
        # In float64, of the numbers the norm was really given.
        exact = np.asarray(x, np.float64)
        centre = exact.mean(sample.centres, keepdims=True)
        spread = np.sqrt(((exact - centre) ** 2).mean(sample.centres, keepdims=True) + norm.eps)
        ulp = np.finfo(np.float32).eps * max(abs(mean), std) / spread.min()
        np.testing.assert_allclose(y, (exact - centre) / spread, rtol=1e-5, atol=1e-5 + ulp)


def invariances(sample):
    """Shift and scale of the data change nothing where the method says so."""
    if not (sample.shift_invariant or sample.scale_invariant):
        return
    with jax.enable_x64(True):
        params, state, x = started(sample, jnp.float64)
        apply = jax.jit(lambda x: sample.norm.apply(params, state, x, stats="batch")[0])
        if sample.shift_invariant:
            same(apply(x + 3.0), apply(x), rtol=1e-9, atol=1e-9)
        if sample.scale_invariant:
            same(apply(1e5 * x), apply(1e3 * x), rtol=1e-8, atol=1e-8)


def independence(sample):
    """Whether one sample's output depends on another's is as promised."""
    params, state, x = started(sample)
    apply = jax.jit(lambda x: sample.norm.apply(params, state, x, stats="batch")[0])
    y, z = apply(x), apply(x.at[1].add(1.0))
    depends = not np.allclose(y[0], z[0], rtol=1e-5, atol=1e-5)
    assert depends != sample.per_sample


def accumulation(sample):
    """Gathering over microbatches keeps the statistics of the full batch, exactly."""
    if not sample.norm.stateful:
        return
    params, state, x = started(sample)
    # A microbatch of one is normalized to the bias, and counts like any other.
    norm = sample.norm
    if hasattr(norm, "allow_single"):
        norm = dataclasses.replace(norm, allow_single=True)
    gather = jax.jit(lambda s, x: norm.apply(params, s, x, stats="batch")[1])
    full = gather(nj.accumulate_statistics(state), x)
    parts = nj.accumulate_statistics(state)
    for micro in (x[:1], x[1:3], x[3:]):
        parts = gather(parts, micro)
    same(nj.finalize_statistics(parts), nj.finalize_statistics(full), rtol=1e-5, atol=1e-6)


def no_half_stall(sample):
    """A running average fed half-precision data reaches its target."""
    if not sample.norm.stateful:
        return
    params, state = sample.norm.init(sample.shape, jnp.bfloat16, key=jax.random.key(0))
    x = (sample.input() + 2).astype(jnp.bfloat16)
    step = jax.jit(lambda s: sample.norm.apply(params, s, x, stats="batch")[1])
    for _ in range(1500):
        state = step(state)
    _, seen = sample.norm.apply(params, nj.accumulate_statistics(state), x, stats="batch")
    target = nj.finalize_statistics(seen, correction=getattr(sample.norm, "correction", 0))
    same(state, target, rtol=1e-4, atol=1e-4)


def sharded(sample):
    """Statistics are global: under jit by themselves, under shard_map and vmap by `axis_name`."""
    if sample.shape[0] % 4:
        return
    params, state, x = started(sample)
    mask = sample.mask()
    want = sample.norm.apply(params, state, x, stats="batch", mask=mask)
    live = True if mask is None else jnp.broadcast_to(mask, sample.shape)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    split = P() if mask is None or mask.shape[0] == 1 else P("d")
    put = lambda v, spec: jax.device_put(v, NamedSharding(mesh, spec))  # noqa: E731
    there = put(x, P("d")), None if mask is None else put(mask, split)

    def apply(params, state, x, mask, axis_name=None):
        return sample.norm.apply(params, state, x, stats="batch", mask=mask, axis_name=axis_name)

    def close(got):
        same(jnp.where(live, got[0], 0), jnp.where(live, want[0], 0))
        same(got[1], want[1])

    close(jax.jit(apply)(params, state, *there))
    if sample.cuts_batch:  # its groups are then cut from each device's share
        return
    with jax.set_mesh(jax.make_mesh((4,), ("d",))):  # explicit axes, which types tell
        there = jax.device_put(x, P("d")), None if mask is None else jax.device_put(mask, split)
        got, moved = jax.jit(apply)(params, state, *there)
        assert jax.typeof(got).sharding.spec[0] == "d"
        close((jax.device_get(got), moved))
    mapped = jax.shard_map(
        functools.partial(apply, axis_name="d"),
        mesh=mesh,
        in_specs=(P(), P(), P("d"), split),
        out_specs=(P("d"), P()),
    )
    close(jax.jit(mapped)(params, state, x, mask))

    def fold(v):
        return v.reshape(4, v.shape[0] // 4, *v.shape[1:])

    whole = mask is not None and split == P("d")
    mapped = jax.vmap(
        functools.partial(apply, axis_name="d"),
        in_axes=(None, None, 0, 0 if whole else None),
        axis_name="d",
    )
    y, new = jax.jit(mapped)(params, state, fold(x), fold(mask) if whole else mask)
    close((y.reshape(x.shape), jax.tree.map(lambda s: s[0], new)))


def modes(sample):
    """A norm that keeps no statistics is one program in both modes, forward and backward."""
    start = lambda key: (sample.norm.init(sample.shape, key=key), sample.input())  # noqa: E731
    (params, state), x = jax.eval_shape(start, jax.random.key(0))  # nothing is run

    def lowered(stats):
        def loss(params, x, state):
            return jnp.sum(jnp.sin(sample.norm.apply(params, state, x, stats=stats)[0]))

        return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, x, state).as_text()

    assert (lowered("running") == lowered("batch")) == (not sample.norm.stateful)


def distinct_buffers(sample):
    """A step may donate what `init` returned, so no two of its arrays share a buffer."""
    own_buffers(*sample.norm.init(sample.shape, key=jax.random.key(0)), sample.norm.stateful)


ALL = {
    "value": value,
    "one_trace": one_trace,
    "transforms_batch": lambda s: transforms(s, "batch"),
    "transforms_running": lambda s: transforms(s, "running"),
    "gradients_batch": lambda s: gradients(s, "batch"),
    "gradients_running": lambda s: gradients(s, "running"),
    "gradients_masked": lambda s: gradients(s, "batch", masked=True),
    "bfloat16": lambda s: half(s, jnp.bfloat16),
    "float16": lambda s: half(s, jnp.float16),
    "half_gradients": half_gradients,
    "masks": masks,
    "all_masked": all_masked,
    "nonfinite_batch": nonfinite_batch,
    "constant": constant,
    "moments_of_output": moments_of_output,
    "invariances": invariances,
    "independence": independence,
    "accumulation": accumulation,
    "sharded": sharded,
    "no_half_stall": no_half_stall,
    "modes": modes,
    "distinct_buffers": distinct_buffers,
}
