"""Runs a function on the accelerator and in float64 on the CPU beside it, and compares the two."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def cpu():
    """The first CPU, which JAX has beside an accelerator with `JAX_PLATFORMS=cuda,cpu`."""
    return jax.devices("cpu")[0]


def made(function):
    """Arrays that a function makes, in NumPy, by the CPU: nothing is compiled for the device."""
    with jax.default_device(cpu()):
        return jax.device_get(jax.jit(function)())


def exact(function, *args):
    """A function's results in float64 on the CPU."""
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64) if a.dtype == np.float32 else a, args)
    with jax.enable_x64(True), jax.default_device(cpu()):
        return jax.device_get(jax.jit(function)(*wide))


def rounded(x):
    """An array as bfloat16 has it: in bfloat16, or in float64, for which it is a reference."""
    half = x.astype(jnp.bfloat16)
    return half.astype(x.dtype) if x.dtype == jnp.float64 else half


def close(got, want, limit):
    """Assert that leaves differ by at most `limit` times the largest value of each, or times 1."""
    far = {}
    got, want = jax.tree.leaves_with_path(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for (path, a), b in zip(got, want, strict=True):
        a, b = np.asarray(a).astype(np.float64), np.asarray(b).astype(np.float64)
        assert a.shape == b.shape, f"{jax.tree_util.keystr(path)}: {a.shape}, not {b.shape}"
        error = np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1)
        if not error <= limit:  # NaN too
            far[jax.tree_util.keystr(path)] = f"{error:.1e}"
    assert not far, f"off by more than {limit:.0e}: {far}"
