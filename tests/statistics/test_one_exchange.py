"""Statistics of groups of rows that travel together, beside float64."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

import normjax as nj
from normjax.statistics import _one_exchange

RNG = np.random.default_rng(0)


def _hard(rows):
    """Columns: usual, far from 0, far and of mixed scale, one outlier, constant, 0, drifting."""
    usual = RNG.normal(size=rows)
    outlier = np.where(np.arange(rows) == 1, 1e4, usual)
    drift = np.linspace(-1e3, 1e3, rows) + 1e-2 * usual
    columns = [usual, 1e3 + 1e-2 * usual, -1e6 + usual, outlier, 0 * usual + 0.1, 0 * usual, drift]
    return np.stack(columns, axis=1).astype(np.float32)


@pytest.mark.parametrize("rows", [2, 12, 64, 100, 4096])
def test_groups_lose_no_digits(rows):
    x = _hard(rows)
    wide = x.astype(np.float64)
    mean, var = _one_exchange.by_groups(jnp.asarray(x))
    # One rounding of the mean, or of the spread where that is larger.
    near = 1.2e-7 * (np.abs(wide.mean(0)) + wide.std(0))
    assert (np.abs(np.asarray(mean, np.float64) - wide.mean(0)) <= near).all()
    np.testing.assert_allclose(var, wide.var(0), rtol=2e-6, atol=1e-12)


def test_overflow_and_values_that_are_not_finite_are_never_a_wrong_number():
    x = _hard(8)[:, :3]
    x[3, 0], x[5, 1], x[:, 2] = np.inf, np.nan, 3e19 * np.arange(8)
    _, var = _one_exchange.by_groups(jnp.asarray(x))
    assert np.isnan(var).all()
    # What one column holds reaches no other.
    x[:, 1] = _hard(8)[:, 0]
    assert np.isfinite(_one_exchange.by_groups(jnp.asarray(x))[1][1])


def test_rows_on_four_devices_are_one_exchange():
    rows = NamedSharding(Mesh(np.array(jax.devices()[:4]), ("data",)), PartitionSpec("data"))
    x = jax.device_put(_hard(16), rows)
    text = jax.jit(_one_exchange.by_groups).lower(x).compile().as_text()
    assert re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", text) == [
        "all-reduce"
    ]


def test_derivatives(x64):
    x = jnp.asarray(RNG.normal(size=(6, 2)))
    check_grads(jax.jit(_one_exchange.mean_and_var), (x,), order=2)


def test_a_tpu_measures_a_batch_by_groups_and_others_do_not():
    norm = nj.batch_norm()
    params, state = norm.init((1, 512))
    run = jax.jit(lambda x: norm.apply(params, state, x, stats="batch"))
    # Small, and as large as what other formulas measure elsewhere.
    for rows, groups in ((24, "8x3"), (1600, "64x25")):
        x = jax.ShapeDtypeStruct((rows, 512), jnp.float32)
        for platform in ("tpu", "cuda", "cpu"):
            module = jax.export.export(run, platforms=[platform])(x).mlir_module()
            assert (f"tensor<{groups}x512xf32>" in module) == (platform == "tpu")
