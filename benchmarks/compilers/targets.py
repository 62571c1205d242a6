"""The machines that are compiled for, and the environments that hold their compilers."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENTS = pathlib.Path(os.environ.get("NORMJAX_ACCELERATORS", ROOT / ".accelerators"))
NAMES = ("tpu", "h100")
TPU = "v6e:2x2"  # four chips; a program is compiled for one of them
SLICES = {"4x4": "v5e:4x4", "8x8": "v5e:8x8"}


def python(name: str) -> pathlib.Path:
    """The interpreter of the environment that has a target's compiler."""
    return ENVIRONMENTS / {"tpu": "tpu", "h100": "gpu"}[name] / "bin" / "python"


def environment() -> dict[str, str]:
    """The variables with which the TPU's compiler asks for no machine."""
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


def devices(name: str) -> Any:
    """The devices of a target: `tpu`, `h100`, or one of `SLICES`."""
    os.environ.update(environment())
    import jax
    from jax.experimental import topologies

    jax.devices()  # finds the plugins
    if name == "h100":
        config = (ROOT / "benchmarks" / "targets" / "h100.txtpb").read_text()
        kind = {"platform": "cuda", "topology_name": "1x1x1", "topology": "1x1x1"}
        return topologies.get_topology_desc(**kind, target_config=config).devices
    topology = SLICES.get(name, TPU)
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def compiler(name: str) -> Callable[..., Any]:
    """Return `compile(function, *args)` for one chip; the arguments are arrays or their types.

    `options` are XLA's, by name.
    """
    first = devices(name)[0]  # before JAX is imported, which reads the environment
    import jax

    place = jax.sharding.SingleDeviceSharding(first)

    def compiled(function: Callable[..., Any], *args: Any, options: Any = None) -> Any:
        types = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), args)
        return jax.jit(function).lower(*types).compile(options)

    return compiled
