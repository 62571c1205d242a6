"""Batch, group and instance norm: what XLA sums in two passes over x, in one.

x is `[samples, rows, features]`, and a set is a column of one sample; batch norm's one sample is
everything. A block is some rows of some columns. Each leaves its own sums; those of the blocks,
of the channels of a group and of the devices are merged outside, as `Moments` are.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from normjax._internal._paired import Arrays, with_fast_vjp
from normjax.kernels import _pallas
from normjax.kernels._block_moments import centred
from normjax.statistics import _formulas


def supports(x: jax.Array, axes: tuple[int, ...], mask: Any = None) -> bool:
    """Whether `axes` of x lie together and not at the end."""
    if not _pallas.supports(x, mask) or not axes or max(axes) == x.ndim - 1:
        return False
    if tuple(sorted(axes)) != tuple(range(min(axes), max(axes) + 1)):
        return False
    _, rows, features = _shape(x, axes)
    if _pallas.backend() != "gpu":
        return True
    block = _block(rows, features)
    return rows % block[0] == 0 and features % block[1] == 0


def moments(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over `axes`, of the shape of the axes that remain."""
    run = _moments(_pallas.backend())
    mean, var = run(x.reshape(_shape(x, axes)))
    kept = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    return mean.reshape(kept), var.reshape(kept)


def standardize(
    x: jax.Array,
    axes: tuple[int, ...],
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """`(x - mean) * inverse * scale + bias`, statistics of each set, an affine of each feature.

    Forward this is XLA's own loop. Backward all its sums come from one pass.
    """
    shape = _shape(x, axes)
    run = _standardize(scale is not None, bias is not None, _pallas.backend())
    affine = [v.ravel() for v in (scale, bias) if v is not None]
    kept = shape[0], shape[2]
    (y,) = run(x.reshape(shape), mean.reshape(kept), inverse.reshape(kept), *affine)
    return y.reshape(x.shape)


def _shape(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, int, int]:
    first, end = min(axes), max(axes) + 1
    return math.prod(x.shape[:first]), math.prod(x.shape[first:end]), math.prod(x.shape[end:])


def _block(rows: int, features: int) -> tuple[int, int]:
    """Rows and columns of a block: on a GPU powers of two, on a TPU of 128 columns or all."""
    gpu = _pallas.backend() == "gpu"
    wide = 64 if gpu else 512
    columns = min(wide, 1 << (features - 1).bit_length()) if gpu or features > wide else features
    most, block = 2**12 if gpu else 2**17, 1 if gpu else 8
    while 2 * block * columns <= most and 2 * block <= max(rows, 8):
        block *= 2
    return block, columns


def _sums(kernel: Any, number: int, columns_of: Arrays, rows_of: Arrays) -> Any:
    """Run `kernel(real, *blocks) -> sums` over all blocks; `[samples, blocks, features]` each.

    `rows_of` are arrays of x's shape, `columns_of` of `[samples, features]`; both come as blocks in
    float32. `real` is the number of rows of the block that are inside x; the others are 0.
    """
    samples, rows, features = rows_of[0].shape
    block, wide = _block(rows, features)
    blocks = pl.cdiv(rows, block)

    def body(*refs: Any) -> None:
        inputs, outputs = refs[:-number], refs[-number:]
        given = [r[0].astype(jnp.float32) for r in inputs]
        real = jnp.minimum(block, rows - pl.program_id(2) * block) if rows % block else block
        if rows % block:
            inside = lax.broadcasted_iota(jnp.int32, (block, wide), 0) < real
            count = len(rows_of)
            given[:count] = [jnp.where(inside, v, 0.0) for v in given[:count]]
        else:
            inside = None
        for ref, value in zip(outputs, kernel(real, inside, *given), strict=True):
            ref[0, :, :] = value

    whole = ((1, block, wide), lambda a, f, s: (a, s, f))
    each = ((1, 1, wide), lambda a, f, s: (a, 0, f))
    part = ((1, 1, wide), lambda a, f, s: (a * blocks + s, 0, f))
    found = _pallas.pallas_call(
        body,
        *rows_of,
        *(c[:, None, :] for c in columns_of),
        grid=(samples, pl.cdiv(features, wide), blocks),
        take=[whole] * len(rows_of) + [each] * len(columns_of),
        give=[((samples * blocks, 1, features), jnp.float32, *part)] * number,
    )
    return [f.reshape(samples, blocks, features) for f in found]


@functools.lru_cache(maxsize=8)
def _moments(backend: str) -> Any:
    del backend

    def plain(x: jax.Array) -> Arrays:
        return _formulas.mean_and_var(x.astype(jnp.float32), None, None, (1,))

    def kernel(real: Any, inside: Any, x: jax.Array) -> Arrays:
        mean, d = centred(x, 0, real, inside)
        return mean, (d * d).sum(0, keepdims=True)

    def forward(x: jax.Array) -> tuple[Arrays, Arrays]:
        rows = x.shape[1]
        means, squares = _sums(kernel, 2, (), (x,))
        block = _block(rows, x.shape[2])[0]
        real = jnp.minimum(block, rows - block * jnp.arange(means.shape[1])).astype(jnp.float32)
        share = (real / rows)[None, :, None]
        # Around the first block's mean, so that far from 0 the sum of means costs no digits.
        first = means[:, :1, :]
        mean = first + (share * (means - first)).sum(1, keepdims=True)
        between = (share * jnp.square(means - mean)).sum(1)
        mean = mean[:, 0, :]
        return (mean, squares.sum(1) / rows + between), (mean,)

    def backward(args: Arrays, kept: Arrays, cotangents: Arrays) -> Arrays:
        (x,), (mean,), (dmean, dvar) = args, kept, cotangents
        d = x.astype(jnp.float32) - mean[:, None, :]
        dx = (d * (2 * dvar[:, None, :]) + dmean[:, None, :]) / x.shape[1]
        return (dx.astype(x.dtype),)

    return with_fast_vjp(plain, forward, backward, _pallas.applicable)


@functools.lru_cache(maxsize=32)
def _standardize(scaled: bool, biased: bool, backend: str) -> Any:
    del backend

    def plain(x: jax.Array, mean: jax.Array, inverse: jax.Array, *affine: jax.Array) -> Arrays:
        scale, bias = affine[0] if scaled else None, affine[-1] if biased else None
        wide = (v if v is None else v[None, None] for v in (scale, bias))
        of_set = mean[:, None, :], inverse[:, None, :]
        return (_formulas.standardize(x.astype(jnp.float32), *of_set, *wide, None).astype(x.dtype),)

    def kernel(real: Any, inside: Any, x: jax.Array, dy: jax.Array, mean: jax.Array) -> Arrays:
        del real, inside  # where dy is 0, so is all of this
        return dy.sum(0, keepdims=True), (dy * (x - mean)).sum(0, keepdims=True)

    def backward(args: Arrays, kept: Arrays, cotangents: Arrays) -> Arrays:
        del kept
        x, mean, inverse, *affine = args
        (dy,) = cotangents
        plain_sum, product = (s.sum(1) for s in _sums(kernel, 2, (mean,), (x, dy)))
        scale = affine[0][None] if scaled else jnp.ones((1, 1), jnp.float32)
        factor = inverse * scale
        dx = (dy.astype(jnp.float32) * factor[:, None, :]).astype(x.dtype)
        found = [dx, -factor * plain_sum, product * scale]
        if scaled:
            found.append((product * inverse).sum(0))
        if biased:
            found.append(plain_sum.sum(0))
        return tuple(found)

    return with_fast_vjp(plain, lambda *args: (plain(*args), ()), backward, _pallas.applicable)
