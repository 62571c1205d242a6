"""Batch, group and instance norm: takes in one pass over x the sums that take XLA two.

x is `[samples, rows, features]`, and a set of values is one column of one sample; for batch norm
all of x is one sample. A block is a number of rows of some columns and writes its own sums. The
sums of blocks, of the channels of a group and of devices are merged outside, as `Moments` are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from normjax._internal._by_platform import by_platform
from normjax._internal._paired import Arrays, with_fast_vjp
from normjax.kernels import _pallas
from normjax.kernels._block_moments import centred
from normjax.kernels._registry import Backend
from normjax.statistics import _formulas


def supports(x: jax.Array, axes: tuple[int, ...], mask: Any = None) -> bool:
    """Whether `axes` of x are adjacent, do not include the last, and fit the blocks."""
    if not _pallas.supports(x, mask) or not axes or max(axes) == x.ndim - 1:
        return False
    if tuple(sorted(axes)) != tuple(range(min(axes), max(axes) + 1)):
        return False
    return bool(_backends(x.reshape(_shape(x, axes))))


def _backends(x: jax.Array) -> dict[str, Backend]:
    """Return the platforms that have a kernel for x `[samples, rows, features]`, by name."""
    _, rows, features = x.shape

    def fits(backend: Backend) -> bool:
        block, columns = _block(rows, features, backend)
        return backend != "gpu" or (rows % block == 0 and features % columns == 0)

    return _pallas.platforms("columns", x, fits)


def moments(x: jax.Array, axes: tuple[int, ...], dtype: Any = None) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance over `axes`, of the shape of the axes that remain.

    Where x was widened from a half-precision `dtype`, the kernel reads it in that: XLA drops the
    round trip. The gradient is that of the wide x, so that it is rounded once, with what
    `standardize` adds to it.
    """
    x3 = x.reshape(_shape(x, axes))
    backends = tuple(_backends(x3).items())
    mean, var = _moments(x.dtype if dtype is None else jnp.dtype(dtype), backends)(x3)
    # [samples, features] each
    remaining = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    return mean.reshape(remaining), var.reshape(remaining)


def standardize(
    x: jax.Array,
    axes: tuple[int, ...],
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    dtype: Any = None,
) -> jax.Array:
    """Return `(x - mean) * inverse * scale + bias`, with one scale and bias per feature.

    Forward this is plain XLA. Backward, one pass over x and dy takes all sums. `dtype` as in
    `moments`: x and dy are read in it.
    """
    shape = _shape(x, axes)
    narrow = x.dtype if dtype is None else jnp.dtype(dtype)
    x3 = x.reshape(shape)
    backends = tuple(_backends(x3).items())
    run = _standardize(scale is not None, bias is not None, narrow, backends)
    affine = [v.ravel() for v in (scale, bias) if v is not None]
    sets = shape[0], shape[2]  # one mean per sample and feature
    (y,) = run(x3, mean.reshape(sets), inverse.reshape(sets), *affine)
    return y.reshape(x.shape).astype(x.dtype)


