"""Strict numerics for every test: what a user's own strict settings would catch, we catch first."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import importlib.util
import inspect
import os
import pathlib
import shutil

# Before jax starts: device count is fixed then.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Most of a test's time is compiling programs that run once. LLVM's first level has vectors and
    # fused multiplication as its third has; XLA's own passes, fusion among them, and its way to
    # emit loops are those of users there. Flags that XLA does not know end the process, and the
    # last is gone from newer ones.
    flags = ["xla_cpu_parallel_codegen_split_count=1"]
    if not os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS"):  # which is level 0
        flags.append("xla_backend_optimization_level=1")
    elif importlib.metadata.version("jaxlib").startswith("0.10."):
        flags.append("xla_cpu_use_fusion_emitters=false")
    for flag in flags:
        os.environ["XLA_FLAGS"] += f" --{flag}" if flag not in os.environ["XLA_FLAGS"] else ""
os.environ.setdefault("MPLBACKEND", "agg")

import jaxtyping

# Shapes in public signatures are checked while the tests run, and cost nothing elsewhere. A machine
# with an accelerator may lack the checker: there the tests in tests/device do without it.
CHECKED = importlib.util.find_spec("beartype") is not None
if not CHECKED and os.environ["JAX_PLATFORMS"] == "cpu" and "NORMJAX_REHEARSE" not in os.environ:
    raise ImportError("the tests need beartype: pip install beartype")
_hook = jaxtyping.install_import_hook("normjax", "beartype.beartype" if CHECKED else None)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# All of the library under the hook; frameworks' own packages are left alone.
import normjax.analysis  # noqa: E402
import normjax.linen  # noqa: E402
import normjax.nnx  # noqa: E402
import normjax.recurrent  # noqa: E402, F401

_hook.uninstall()

CACHE_LIMIT = 2 * 2**30  # bytes of compiled programs in the cache; above, it starts empty

# `make test` sets JAX_DISABLE_MOST_OPTIMIZATIONS: XLA then compiles a third faster, to slower
# programs, which is what these small ones want. Plain `pytest` and `make test-slow` do not: theirs
# are optimized as above.
QUICK = jax.config.read("jax_disable_most_optimizations")


def pytest_report_header():
    """Say what is compared on, and what is not checked."""
    where = f"{os.environ['JAX_PLATFORMS']}, jax {jax.__version__}"
    return where if CHECKED else f"{where}; without beartype: shapes in signatures are not checked"


def pytest_configure(config):
    """Keep what XLA compiles: most of a test's time is that, and the programs are the same ones.

    All workers and later runs share it (`.pytest_cache/d/xla`, `pytest --cache-clear` empties it).
    """
    cache = getattr(config, "cache", None)
    if cache is None:  # -p no:cacheprovider
        return
    folder = cache.mkdir("xla")
    if (
        not hasattr(config, "workerinput")
        and sum(f.stat().st_size for f in folder.iterdir()) > CACHE_LIMIT
    ):
        shutil.rmtree(folder)
        folder.mkdir()
    for setting, value in {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(setting, value)
        os.environ[setting.upper()] = str(value)  # of commands that tests start, again and again


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist there is no such hook
def pytest_xdist_auto_num_workers(config):
    """With `-n auto`, one worker more than CPUs for slow tests: many wait for other processes."""
    return (os.cpu_count() or 1) + 1 if config.getoption("markexpr") == "slow" else None


def pytest_collection_modifyitems(items):
    """Run the tests marked `optimized` last: switching the optimizer empties JAX's caches."""
    items.sort(key=lambda item: item.get_closest_marker("optimized") is not None)


def _share_mlir_contexts():
    """Lower all programs in one MLIR context: JAX makes one for each, a fifth of a test's time.

    JAX has no switch for it. Where its internals have changed, tests are slower and no more.
    """
    from jax._src.interpreters import mlir

    make = getattr(mlir, "make_ir_context", None)
    if make is not None:
        mlir.make_ir_context = functools.cache(make)


if os.environ["JAX_PLATFORMS"] == "cpu":
    _share_mlir_contexts()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Give a test marked `optimized` XLA's optimizer, also where `make test` leaves it out."""
    plain = QUICK and item.get_closest_marker("optimized") is None
    if jax.config.read("jax_disable_most_optimizations") != plain:
        jax.config.update("jax_disable_most_optimizations", plain)
        jax.clear_caches()  # JAX would use what it compiled the other way


@pytest.fixture(scope="session", autouse=True)
def imports_are_no_garbage():
    """Leave what is imported out of Python's collections, such as the one after each checkpoint."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def strict_numerics(request):
    """Strict dtype promotion and no rank promotion; Optax and the peers need the standard."""
    if request.node.get_closest_marker("standard_numerics"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def unchecked(function):
    """A function without the suite's type checker, also of what it calls: a user's mistake."""

    @functools.wraps(function)
    def call(*args, **keywords):
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return inspect.unwrap(function)(*args, **keywords)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    return call


@pytest.fixture(autouse=True)
def same_draws(request):
    """A module's `RNG` starts anew for each test, whatever ran before it in this process."""
    rng = getattr(request.module, "RNG", None)
    if rng is not None:
        rng.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of real data sets; tests that need it skip where it is absent."""
    folder = os.environ.get("NORMJAX_DATA_DIR")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("real data sets are absent: set NORMJAX_DATA_DIR to their folder")
    return pathlib.Path(folder)
