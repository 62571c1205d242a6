"""Layer and RMS norm of rows: reads x once forward, and x and dy once backward.

A block is a number of whole rows. The gradients of scale and bias are sums over rows: each block
writes its partial sum, and these are added outside the kernel.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from normjax._internal._by_platform import by_platform
from normjax._internal._paired import Arrays, with_fast_vjp
from normjax.kernels import _block_moments, _pallas
from normjax.kernels._registry import Backend
from normjax.statistics import _formulas


def supports(x: jax.Array, axes: tuple[int, ...], mask: Any = None) -> bool:
    """Whether `axes` are the last axes of x and fit into a block of some platform."""
    first = x.ndim - len(axes)
    if not _pallas.supports(x, mask) or tuple(sorted(axes)) != tuple(range(first, x.ndim)):
        return False
    return bool(_backends(x, *_shape(x, axes)))


def _backends(x: jax.Array, rows: int, features: int) -> dict[str, Backend]:
    """Return the platforms that have a kernel for x of so many rows, and their backends."""

    def fits(backend: Backend) -> bool:
        if features > _pallas.WIDEST:
            return False
        whole = _pallas.power_of_two(features) and rows % _block(rows, features, backend) == 0
        return whole or backend != "gpu"

    return _pallas.platforms("rows", x, fits)


def row_norm(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    axes: tuple[int, ...],
    eps: float,
    *,
    centred: bool,
) -> jax.Array:
    """Run layer norm (`centred`) or RMS norm over the last axes, those of scale and bias."""
    rows, features = _shape(x, axes)
    backends = tuple(_backends(x, rows, features).items())
    run = _built(eps, centred, scale is not None, bias is not None, backends)
    affine = [v.reshape(1, features) for v in (scale, bias) if v is not None]
    (y,) = run(x.reshape(rows, features), *affine)
    return y.reshape(x.shape)


def _shape(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape `[rows, features]` that the kernels see x in."""
    features = math.prod(x.shape[a] for a in axes)
    return x.size // features, features


def _block(rows: int, features: int, backend: Backend) -> int:
    """Return the rows of a block: a power of two, at least 8 on TPU, about 16,000 values on GPU."""
    most = 2**14 if backend == "gpu" else 2**18
    least = 1 if backend == "gpu" else 8
    block = least
    while 2 * block * features <= most and 2 * block <= max(rows, least):
        block *= 2
    return block


@functools.lru_cache(maxsize=64)
def _built(
    eps: float,
    centred: bool,
    scaled: bool,
    biased: bool,
    backends: tuple[tuple[str, Backend], ...],
) -> Any:
    """Build the norm of `[rows, features]`; cached, so that jit's cache hits."""
    norm = _RowNorm(eps, centred, scaled, biased)
    kernels = [(platform, dataclasses.replace(norm, backend=b)) for platform, b in backends]
    forwards = [(platform, kernel.kernel_forward) for platform, kernel in kernels]
    backwards = [(platform, kernel.kernel_backward) for platform, kernel in kernels]

    def forward(*args: jax.Array) -> tuple[Arrays, Arrays]:
        y, *residuals = by_platform(norm.plain_forward, forwards, *args)
        return (y,), tuple(residuals)

    def backward(args: Arrays, residuals: Arrays, cotangents: Arrays) -> Arrays:
        operands = (*args, *residuals, *cotangents)
        return by_platform(norm.plain_backward, backwards, *operands)

    return with_fast_vjp(norm.plain, forward, backward)


