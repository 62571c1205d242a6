"""The same numbers for the same global batch, however the step is spread: jit, shard_map, pmap.

Rows have unequal lengths and sizes, and 13 of them fit no number of devices, so each batch is
padded, and on 8 devices one device has nothing but padding. The reference is the step as a plain
function of the whole batch. Each worker is a process of its own: device counts are fixed at start.
"""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests._support.models import MODELS

MODES = ("jit", "shard_map", "pmap")
# What is compared are two programs of one arithmetic: how well they are optimized is no matter.
FLAGS = "--xla_backend_optimization_level=0"


def start(out, modes, devices, dtype, steps, *rest, here=8):
    words = ["-m", "tests.multidevice.worker", out, ",".join(modes), devices, dtype, steps, *rest]
    settings = {"JAX_NUM_CPU_DEVICES": str(here), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**os.environ, **settings},
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def finish(*workers):
    for worker in workers:
        _, errors = worker.communicate(timeout=550)
        assert worker.returncode == 0, errors[-2000:]


def one_process(
    folder: pathlib.Path, devices: str, dtype: str, steps: int
) -> dict[str, np.ndarray]:
    out = folder / "one.npz"
    finish(start(out, ["plain", *MODES], devices, dtype, steps))
    return dict(np.load(out))


def compare(results, reference, dtype, devices):
    """Everything that a run leaves, against the plain step's, to the tolerance of the dtype."""
    tolerance = 1e-5 if dtype == "float32" else 1e-8
    for model in MODELS:
        plain = f"{model}/plain/0/"
        names = [k.removeprefix(plain) for k in reference if k.startswith(plain)]
        assert {name.partition("/")[0] for name in names} == {"grad", "end", "losses"}
        for mode in MODES:
            for count in devices:
                for name in names:
                    got, want = results[f"{model}/{mode}/{count}/{name}"], reference[plain + name]
                    assert got.dtype == want.dtype == dtype
                    # A gradient's entries are sums that cancel: the scale is the tensor's.
                    scale = max(np.abs(want).max(), 1e-3)
                    np.testing.assert_allclose(
                        got / scale, want / scale, atol=tolerance, err_msg=f"{mode} {count} {name}"
                    )
        moved = reference[f"{model}/plain/0/losses"]
        assert abs(moved[-1] - moved[0]) > 1e-2  # the steps are no formality


@pytest.mark.slow
def test_three_ways_over_four_devices(tmp_path):
    results = one_process(tmp_path, "4", "float32", 5)
    compare(results, results, "float32", [4])


@pytest.mark.slow
def test_three_ways_over_every_number_of_devices(tmp_path):
    """A hundred steps."""
    results = one_process(tmp_path, "1,2,4,8", "float64", 100)
    compare(results, results, "float64", [1, 2, 4, 8])


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
    """Two devices each, over gloo on the loopback."""
    reference = tmp_path / "reference.npz"
    finish(start(reference, ["plain"], "0", "float64", 10, here=1))
    out, port = tmp_path / "two.npz", free_port()
    words = (MODES, "4", "float64", 10, port, 2)
    finish(*(start(out, *words, process, here=2) for process in (0, 1)))
    compare(dict(np.load(out)), dict(np.load(reference)), "float64", [4])
