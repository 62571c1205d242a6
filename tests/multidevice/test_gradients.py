"""The helper that reduces gradients, on the suite's own four devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import normjax as nj
from experiments.runtime import parallel
from experiments.runtime.parallel import AXIS, DeviceLayout, StepContext
from experiments.tasks import Batch, Scores
from normjax import recurrent
from normjax.state import _population

NORM = nj.batch_norm(decay=0.5, allow_single=True)  # a device may hold one row
RNG = np.random.default_rng(0)
CONTEXTS = [StepContext(AXIS, True), StepContext(AXIS, False)]


def scores_of(params, norm, batch, *, stats, train=True, axis_name=None):
    """A norm, a weight and a squared loss; a row of weight 0 counts for nothing."""
    x, weight, _ = batch
    mask = None if weight is None else (weight > 0)[:, None]
    y, norm = NORM.apply(params["norm"], norm, x, stats=stats, mask=mask, axis_name=axis_name)
    loss = ((y @ params["w"]) ** 2).sum(1)
    weight = jnp.ones(loss.shape) if weight is None else weight
    loss = jnp.where(weight > 0, loss * weight, 0.0)
    return Scores(loss.sum(), jnp.zeros(()), weight.sum()), norm


def problem(rows=8):
    params, norm = NORM.init((rows, 3))
    params = {"norm": params, "w": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)}
    x = jnp.asarray(RNG.normal(size=(rows, 3)) * [1, 2, 3] + 1, jnp.float32)
    return params, norm, x


def on_devices(params, norm, x, weight, context, devices=4, scores_of=scores_of):
    mesh = jax.make_mesh((devices,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))

    def run(params, norm, x, weight, key):
        return parallel.gradients(scores_of, params, norm, Batch(x, weight, key), context)

    key = jax.random.key(0)
    if context.checked:
        specs = (P(), P(), P(AXIS), P(AXIS), P())
        return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P()))(
            params, norm, x, weight, key
        )
    deal = lambda a: None if a is None else a.reshape(devices, -1, *a.shape[1:])  # noqa: E731
    mapped = jax.pmap(run, axis_name=AXIS, in_axes=(None, None, 0, 0, None), out_axes=None)
    return mapped(params, norm, deal(x), deal(weight), key)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "context", [StepContext(AXIS, True), StepContext(AXIS, False)], ids=["shard_map", "pmap"]
)
def test_a_gradient_is_that_of_the_whole_batch(context, padded):
    """Rows are weighed, not devices: with 5 of 8 rows real, one device has none."""
    params, norm, x = problem()
    weight = (jnp.arange(8) < 5).astype(jnp.float32) if padded else None
    key = jax.random.key(0)
    want = parallel.gradients(scores_of, params, norm, Batch(x, weight, key))
    got = on_devices(params, norm, x, weight, context)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    if padded:
        short = parallel.gradients(scores_of, params, norm, Batch(x[:5], None, key))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, short
        )


@pytest.mark.parametrize(
    "context",
    [StepContext(AXIS, True, False), StepContext(AXIS, False, False), StepContext(ghosts=4)],
    ids=["shard_map", "pmap", "jit"],
)
def test_statistics_of_each_device_are_ghost_batches(context):
    """Against one device after another by hand; what the norms keep is the average by rows."""
    params, norm, x = problem()
    weight = jnp.array([1, 1, 1, 0, 1, 1, 0, 0], jnp.float32)

    def by_hand(params):
        parts = [
            scores_of(params, norm, Batch(x[i : i + 2], weight[i : i + 2]), stats="batch")
            for i in (0, 2, 4, 6)
        ]
        return sum(s.loss for s, _ in parts) / 5, [state for _, state in parts]

    (loss, states), grads = jax.value_and_grad(by_hand, has_aux=True)(params)
    shares = np.array([2, 1, 2, 0]) / 5
    averaged = jax.tree.map(
        lambda *s: sum(w * np.asarray(a) for w, a in zip(shares, s, strict=True)), *states
    )
    if context.axis_name is None:
        got = parallel.gradients(
            scores_of, params, norm, Batch(x, weight, jax.random.key(0)), context
        )
    else:
        got = on_devices(params, norm, x, weight, context)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(got[0], loss)
    jax.tree.map(close, got[3], grads)
    jax.tree.map(close, got[2], averaged)


@pytest.mark.parametrize(
    "context", [StepContext(AXIS, True), StepContext(AXIS, False)], ids=["shard_map", "pmap"]
)
def test_the_noise_of_one_device_is_that_of_the_whole_batch(context):
    layer = recurrent.bn_lstm(4, max_steps=5, h0_noise=0.5, zoneout_h=0.3, dropout_h=0.4)

    def noisy(params, norm, batch, *, stats, train, axis_name=None):
        x, _, key = batch
        (y, _), norm = layer.apply(params, norm, x, stats=stats, key=key, axis_name=axis_name)
        return Scores((y**2).sum(), jnp.zeros(()), jnp.float32(len(x))), norm

    params, norm = layer.init(jax.random.key(1), 3)
    x = jnp.asarray(RNG.normal(size=(8, 5, 3)), jnp.float32)
    want = parallel.gradients(noisy, params, norm, Batch(x, None, jax.random.key(0)))
    got = on_devices(params, norm, x, None, context, 1, noisy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_noise_differs_between_devices():
    def noisy(params, norm, batch, *, stats, train, axis_name=None):
        return Scores(params * jax.random.normal(batch.key, (2,)).sum(), 0.0, jnp.float32(2)), norm

    mesh = jax.make_mesh((4,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(
        lambda p, x, k: parallel.gradients(
            noisy, p, {}, Batch(x, None, k), StepContext(AXIS, True)
        ),
        mesh=mesh,
        in_specs=(P(), P(AXIS), P()),
        out_specs=P(),
    )
    key = jax.random.key(3)
    loss, *_ = jax.jit(mapped)(jnp.float32(1), jnp.zeros(8), key)
    drawn = [jax.random.normal(jax.random.fold_in(key, i), (2,)).sum() for i in range(4)]
    np.testing.assert_allclose(loss, sum(drawn) / 8, rtol=1e-5)


def test_rows_are_filled_up_to_the_devices():
    layout = DeviceLayout("jit", 4)
    index, weight = layout.pad(np.arange(5))
    assert index.tolist() == [0, 1, 2, 3, 4, 4, 4, 4] and weight.tolist() == [1] * 5 + [0] * 3
    index, weight = layout.pad(np.arange(8).reshape(2, 4))
    assert index.shape == (2, 4) and weight is None
    with pytest.raises(ValueError, match=r"config.devices=9, but there are \d+; 0 takes all"):
        DeviceLayout("jit", 9)


@pytest.mark.slow
def test_population_statistics_wait_for_the_batch_before_on_cpu_devices(monkeypatch):
    """300 batches over 8 devices, all in flight, abort in XLA: see `DeviceLayout.block_on_cpu`."""
    ready = []

    def watched(layer, params, state, *rest):
        ready.append(all(leaf.is_ready() for leaf in jax.tree.leaves(state)))
        return one_pass(layer, params, state, *rest)

    one_pass = _population._accumulate_batch
    monkeypatch.setattr(_population, "_accumulate_batch", watched)
    layer = recurrent.bn_lstm(8, max_steps=50)
    params, state = layer.init(jax.random.key(0), 3)
    x = jnp.asarray(RNG.normal(size=(8, 50, 3)), jnp.float32)
    rows = DeviceLayout("jit", 4).mesh
    placed = jax.device_put(x, jax.sharding.NamedSharding(rows, P(AXIS)))
    estimated = nj.population_statistics(layer, params, state, [placed] * 4)
    assert ready == [True] * 4
    want = nj.population_statistics(layer, params, state, [x])
    for got, one in zip(*map(jax.tree.leaves, (estimated, want)), strict=True):
        np.testing.assert_allclose(got, one, rtol=2e-5, atol=1e-6)
