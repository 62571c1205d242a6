"""Training steps on one accelerator under `jit`, `shard_map` and `pmap` against float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import normjax as nj
from normjax import recurrent
from tests._support import accelerator

pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("default")]

B, T, F, H, CLASSES = 16, 5, 3, 8, 4
LAYER, NORM = recurrent.bn_lstm(H, T), nj.batch_norm()


def start():
    k1, k2 = jax.random.split(jax.random.key(0))
    params, state = LAYER.init(k1, F)
    norm, norm_state = NORM.init((B, H))
    params = {"layer": params, "norm": norm, "head": 0.3 * jax.random.normal(k2, (H, CLASSES))}
    return params, {"layer": state, "norm": norm_state}


def step(params, state, x, labels, axis_name=None):
    """A step of SGD on the loss of all devices."""

    def loss(params):
        how = {"stats": "batch", "axis_name": axis_name}
        (_, carry), layer = LAYER.apply(params["layer"], state["layer"], x, **how)
        h, norm = NORM.apply(params["norm"], state["norm"], carry.h, **how)
        log = jax.nn.log_softmax(h @ params["head"])
        mean = -jnp.mean(jnp.sum(log * jax.nn.one_hot(labels, CLASSES, dtype=log.dtype), 1))
        mean = mean if axis_name is None else jax.lax.pmean(mean, axis_name)
        return mean, {"layer": layer, "norm": norm}

    (value, state), slopes = jax.value_and_grad(loss, has_aux=True)(params)
    params = jax.tree.map(lambda p, g: p - jnp.asarray(0.5, p.dtype) * g, params, slopes)
    return params, state, value


def by_shard_map():
    mesh = jax.make_mesh(
        (1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]
    )
    specs = (P(), P(), P("d"), P("d"))
    run = functools.partial(step, axis_name="d")
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P()))


def by_pmap():
    run = jax.pmap(functools.partial(step, axis_name="d"), axis_name="d", devices=jax.devices()[:1])
    return lambda *args: jax.tree.map(lambda v: v[0], run(*jax.tree.map(lambda v: v[None], args)))


MODES = {"jit": lambda: jax.jit(step), "shard_map": by_shard_map, "pmap": by_pmap}


@pytest.mark.parametrize("mode", MODES)
def test_two_steps(mode):
    params, state = accelerator.made(start)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, F)).astype(np.float32)
    labels = rng.integers(0, CLASSES, B).astype(np.int32)
    run = MODES[mode]()
    got = run(*run(params, state, x, labels)[:2], x, labels)

    def twice(params, state, x, labels):
        return step(*step(params, state, x, labels)[:2], x, labels)

    accelerator.close(jax.device_get(got), accelerator.exact(twice, params, state, x, labels), 1e-4)


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
@pytest.mark.parametrize("model", ["bn_lstm", "cnn"])
def test_steps_of_the_experiments(model, mode):
    pytest.importorskip("ml_collections")
    from tests._support import models
    from tests.multidevice import worker

    plain, split = (
        worker.train(models.MODELS[model], *how, jnp.dtype("float32"), 2)
        for how in (("plain", 0), (mode, 1))
    )
    accelerator.close(split, plain, 2e-4)