def _shape(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape `[samples, rows, features]` that the kernels see x in."""
    first, end = min(axes), max(axes) + 1
    return math.prod(x.shape[:first]), math.prod(x.shape[first:end]), math.prod(x.shape[end:])


def _block(rows: int, features: int, backend: Backend) -> tuple[int, int]:
    """Return rows and columns of a block: on a GPU powers of two, on a TPU up to 512 columns."""
    gpu = backend == "gpu"
    wide = 64 if gpu else 512
    columns = min(wide, 1 << (features - 1).bit_length()) if gpu or features > wide else features
    most, block = 2**12 if gpu else 2**17, 1 if gpu else 8
    while 2 * block * columns <= most and 2 * block <= max(rows, 8):
        block *= 2
    return block, columns


def _sums(
    kernel: Any,
    number: int,
    columns_of: Arrays,
    rows_of: Arrays,
    backend: Backend,
    flops: int,
) -> Any:
    """Run `kernel(real, inside, *blocks)` over all blocks and return its `number` sums.

    `rows_of` are arrays of the shape of x, `columns_of` of shape `[samples, features]`; both reach
    the kernel as float32 blocks. `real` is the number of rows of a block that lie inside x, and
    `inside` is True for these rows; the other rows are 0. Each sum is
    `[samples, blocks, features]`. `flops` counts the kernel's operations for each value of x.
    """
    samples, rows, features = rows_of[0].shape
    block, wide = _block(rows, features, backend)
    blocks = pl.cdiv(rows, block)
    # Over a grid (sample, columns, rows): a block of x, a row of a set's values, a block's sums.
    whole = ((1, block, wide), lambda a, f, s: (a, s, f))
    per_set = ((1, 1, wide), lambda a, f, s: (a, 0, f))
    part = ((1, 1, wide), lambda a, f, s: (a * blocks + s, 0, f))
    sums = _pallas.pallas_call(
        functools.partial(_run_on_block, kernel, number, len(rows_of), rows, block),
        *rows_of,
        *(c[:, None, :] for c in columns_of),
        backend=backend,
        flops=flops * rows_of[0].size,
        grid=(samples, pl.cdiv(features, wide), blocks),
        take=[whole] * len(rows_of) + [per_set] * len(columns_of),
        give=[((samples * blocks, 1, features), jnp.float32, *part)] * number,
    )
    return [s.reshape(samples, blocks, features) for s in sums]


def _run_on_block(
    kernel: Any, number: int, whole_inputs: int, rows: int, block: int, *refs: Any
) -> None:
    """Load one block in float32, set rows beyond x to 0, and write the sums of `kernel`."""
    inputs, outputs = refs[:-number], refs[-number:]
    values = [r[0].astype(jnp.float32) for r in inputs]
    real: Any = block
    inside = None
    if rows % block:  # the last block reaches beyond x
        real = jnp.minimum(block, rows - pl.program_id(2) * block)
        inside = lax.broadcasted_iota(jnp.int32, values[0].shape, 0) < real
        values[:whole_inputs] = [jnp.where(inside, v, 0.0) for v in values[:whole_inputs]]
    for ref, value in zip(outputs, kernel(real, inside, *values), strict=True):
        ref[0, :, :] = value


@functools.lru_cache(maxsize=16)
def _moments(dtype: jnp.dtype, backends: tuple[tuple[str, Backend], ...]) -> Any:
    """Build mean and variance of `[samples, rows, features]` over rows; cached for jit's cache."""
    kernels = [(name, functools.partial(_kernel_moments, backend=b)) for name, b in backends]

    def forward(x: jax.Array) -> tuple[Arrays, Arrays]:
        outputs = by_platform(_plain_moments, kernels, x.astype(dtype))
        return outputs, outputs[:1]

    return with_fast_vjp(_plain_moments, forward, _backward_moments)


def _plain_moments(x: jax.Array) -> Arrays:
    return _formulas.mean_and_var(x.astype(jnp.float32), None, None, (1,))


def _moments_kernel(real: Any, inside: Any, x: jax.Array) -> Arrays:
    """Return the mean of each column of a block, and its sum of squares around it."""
    mean, d = centred(x, 0, real, inside)
    return mean, (d * d).sum(0, keepdims=True)


def _kernel_moments(x: jax.Array, *, backend: Backend) -> Arrays:
    """Return mean and variance, `[samples, features]`."""
    rows = x.shape[1]
    means, squares = _sums(_moments_kernel, 2, (), (x,), backend, flops=6)
    block = _block(rows, x.shape[2], backend)[0]
    # Merge the blocks by their numbers of rows, as `merge_axis` does.
    real = jnp.minimum(block, rows - block * jnp.arange(means.shape[1])).astype(jnp.float32)
    share = (real / rows)[None, :, None]
    # Around the first block's mean, so that the sum of means loses no digits far from 0.
    first = means[:, :1, :]
    mean = first + (share * (means - first)).sum(1, keepdims=True)
    between = (share * jnp.square(means - mean)).sum(1)
    mean = mean[:, 0, :]
    return mean, _formulas.overflow_to_nan(squares.sum(1) / rows + between)


def _backward_moments(args: Arrays, residuals: Arrays, cotangents: Arrays) -> Arrays:
    """Return dx = (dmean + 2 (x - mean) dvar) / n."""
    (x,), (mean,), (dmean, dvar) = args, residuals, cotangents
    d = x.astype(jnp.float32) - mean[:, None, :]
    dx = (d * (2 * dvar[:, None, :]) + dmean[:, None, :]) / x.shape[1]
    return (dx.astype(x.dtype),)


@functools.lru_cache(maxsize=32)
def _standardize(
    scaled: bool,
    biased: bool,
    dtype: jnp.dtype,
    backends: tuple[tuple[str, Backend], ...],
) -> Any:
    """Build `(x - mean) * inverse * scale + bias`; cached, so that jit's cache hits."""
    kernels = [(name, functools.partial(_kernel_sums, backend=b)) for name, b in backends]
    run = _Standardize(scaled, biased, dtype, tuple(kernels))
    return with_fast_vjp(run.plain, run.forward, run.backward)


@dataclasses.dataclass(frozen=True)
class _Standardize:
    """The three functions of standardization: plain JAX, forward, and the kernel backward.

    Their arguments are x `[samples, rows, features]`, mean and inverse `[samples, features]`, then
    scale and bias `[features]` if there are.

    Attributes:
        scaled: whether there is a scale.
        biased: whether there is a bias.
        dtype: that of the output, and of x and dy where the kernel reads them.
        kernels: by platform, the kernel that takes the sums of `_plain_sums`.
    """

    scaled: bool
    biased: bool
    dtype: jnp.dtype
    kernels: tuple[tuple[str, Any], ...]

    def plain(self, x: jax.Array, mean: jax.Array, inverse: jax.Array, *affine: Any) -> Arrays:
        """Return `(y,)` by the library's own formula."""
        scale, bias = affine[0] if self.scaled else None, affine[-1] if self.biased else None
        wide = (v if v is None else v[None, None] for v in (scale, bias))
        of_set = mean[:, None, :], inverse[:, None, :]
        y = _formulas.standardize(x.astype(jnp.float32), *of_set, *wide, None)
        return (y.astype(self.dtype),)

    def forward(self, *args: jax.Array) -> tuple[Arrays, Arrays]:
        """Return `(y,)`, without residuals: the backward pass uses the arguments alone."""
        return self.plain(*args), ()

    def backward(self, args: Arrays, residuals: Arrays, cotangents: Arrays) -> Arrays:
        """Return the gradients of all arguments, from the sums of dy and of dy (x - mean)."""
        del residuals
        x, mean, inverse, *affine = args
        (dy,) = cotangents
        narrow = x.astype(self.dtype)
        plain_sum, product = by_platform(_plain_sums, self.kernels, narrow, dy, mean)
        scale = affine[0][None] if self.scaled else jnp.ones((1, 1), jnp.float32)
        factor = inverse * scale
        dx = (dy.astype(jnp.float32) * factor[:, None, :]).astype(x.dtype)
        gradients = [dx, -factor * plain_sum, product * scale]
        if self.scaled:
            gradients.append((product * inverse).sum(0))
        if self.biased:
            gradients.append(plain_sum.sum(0))
        return tuple(gradients)


def _plain_sums(x: jax.Array, dy: jax.Array, mean: jax.Array) -> Arrays:
    """Return the sums of dy and of dy (x - mean) over rows, `[samples, features]` each."""
    wide, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    return dy.sum(1), (dy * (wide - mean[:, None, :])).sum(1)


def _kernel_sums(x: jax.Array, dy: jax.Array, mean: jax.Array, *, backend: Backend) -> Arrays:
    """Return what `_plain_sums` does, from one pass."""
    sums = _sums(_sums_kernel, 2, (mean,), (x, dy), backend, flops=4)
    return tuple(s.sum(1) for s in sums)


def _sums_kernel(real: Any, inside: Any, x: jax.Array, dy: jax.Array, mean: jax.Array) -> Arrays:
    """Return the sums of dy and of dy (x - mean) over the rows of a block."""
    del real, inside  # rows beyond x have dy = 0 and add nothing
    return dy.sum(0, keepdims=True), (dy * (x - mean)).sum(0, keepdims=True)
