"""How large inputs may be: right up to the limits that docs/methods.md gives, NaN beyond them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import linen, testing

# The scale up to which gradients are right, of those that are not in the first row.
GRADIENTS = {"local_response_norm": 1e10, "mean_only_batch_norm": 1e36}
NO_SQUARES = {"dynamic_tanh", "dynamic_erf", "identity", "mean_only_batch_norm"}
# Of a set of one value the gradient is eps / x^3, which float32 takes from the difference of two
# numbers 1 / x; and of a tanh it is 0.
ROUNDED_AWAY = {"filter_response_norm_learned_eps", "dynamic_tanh", "dynamic_erf"}


def outputs_and_slopes(sample):
    def run(params, state, x):
        y, back = jax.vjp(lambda x: sample.norm.apply(params, state, x, stats="batch")[0], x)
        dy = jnp.cos(jnp.arange(x.size)).reshape(x.shape).astype(y.dtype)
        return y, back(dy)[0]

    return jax.jit(run)


def check(sample, scales):
    with jax.enable_x64(True):
        run = outputs_and_slopes(sample)
        params, state = sample.norm.init(sample.shape, jnp.float32, key=jax.random.key(0))
        wide = jax.tree.map(lambda v: v.astype(jnp.float64), (params, state))
        z = sample.input()
        limit = 1e18 / np.sqrt(z.size)
        for scale in scales:
            x = z / jnp.abs(z).max() * jnp.float32(scale)
            y, slope = map(np.asarray, run(params, state, x))
            exact, exact_slope = map(np.asarray, run(*wide, x.astype(jnp.float64)))
            square = sample.norm.factory not in NO_SQUARES
            if scale <= limit or (not square and scale <= 1e36):
                assert np.isfinite(y).all(), scale
            elif square and scale > 1e20:
                assert np.isnan(y).any(), scale
            if np.isfinite(y).all():  # in between a few sets may overflow
                np.testing.assert_allclose(y, exact, rtol=1e-3, atol=1e-3 * abs(exact).max())
            if sample.name not in ROUNDED_AWAY and scale <= min(
                limit, GRADIENTS.get(sample.norm.factory, limit)
            ):
                atol = 1e-2 * abs(exact_slope).max()
                np.testing.assert_allclose(slope, exact_slope, rtol=1e-2, atol=atol)


@pytest.mark.parametrize("name", ["layer_norm", "batch_norm", "rms_norm", "global_response_norm"])
def test_the_range_of_a_few(name):
    (sample,) = (s for s in testing.SAMPLES if s.name == name)
    check(sample, [1e9, 1e16, 1e22, 1e30])


@pytest.mark.slow
@pytest.mark.parametrize("sample", testing.SAMPLES, ids=lambda s: s.name)
def test_the_range_of_every_norm(sample):
    check(sample, [10.0**e for e in (*range(-38, 0, 4), *range(39))] + [3e38])


@pytest.mark.parametrize("impl", ["plain", "large", "kernel", "linen"])
def test_finite_rows_are_never_normalized_to_zero(impl):
    """1 / root of an infinite mean of squares is 0, so the output was 0 for scales near 1e22."""
    shape = (256, 512) if impl == "large" else (8, 16)
    x = jnp.asarray(1e22 * np.random.default_rng(0).normal(size=shape), jnp.float32)
    if impl == "linen":
        y = linen.LayerNorm().init_with_output(jax.random.key(0), x)[0]
    else:
        norm = nj.layer_norm(impl="kernel" if impl == "kernel" else "xla")
        y = norm.apply(*norm.init(shape), x, stats="batch")[0]
    assert np.isnan(y).all()
