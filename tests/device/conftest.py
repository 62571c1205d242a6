"""Tests of programs as an accelerator runs them: `JAX_PLATFORMS=cuda,cpu pytest tests/device`.

Each test compares with float64, of NumPy or on the CPU beside the accelerator. Where there is no
accelerator they are skipped; with NORMJAX_REHEARSE set, they run on the CPU, kernels interpreted.
"""

from __future__ import annotations

import contextlib
import os

import jax
import pytest

from normjax.kernels import _pallas

REHEARSE = bool(os.environ.get("NORMJAX_REHEARSE"))


def pytest_collection_modifyitems(items):
    """Skip these tests where there is no accelerator."""
    here = [item for item in items if item.get_closest_marker("device")]
    if here and not REHEARSE and jax.default_backend() == "cpu":
        why = "no accelerator: JAX_PLATFORMS=cuda,cpu (or tpu,cpu) where there is one"
        for item in here:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(autouse=True)
def exact_products():
    """Compute products in float32, which TF32 is not; interpret kernels when rehearsed."""
    on_cpu = jax.default_backend() == "cpu"
    interpreted = _pallas.interpreted() if on_cpu else contextlib.nullcontext()
    with jax.default_matmul_precision("highest"), interpreted:
        yield
