"""Computes length and direction of vectors, without overflow and with finite gradients at 0."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Inexact

from normjax._internal import _checks
from normjax.statistics import _shapes
from normjax.statistics._shapes import abs2, stat_dtype
from normjax.statistics._types import Array


def resolve_reduced_axes(axes: int | Sequence[int] | None, ndim: int, who: str) -> tuple[int, ...]:
    """Return the axes of one weight vector as sorted non-negative ints."""
    if axes is None and ndim < 2:
        raise ValueError(
            f"{who}() takes all axes but the last as one vector, and a weight of {ndim} axis(es) "
            f"has no other: write {who}(axes=0), or leave biases and gains out of the rules"
        )
    return _checks.resolve_axes(axes, ndim)


def scale_by_gain(unit: jax.Array, gain: Array, axes: Sequence[int]) -> jax.Array:
    """Multiply unit vectors over `axes` by gains, one for each vector."""
    remaining = [a for a in range(unit.ndim) if a not in axes]
    return unit * _shapes.expand(gain, remaining, unit.ndim).astype(unit.dtype)


def length(x: Inexact[Array, "*shape"], axes: Sequence[int]) -> Inexact[jax.Array, "*lengths"]:
    """Return the Euclidean length over `axes`, which keep size 1; real, at least float32."""
    x = jnp.asarray(x).astype(stat_dtype(jnp.asarray(x).dtype))
    top = size(x, axes)
    return top * jnp.sqrt(jnp.sum(abs2(x / top.astype(x.dtype)), tuple(axes), keepdims=True))


def unit(
    x: Inexact[Array, "*shape"], axes: Sequence[int], *, eps: float = 0.0
) -> Inexact[jax.Array, "*shape"]:
    r"""Return the unit vectors over `axes`, x / sqrt(||x||^2 + eps), in at least float32.

    A zero vector stays zero with a finite gradient, and no square over- or underflows.

    Args:
        x: floating or complex, any shape.
        axes: non-negative axes of one vector.
        eps: added to the squared length; with 0 the direction of x does not depend on its scale.

    Returns:
        Array of the shape of `x`.
    """
    x = jnp.asarray(x).astype(stat_dtype(jnp.asarray(x).dtype))
    # Dividing by any constant leaves the direction unchanged, so `top` needs no gradient.
    top = size(x, axes)
    x = x / top.astype(x.dtype)
    square = jnp.sum(abs2(x), tuple(axes), keepdims=True) + eps / top / top
    # Replace 0 by 1 before the root: after the root the gradient would be 0 * inf.
    return x * lax.rsqrt(jnp.where(square > 0, square, 1)).astype(x.dtype)


def size(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Return the largest magnitude over `axes`, 1 where all values are 0; without gradient."""
    top = lax.stop_gradient(jnp.max(jnp.abs(x), tuple(axes), keepdims=True, initial=0))
    return jnp.where(top > 0, top, 1)
