"""Measures and standardizes large arrays, by the formulas that suit the platform of the program.

On a CPU these are `_large_cpu`'s, elsewhere `_formulas`'. Their values are the same.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from normjax._internal._by_platform import by_platform
from normjax.statistics import _formulas, _large_cpu
from normjax.statistics._types import Array

# Half a megabyte of float32. Below it the formulas for a CPU cost more than the passes they save.
MIN_SIZE = 2**17


def serves(x: jax.Array, mask: Array | None = None) -> bool:
    """Whether to use these functions for `x`: large, real, without a mask.

    A size that depends on a symbol, as in an exported program, is no int and may be small.
    """
    large = isinstance(x.size, int) and x.size >= MIN_SIZE
    return large and mask is None and not jnp.iscomplexobj(x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def mean_and_var(
    x: jax.Array, axes: tuple[int, ...], plain_mean: bool
) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance over `axes`, as `_formulas.mean_and_var`."""
    plain, on_cpu = _measures(axes, plain_mean)
    mean, var = by_platform(plain, (("cpu", on_cpu),), x)
    return mean, var


@mean_and_var.defjvp
def _mean_and_var_jvp(axes: tuple[int, ...], plain_mean: bool, primals: Any, tangents: Any) -> Any:
    """Differentiate with the outputs at hand: backward, they are not measured again."""
    (x,), (dx,) = primals, tangents
    mean, var = _formulas.named(*mean_and_var(x, axes, plain_mean))
    plain, on_cpu = _measures_tangents(axes)
    return (mean, var), by_platform(plain, (("cpu", on_cpu),), x, mean, dx, linear=1)


def standardize(
    x: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """Return `(x - mean) * inverse * scale + bias`, as `_formulas.standardize`."""
    plain, on_cpu = _standardizers(scale is not None, bias is not None)
    args = (v for v in (x, mean, inverse, scale, bias) if v is not None)
    return by_platform(plain, (("cpu", on_cpu),), *args)[0]


# Each returns the function of all platforms and that of a CPU; cached, so that jit's cache hits.


@functools.cache
def _measures(axes: tuple[int, ...], plain_mean: bool) -> Any:
    return (
        lambda x: _formulas.mean_and_var(x, None, None, axes, plain_mean),
        lambda x: _large_cpu.mean_and_var(x, axes, plain_mean),
    )


@functools.cache
def _measures_tangents(axes: tuple[int, ...]) -> Any:
    return (
        lambda x, mean, dx: _formulas.mean_and_var_tangent(x, mean, dx, None, None, axes),
        lambda x, mean, dx: _large_cpu.mean_and_var_tangent(x, mean, dx, axes),
    )


@functools.cache
def _standardizers(scaled: bool, biased: bool) -> Any:
    def affine(values: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        return values[0] if scaled else None, values[-1] if biased else None

    return (
        lambda x, mean, inverse, *v: (_formulas.standardize(x, mean, inverse, *affine(v), None),),
        lambda x, mean, inverse, *v: (_large_cpu.standardize(x, mean, inverse, *affine(v)),),
    )
