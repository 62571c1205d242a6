"""Calls Pallas kernels: says where they take an array, cuts it into blocks, interprets for tests.

A program has a kernel on the platforms that `platforms` returns, and the kernel's plain twin on all
others: which of them is chosen when it is lowered (see `normjax._internal._by_platform`).
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from normjax._internal._manual_axes import axis_type, varying
from normjax.kernels import _registry
from normjax.kernels._registry import Backend

WIDEST = 2**14  # features of a row that one block holds

_interpreting = contextvars.ContextVar("interpreting", default=False)


@contextlib.contextmanager
def interpreted(on: bool = True) -> Iterator[None]:
    """Let programs that are traced inside interpret their kernels on a CPU, for tests.

    That is many times slower than the plain twin. A function that `jit` traced before keeps what
    it has.
    """
    token = _interpreting.set(on)
    try:
        yield
    finally:
        _interpreting.reset(token)


def platforms(operation: str, x: Any, fits: Callable[[Backend], bool]) -> dict[str, Backend]:
    """Return the platforms that have a kernel of an operation for `x`, and their backends.

    `fits` says whether a backend's blocks take x.
    """
    found = {name: b for name, b in _registry.platforms(operation).items() if fits(b)}
    # JAX cannot interpret a kernel inside a checked `shard_map`.
    if _interpreting.get() and fits("interpreter") and not varying(x):
        found["cpu"] = "interpreter"
    return found


def supports(x: jax.Array, mask: Any = None) -> bool:
    """Whether a kernel can be used for x: no mask, not empty, a real dtype of at most 32 bits.

    Its shape must be known, since blocks are cut from it, and the whole of it on one device.
    """
    if any(jax.typeof(x).sharding.spec):  # split on explicit axes of a mesh
        return False
    known = isinstance(x.size, int) and x.size > 0
    return mask is None and known and x.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)


def power_of_two(n: int) -> bool:
    """Whether `n` is a power of two; Triton has no other block sizes."""
    return n & (n - 1) == 0


def warps(values: int) -> int:
    """Return the warps of a GPU's block of so many values: 32 values or fewer to a thread.

    A kernel holds several arrays of a block; with 128 values of each, a thread's 255 registers
    spill.
    """
    return min(max(values // 2**10, 4), 16)


def pallas_call(
    kernel: Callable[..., None],
    *args: jax.Array,
    backend: Backend,
    flops: int,
    transcendentals: int = 0,
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
        backend: what runs it.
        flops: floating-point operations of the whole grid, from which XLA plans what to run
            beside the kernel; so is `transcendentals`. The bytes follow from the arrays.
        transcendentals: exponentials, roots and the like of the whole grid.
        grid: number of blocks along each axis of the grid.
        take: for each argument, the shape of its block and its index map, from a position in the
            grid to the block's position in the array.
        give: for each output, its shape and dtype, then the shape of its block and its index map.
        **options: other arguments of `pallas_call`.

    Returns:
        The outputs.
    """
    if backend == "gpu":  # Triton: kernels for Mosaic GPU are written in another way
        triton: Any = _registry.triton()
        values = max(math.prod(block) for block, _ in take)
        options.setdefault("compiler_params", triton.CompilerParams(num_warps=warps(values)))
    axes = axis_type(args[0])
    outputs = [jax.ShapeDtypeStruct(shape, dtype, **axes) for shape, dtype, _, _ in give]
    arrays: list[Any] = [*args, *outputs]
    moved = sum(v.size * jnp.dtype(v.dtype).itemsize for v in arrays)
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[pl.BlockSpec(block, index_map) for block, index_map in take],
        out_specs=[pl.BlockSpec(block, index_map) for _, _, block, index_map in give],
        out_shape=outputs,
        interpret=backend == "interpreter",
        cost_estimate=pl.CostEstimate(
            flops=flops, transcendentals=transcendentals, bytes_accessed=moved
        ),
        **options,
    )(*args)
