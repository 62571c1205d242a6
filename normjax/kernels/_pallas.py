"""Calls Pallas kernels: chooses the backend, cuts arrays into blocks, interprets on a CPU."""

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
    """Return the kind of device that kernels run on; on a CPU they are interpreted."""
    name = jax.default_backend()
    return "gpu" if name in ("gpu", "cuda", "rocm") else "tpu" if name == "tpu" else "cpu"


def supports(x: jax.Array, mask: Any = None) -> bool:
    """Whether a kernel can be used for x: no mask, not empty, a real dtype of at most 32 bits."""
    return mask is None and x.size > 0 and x.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)


def power_of_two(n: int) -> bool:
    """Whether `n` is a power of two; Triton has no other block sizes."""
    return n & (n - 1) == 0


def pallas_call(
    kernel: Callable[..., None],
    *args: jax.Array,
    grid: tuple[int, ...],
    take: Sequence[tuple[tuple[int, ...], Callable[..., tuple[Any, ...]]]],
    give: Sequence[tuple[tuple[int, ...], Any, tuple[int, ...], Callable[..., tuple[Any, ...]]]],
    **options: Any,
) -> Any:
    """Run a kernel over a grid of blocks.

    Inside `shard_map` outputs vary over the devices that any argument varies over.

    Args:
        kernel: function of references to the blocks of the arguments and then of the outputs.
        *args: arrays, all of which vary over the same devices.
        grid: number of blocks along each axis of the grid.
        take: for each argument, the shape of its block and its index map, from a position in the
            grid to the block's position in the array.
        give: for each output, its shape and dtype, then the shape of its block and its index map.
        **options: other arguments of `pallas_call`.

    Returns:
        The outputs.
    """
    if backend() == "gpu":  # Triton: kernels for Mosaic GPU are written in another way
        options["compiler_params"] = triton.CompilerParams()
    axes = axis_type(args[0])
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[pl.BlockSpec(block, index_map) for block, index_map in take],
        out_specs=[pl.BlockSpec(block, index_map) for _, _, block, index_map in give],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype, **axes) for shape, dtype, _, _ in give],
        interpret=backend() == "cpu",
        **options,
    )(*args)


def applicable(args: Sequence[jax.Array]) -> bool:
    """Whether a kernel can run here: JAX cannot interpret one inside a checked `shard_map`."""
    return backend() != "cpu" or not varying(args[0])