@dataclasses.dataclass(frozen=True)
class _RowNorm:
    """The functions of one norm: in plain JAX and by kernels, forward and backward.

    Their arguments are x `[rows, features]`, then scale and bias `[1, features]` if there are.

    Attributes:
        eps: added to the variance or mean square.
        centred: whether the mean is subtracted: layer norm.
        scaled: whether there is a scale.
        biased: whether there is a bias.
        backend: what runs the kernels.
    """

    eps: float
    centred: bool
    scaled: bool
    biased: bool
    backend: Backend = "interpreter"

    def split(self, affine: Iterable[Any]) -> tuple[Any, Any]:
        """Return scale and bias, each `None` if there is none."""
        affine = list(affine)
        scale = affine.pop(0) if self.scaled else None
        return scale, affine.pop(0) if self.biased else None

    def plain(self, x: jax.Array, *affine: jax.Array) -> Arrays:
        """Return `(y,)` by the library's own formulas."""
        return self.plain_forward(x, *affine)[:1]

    def plain_forward(self, x: jax.Array, *affine: jax.Array) -> Arrays:
        """Return y and the residuals, as `kernel_forward`, by the library's own formulas."""
        scale, bias = self.split(affine)
        wide = x.astype(jnp.float32)
        if self.centred:
            mean, var = _formulas.mean_and_var(wide, None, None, (1,))
        else:
            var = _formulas.overflow_to_nan(_formulas.mean_over(wide * wide, (1,), None))
            mean = jnp.zeros_like(var)
        inverse = _formulas.rsqrt(var + self.eps)[:, None]
        y = _formulas.standardize(wide, mean[:, None], inverse, scale, bias, None)
        return (y.astype(x.dtype), inverse, *([mean[:, None]] if self.centred else []))

    def plain_backward(self, *operands: jax.Array) -> Arrays:
        """Return what `kernel_backward` does, by automatic differentiation."""
        args = operands[: 1 + self.scaled + self.biased]
        return jax.vjp(self.plain, *args)[1]((operands[-1],))

    def kernel_forward(self, x: jax.Array, *affine: jax.Array) -> Arrays:
        """Return y and the residuals: 1 / deviation, and the mean if `centred`, `[rows, 1]`."""
        rows, features = x.shape
        block = _block(rows, features, self.backend)
        # The grid runs over blocks of rows: x in blocks, scale and bias whole for every block, and
        # one number per row.
        whole = ((block, features), lambda i: (i, 0))
        once = ((1, features), lambda i: (0, 0))
        per_row = ((rows, 1), jnp.float32, (block, 1), lambda i: (i, 0))
        outputs = _pallas.pallas_call(
            functools.partial(_forward_kernel, self),
            x,
            *affine,
            backend=self.backend,
            flops=8 * x.size,
            transcendentals=rows,
            grid=(pl.cdiv(rows, block),),
            take=[whole] + [once] * len(affine),
            give=[(x.shape, x.dtype, *whole)] + [per_row] * (1 + self.centred),
        )
        return tuple(outputs)

    def kernel_backward(self, x: jax.Array, *operands: jax.Array) -> Arrays:
        """Return the gradients of x, and of scale and bias if there are.

        The operands are scale and bias if there are, the residuals and the gradient of y.
        """
        *rest, dy = operands
        affine, residuals = rest[: self.scaled + self.biased], rest[self.scaled + self.biased :]
        scale, _ = self.split(affine)
        rows, features = x.shape
        block = _block(rows, features, self.backend)
        blocks = pl.cdiv(rows, block)
        scales = [] if scale is None else [scale]
        # As forward; `part` is the place of one block's sums, `[blocks, 1, features]` in all.
        whole = ((block, features), lambda i: (i, 0))
        per_row = ((block, 1), lambda i: (i, 0))
        once = ((1, features), lambda i: (0, 0))
        part = ((blocks, 1, features), jnp.float32, (1, 1, features), lambda i: (i, 0, 0))
        dx, *sums = _pallas.pallas_call(
            functools.partial(_backward_kernel, self, rows),
            x,
            dy,
            *residuals,
            *scales,
            backend=self.backend,
            flops=16 * x.size,
            grid=(blocks,),
            take=[whole, whole] + [per_row] * len(residuals) + [once] * len(scales),
            give=[(x.shape, x.dtype, *whole)] + [part] * (self.scaled + self.biased),
        )
        return (dx, *(s.sum(0) for s in sums))


def _forward_kernel(norm: _RowNorm, *refs: Any) -> None:
    """Normalize one block of rows.

    References: x `[block, features]`, scale and bias `[1, features]` if there are; then the
    outputs y, 1 / deviation and, if `centred`, the mean, both `[block, 1]`.
    """
    inputs = 1 + norm.scaled + norm.biased
    x_ref, *affine_refs = refs[:inputs]
    y_ref, inverse_ref, *mean_ref = refs[inputs:]
    scale, bias = norm.split(r[...] for r in affine_refs)
    d = x_ref[...].astype(jnp.float32)
    if norm.centred:
        mean_ref[0][...], d = _block_moments.centred(d, 1, d.shape[1])
    square = _formulas.overflow_to_nan((d * d).mean(1, keepdims=True))
    inverse = lax.rsqrt(square + jnp.float32(norm.eps))
    inverse_ref[...] = inverse
    y = d * inverse
    y = y if scale is None else y * scale
    y_ref[...] = (y if bias is None else y + bias).astype(y_ref.dtype)


def _backward_kernel(norm: _RowNorm, rows: int, *refs: Any) -> None:
    """Differentiate one block of rows: dx = (g - mean(g) - y mean(g y)) / deviation.

    Here y is normalized x, g = scale * dy, and mean(g) is left out unless `centred`.

    References: x and dy `[block, features]`, 1 / deviation and, if `centred`, the mean
    `[block, 1]`, scale `[1, features]` if there is one; then the outputs dx and this block's sums
    of dy * y and of dy over rows, `[1, 1, features]`, for scale and bias if there are.
    """
    inputs = 3 + norm.centred + norm.scaled
    x_ref, dy_ref, inverse_ref, *others = refs[:inputs]
    dx_ref, *sums = refs[inputs:]
    d, dy = x_ref[...].astype(jnp.float32), dy_ref[...].astype(jnp.float32)
    block, features = d.shape
    if rows % block:  # the last block reaches beyond x: its other rows hold arbitrary values
        first = pl.program_id(0) * block
        real = first + lax.broadcasted_iota(jnp.int32, d.shape, 0) < rows
        d, dy = jnp.where(real, d, 0.0), jnp.where(real, dy, 0.0)
    if norm.centred:
        # Centre again after subtracting the stored mean, which carries a rounding error.
        _, d = _block_moments.centred(d - others[0][...], 1, features)
    y = d * inverse_ref[...]
    if rows % block:
        y = jnp.where(real, y, 0.0)
    if norm.biased:
        sums[-1][0, :, :] = dy.sum(0, keepdims=True)
    # The gradient with respect to normalized x.
    g = dy
    if norm.scaled:
        sums[0][0, :, :] = (dy * y).sum(0, keepdims=True)
        g = dy * others[-1][...]
    dx = g - y * (g * y).mean(1, keepdims=True)
    if norm.centred:
        dx = dx - g.mean(1, keepdims=True)
    dx_ref[...] = (dx * inverse_ref[...]).astype(dx_ref.dtype)
