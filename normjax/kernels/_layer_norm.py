"""Layer and RMS norm of rows: x is read once forward, x and dy once backward.

One block is some whole rows. The sums over rows that scale and bias need are left one partial sum
a block, and added up outside.
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
from normjax.kernels import _block_moments, _pallas
from normjax.statistics import _measure, _normalize


def supports(x: jax.Array, axes: tuple[int, ...], mask: Any = None) -> bool:
    """Whether `axes` of x are the last ones and a block holds them."""
    first = x.ndim - len(axes)
    if not _pallas.supports(x, mask) or tuple(sorted(axes)) != tuple(range(first, x.ndim)):
        return False
    rows, features = _shape(x, axes)
    if features > _pallas.WIDEST:
        return False
    whole = _pallas.power_of_two(features) and rows % _block(rows, features) == 0
    return whole or _pallas.backend() != "gpu"


def row_norm(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    axes: tuple[int, ...],
    eps: float,
    *,
    centred: bool,
) -> jax.Array:
    """Layer norm (`centred`) or RMS norm over the last axes, scale and bias of their shape."""
    rows, features = _shape(x, axes)
    run = _built(eps, centred, scale is not None, bias is not None, _pallas.backend())
    affine = [v.reshape(1, features) for v in (scale, bias) if v is not None]
    (y,) = run(x.reshape(rows, features), *affine)
    return y.reshape(x.shape)


def _shape(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, int]:
    features = math.prod(x.shape[a] for a in axes)
    return x.size // features, features


def _block(rows: int, features: int) -> int:
    """Rows of a block: a power of two, 8 at least on TPU, of some 16,000 values on a GPU."""
    most = 2**14 if _pallas.backend() == "gpu" else 2**18
    least = 1 if _pallas.backend() == "gpu" else 8
    block = least
    while 2 * block * features <= most and 2 * block <= max(rows, least):
        block *= 2
    return block


@functools.lru_cache(maxsize=64)
def _built(eps: float, centred: bool, scaled: bool, biased: bool, backend: str) -> Any:
    """The norm of `[rows, features]`; one object for each setting, so that jit knows it again."""
    del backend  # a part of the key: blocks depend on it

    def split(affine: Any) -> tuple[Any, Any]:
        affine = list(affine)
        return affine.pop(0) if scaled else None, affine.pop(0) if biased else None

    def plain(x: jax.Array, *affine: jax.Array) -> Arrays:
        scale, bias = split(affine)
        m = _measure.moments(x, 1) if centred else _measure.mean_square(x, 1)
        return (_normalize.normalize(x, m, 1, scale=scale, bias=bias, eps=eps),)

    def forward(x: jax.Array, *affine: jax.Array) -> tuple[Arrays, Arrays]:
        rows, features = x.shape
        block = _block(rows, features)

        def kernel(*refs: Any) -> None:
            x_ref, *affine_refs = refs[: 1 + len(affine)]
            y_ref, *kept_refs = refs[1 + len(affine) :]
            scale, bias = split(r[...] for r in affine_refs)
            d = x_ref[...].astype(jnp.float32)
            if centred:
                kept_refs[1][...], d = _block_moments.centred(d, 1, features)
            inverse = lax.rsqrt((d * d).mean(1, keepdims=True) + jnp.float32(eps))
            kept_refs[0][...] = inverse
            y = d * inverse
            y = y if scale is None else y * scale
            y_ref[...] = (y if bias is None else y + bias).astype(y_ref.dtype)

        whole = ((block, features), lambda i: (i, 0))
        once = ((1, features), lambda i: (0, 0))
        each = ((rows, 1), jnp.float32, (block, 1), lambda i: (i, 0))
        y, *kept = _pallas.pallas_call(
            kernel,
            x,
            *affine,
            grid=(pl.cdiv(rows, block),),
            take=[whole] + [once] * len(affine),
            give=[(x.shape, x.dtype, *whole)] + [each] * (1 + centred),
        )
        return (y,), tuple(kept)

    def backward(args: Arrays, kept: Arrays, cotangents: Arrays) -> Arrays:
        x, *affine = args
        scale, _ = split(affine)
        rows, features = x.shape
        block = _block(rows, features)
        blocks = pl.cdiv(rows, block)
        given = [x, cotangents[0], *kept] + ([] if scale is None else [scale])

        def kernel(*refs: Any) -> None:
            x_ref, dy_ref, inverse_ref = refs[:3]
            dx_ref, *sums = refs[len(given) :]
            d, dy = x_ref[...].astype(jnp.float32), dy_ref[...].astype(jnp.float32)
            if rows % block:  # the last block reaches over the end, into anything
                first = pl.program_id(0) * block
                real = first + lax.broadcasted_iota(jnp.int32, d.shape, 0) < rows
                d, dy = jnp.where(real, d, 0.0), jnp.where(real, dy, 0.0)
            if centred:
                _, d = _block_moments.centred(d - refs[3][...], 1, features)
            y = d * inverse_ref[...]
            if rows % block:
                y = jnp.where(real, y, 0.0)
            if biased:
                sums[-1][0, :, :] = dy.sum(0, keepdims=True)
            g = dy
            if scaled:
                sums[0][0, :, :] = (dy * y).sum(0, keepdims=True)
                g = dy * refs[len(given) - 1][...]
            dx = g - y * (g * y).mean(1, keepdims=True)
            if centred:
                dx = dx - g.mean(1, keepdims=True)
            dx_ref[...] = (dx * inverse_ref[...]).astype(dx_ref.dtype)

        whole = ((block, features), lambda i: (i, 0))
        each = ((block, 1), lambda i: (i, 0))
        once = ((1, features), lambda i: (0, 0))
        part = ((blocks, 1, features), jnp.float32, (1, 1, features), lambda i: (i, 0, 0))
        dx, *sums = _pallas.pallas_call(
            kernel,
            *given,
            grid=(blocks,),
            take=[whole, whole] + [each] * len(kept) + ([] if scale is None else [once]),
            give=[(x.shape, x.dtype, *whole)] + [part] * (scaled + biased),
        )
        return (dx, *(s.sum(0) for s in sums))

    return with_fast_vjp(plain, forward, backward, _pallas.applicable)
