"""Says which kernel serves which norm on which platform, and imports it when it is first needed.

Norms ask for an operation by name. A program has the operation's plain twin on every platform
without a kernel in the table, and on GPUs if JAX has no Triton.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Literal

# The interpreter runs a kernel as it is made for a TPU.
Backend = Literal["gpu", "tpu", "interpreter"]
PLATFORMS: dict[str, Backend] = {"tpu": "tpu", "cuda": "gpu", "rocm": "gpu"}


@dataclasses.dataclass(frozen=True)
class Operation:
    """What several norms compute in the same way.

    Attributes:
        norms: functions of `normjax` that use it with `impl="kernel"`.
        module: file of this folder with the function that norms call, and its plain twin.
        kernels: for each backend that has one, the file with the kernel.
    """

    norms: tuple[str, ...]
    module: str
    kernels: Mapping[Backend, str]


OPERATIONS = {
    # Every set of values is a row.
    "rows": Operation(
        norms=("layer_norm", "rms_norm"),
        module="_layer_norm",
        kernels={"tpu": "_layer_norm", "gpu": "_layer_norm"},
    ),
    # Every set is a column, or several.
    "columns": Operation(
        norms=("batch_norm", "group_norm", "instance_norm"),
        module="_batch_norm",
        kernels={"tpu": "_batch_norm", "gpu": "_batch_norm"},
    ),
    # All time steps.
    "bn_lstm": Operation(
        norms=("recurrent.lstm",),
        module="_bn_lstm",
        kernels={"tpu": "_bn_lstm_tpu", "gpu": "_bn_lstm_gpu"},
    ),
}


def load(operation: str) -> ModuleType:
    """Import what norms call; Pallas comes with it, which takes longer than all of normjax."""
    return _file(OPERATIONS[operation].module)


def load_kernel(operation: str, backend: Backend) -> ModuleType:
    """Import the kernel of a backend."""
    return _file(OPERATIONS[operation].kernels["tpu" if backend == "interpreter" else backend])


def platforms(operation: str) -> dict[str, Backend]:
    """Return the platforms that have a kernel, and their backends."""
    kernels = OPERATIONS[operation].kernels
    found = {platform: backend for platform, backend in PLATFORMS.items() if backend in kernels}
    if "gpu" in found.values() and triton() is None:
        return {platform: backend for platform, backend in found.items() if backend != "gpu"}
    return found


@functools.cache
def triton() -> ModuleType | None:
    """Import Pallas's Triton backend, or return `None` where JAX has none: it is to be removed."""
    try:
        return importlib.import_module("jax.experimental.pallas.triton")
    except ImportError:
        return None


def _file(name: str) -> ModuleType:
    return importlib.import_module(f"normjax.kernels.{name}")
