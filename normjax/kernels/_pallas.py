"""Where a kernel runs, and how its arrays are cut into blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from normjax._internal._manual_axes import axis_type, varying

Backend = Literal["cpu", "gpu", "tpu"]
WIDEST = 2**14  # features of a row that one block holds


def backend() -> Backend:
    """Where the kernels are to run; on a CPU they are interpreted."""
    found = jax.default_backend()
    return "gpu" if found in ("gpu", "cuda", "rocm") else "tpu" if found == "tpu" else "cpu"


def supports(x: jax.Array, mask: Any = None) -> bool:
    """Whether values and dtype of x are a kernel's."""
    return mask is None and x.size > 0 and x.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)


def power_of_two(n: int) -> bool:
    """Whether Triton, which has no other blocks, takes a block this long."""
    return n & (n - 1) == 0


def pallas_call(
    kernel: Callable[..., None],
    *args: jax.Array,
    grid: tuple[int, ...],
    take: Sequence[tuple[tuple[int, ...], Callable[..., tuple[Any, ...]]]],
    give: Sequence[tuple[tuple[int, ...], Any, tuple[int, ...], Callable[..., tuple[Any, ...]]]],
    **options: Any,
) -> Any:
    """Run a kernel: `take` has each argument's block and its place, `give` shape, dtype and these.

    Inside `shard_map` outputs vary over the devices that any argument varies over.
    """
    if backend() == "gpu":  # Triton, and not Mosaic GPU, whose kernels are written another way
        options["compiler_params"] = triton.CompilerParams()
    how = axis_type(args[0])
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[pl.BlockSpec(block, place) for block, place in take],
        out_specs=[pl.BlockSpec(block, place) for _, _, block, place in give],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype, **how) for shape, dtype, _, _ in give],
        interpret=backend() == "cpu",
        **options,
    )(*args)


def applicable(args: Sequence[jax.Array]) -> bool:
    """Whether a kernel can run: JAX's interpreter does not go through a checked `shard_map`."""
    return backend() != "cpu" or not varying(args[0])
