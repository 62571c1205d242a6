"""Measures and standardizes large arrays, by the formulas that suit the platform of the program.

On a CPU these are `_large_cpu`'s, elsewhere `_large_accelerator`'s. Their values are the same.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from normjax._internal._by_platform import by_platform
from normjax.statistics import _formulas, _large_accelerator, _large_cpu, _one_exchange
from normjax.statistics._types import Array

# Half a megabyte of float32. Below it the formulas for a CPU cost more than the passes they save.
MIN_SIZE = 2**17


def serves(x: jax.Array, mask: Array | None = None) -> bool:
    """Whether to use these functions for `x`: large, real, without a mask.

    A size that depends on a symbol, as in an exported program, is no int and may be small.
    """
    large = isinstance(x.size, int) and x.size >= MIN_SIZE
    return large and mask is None and not jnp.iscomplexobj(x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def mean_and_var(
    x: jax.Array, axes: tuple[int, ...], plain_mean: bool, dtype: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance over `axes`, as `_formulas.mean_and_var`.

    Only a CPU's mean is that of `jnp.mean` to the bit for `plain_mean`. `dtype` is a half-precision
    one from which x was widened.
    """
    mean, var = by_platform(*_measures(axes, plain_mean, dtype), x)
    return mean, var


@mean_and_var.defjvp
def _mean_and_var_jvp(
    axes: tuple[int, ...], plain_mean: bool, dtype: Any, primals: Any, tangents: Any
) -> Any:
    """Differentiate from the outputs, so that the backward pass does not measure them again."""
    (x,), (dx,) = primals, tangents
    mean, var = _formulas.named(*mean_and_var(x, axes, plain_mean, dtype))
    return (mean, var), by_platform(*_measures_tangents(axes), x, mean, dx, linear=1)


def standardize(
    x: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """Return `(x - mean) * inverse * scale + bias`, as `_formulas.standardize`."""
    args = (v for v in (x, mean, inverse, scale, bias) if v is not None)
    return by_platform(*_standardizers(scale is not None, bias is not None), *args)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(5, 6))
def normalize_rows(
    x: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    eps: float,
    centred: bool,
) -> jax.Array:
    """Return what `standardize` does, for `mean` and `inverse` that were measured of this x.

    An NVIDIA GPU measures x again instead, in the kernel that normalizes it. A derivative needs
    both statistics, which would be a pass of its own then; so where one is taken, they are used.

    Args:
        x: real, at least float32; `_large_accelerator.serves_rows` says which.
        mean: over the last axis, or 0, of the rank of x.
        inverse: 1 / root of the variance, or mean square, plus eps; of the rank of x.
        scale: of the rank of x.
        bias: of the rank of x.
        eps: as in `inverse`.
        centred: whether `mean` is the mean, and not 0.
    """
    args = (v for v in (x, mean, inverse, scale, bias) if v is not None)
    functions = _row_norms(scale is not None, bias is not None, eps, centred)
    return by_platform(*functions, *args)[0]


@normalize_rows.defjvp
def _normalize_rows_jvp(eps: float, centred: bool, primals: Any, tangents: Any) -> Any:
    del eps, centred
    return jax.jvp(standardize, primals, tangents)


# Each returns the function for all platforms, and those of some; cached, so that jit's cache hits.


@functools.cache
def _measures(axes: tuple[int, ...], plain_mean: bool, dtype: Any) -> Any:
    measure = _large_accelerator.mean_and_var

    def by_groups(x: jax.Array) -> tuple[jax.Array, ...]:
        # A batch of vectors on a TPU, whose rows may lie on many chips.
        if not plain_mean and _one_exchange.serves(x, axes):
            return _one_exchange.by_groups(x)
        return measure(x, axes, dtype)

    default, others = _functions(
        lambda x: measure(x, axes, dtype),
        lambda x: measure(x, axes, dtype, in_steps=True),
        lambda x: _large_cpu.mean_and_var(x, axes, plain_mean),
    )
    return default, (*others, ("tpu", by_groups))


@functools.cache
def _measures_tangents(axes: tuple[int, ...]) -> Any:
    def plain(x: jax.Array, mean: jax.Array, dx: jax.Array) -> tuple[jax.Array, ...]:
        return _formulas.mean_and_var_tangent(x, mean, dx, None, None, axes)

    return _functions(
        plain, plain, lambda x, mean, dx: _large_cpu.mean_and_var_tangent(x, mean, dx, axes)
    )


@functools.cache
def _standardizers(scaled: bool, biased: bool) -> Any:
    def of(formulas: Any, *options: Any) -> Any:
        def run(x: Any, mean: Any, inverse: Any, *affine: Any) -> tuple[jax.Array, ...]:
            scale, bias = affine[0] if scaled else None, affine[-1] if biased else None
            return (formulas.standardize(x, mean, inverse, scale, bias, *options),)

        return run

    elsewhere = _large_accelerator
    return _functions(of(elsewhere, False), of(elsewhere, True), of(_large_cpu))


@functools.cache
def _row_norms(scaled: bool, biased: bool, eps: float, centred: bool) -> Any:
    default, others = _standardizers(scaled, biased)

    def on_gpu(x: Any, mean: Any, inverse: Any, *affine: Any) -> tuple[jax.Array, ...]:
        del mean, inverse
        scale, bias = affine[0] if scaled else None, affine[-1] if biased else None
        return (_large_accelerator.normalize_rows(x, scale, bias, eps, centred),)

    # Not for ROCm, whose compiler's kernels nobody has looked at.
    return default, tuple((p, on_gpu if p == "cuda" else f) for p, f in others)


def _functions(default: Any, on_gpu: Any, on_cpu: Any) -> Any:
    """Return the first arguments of `by_platform`."""
    return default, (("cpu", on_cpu), ("cuda", on_gpu), ("rocm", on_gpu))
