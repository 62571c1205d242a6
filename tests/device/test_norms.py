"""Every norm on the accelerator: values, state, gradients, in both modes, masked, in bfloat16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import testing
from tests._support import accelerator
from tests._support.properties import scattered

pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("default")]

LIMIT, HALF = 1e-4, 3e-2


def start(sample):
    """Params away from their start values, a state that has measured a batch, input, cotangent."""
    params, state = sample.norm.init(sample.shape, key=jax.random.key(0))
    params = scattered(params, 0.2, 7)
    _, state = sample.norm.apply(params, state, sample.input(1) * 1.5 + 0.3, stats="batch")
    return params, state, sample.input(0), sample.input(2)


@pytest.mark.parametrize("sample", [pytest.param(s, id=s.name) for s in testing.SAMPLES])
def test_norm(sample):
    args = accelerator.made(lambda: start(sample))
    mask = accelerator.made(sample.mask)

    def one(params, state, x, dy, stats, mask=None):
        def apply(params, x):
            return sample.norm.apply(params, state, x, stats=stats, mask=mask)

        y, pull, state = jax.vjp(apply, params, x, has_aux=True)
        inside = True if mask is None else mask
        dy = jnp.where(inside, dy, jnp.zeros_like(dy))
        return jnp.where(inside, y, jnp.zeros_like(y)), pull(dy), state

    def told(params, state, x, dy):
        found = {"batch": one(params, state, x, dy, "batch")}
        if sample.norm.stateful:
            found["running"] = one(params, state, x, dy, "running")
        if mask is not None:
            found["masked"] = one(params, state, x, dy, "batch", mask)
        half = map(accelerator.rounded, (x, dy))
        return found, one(params, state, *half, "batch")

    (got, half), (want, half_want) = jax.jit(told)(*args), accelerator.exact(told, *args)
    accelerator.close(got, want, LIMIT)
    accelerator.close(half, half_want, HALF)
    if sample.norm.factory != "local_response_norm":  # its output has the width of its sums
        assert half[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["batch_norm", "decorrelated_batch_norm"])
def test_population_statistics(name):
    sample = next(s for s in testing.SAMPLES if s.name == name)
    params, state, x, other = accelerator.made(lambda: start(sample))

    def told(params, state, x, other):
        return nj.population_statistics(sample.norm, params, state, [x, other, x + 1])

    got = jax.jit(told)(params, state, x, other)
    accelerator.close(got, accelerator.exact(told, params, state, x, other), LIMIT)


def test_a_constant_batch_has_finite_gradients():
    norm = nj.batch_norm()
    params, state = norm.init((64, 4))
    x = jnp.full((64, 4), 1234.567)

    def loss(x):
        return jnp.sum(norm.apply(params, state, x, stats="batch")[0] ** 2)

    value, slope = jax.jit(jax.value_and_grad(loss))(x)
    assert np.isfinite(value) and np.isfinite(slope).all() and value < 1e-3
