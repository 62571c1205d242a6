"""What `import normjax` costs and brings, each seen from a fresh interpreter."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

HEAVY = ("flax", "optax", "matplotlib", "tensorflow", "tensorflow_datasets", "orbax", "grain")


def _python(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("module", ["normjax", "normjax.recurrent", "normjax.analysis"])
def test_the_core_brings_no_framework(module):
    code = f"import {module}, sys; print(*sorted(m.split('.')[0] for m in sys.modules))"
    found = set(_python("-c", code).stdout.split())
    assert found.isdisjoint(HEAVY)


def test_it_imports_without_a_warning():
    _python("-W", "error", "-c", "import normjax, normjax.recurrent, normjax.linen")


def test_its_own_time_is_small():
    """Not a benchmark: a bound so wide that only a heavy import would break it."""
    lines = _python("-X", "importtime", "-c", "import jax, normjax").stderr.splitlines()
    cumulative = {}
    for line in lines:
        match = re.match(r"import time:\s+\d+ \|\s+(\d+) \|\s*(\S+)$", line)
        if match:
            cumulative[match[2]] = int(match[1]) / 1e6
    # After jax, what normjax adds is itself, jaxtyping and a few of the standard library.
    assert cumulative["normjax"] < max(0.3, cumulative["jax"])


def test_public_names_are_documented():
    import normjax
    from normjax import analysis, linen, recurrent

    for module in (normjax, analysis, linen, recurrent):
        for name in module.__all__:
            value = getattr(module, name)
            assert not callable(value) or (value.__doc__ or "").strip(), name
