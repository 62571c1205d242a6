"""The affine after the statistics: how it starts, and where it stands against x."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from normjax._internal import _checks
from normjax.base import Affine
from normjax.statistics._shapes import expand


def initial_affine(norm: Any, features: tuple[int, ...], dtype: Any) -> Affine:
    """Start the affine that the fields `use_scale`, `use_bias`, `*_init` of a norm describe."""
    dtype = jnp.finfo(dtype).dtype if jnp.issubdtype(dtype, jnp.complexfloating) else dtype
    return Affine(
        scale=jnp.full(features, norm.scale_init, dtype) if norm.use_scale else None,
        bias=jnp.full(features, norm.bias_init, dtype) if norm.use_bias else None,
    )


def broadcast_affine(params: Affine, kept: tuple[int, ...], shape: tuple[int, ...]) -> Affine:
    """Give an affine of the axes `kept` the rank of x, so that it broadcasts against it.

    An array with more axes than `kept` is one affine per sample: its first axes are the first
    axes of x, those of the batch.
    """
    return Affine(*(broadcast_one(v, kept, shape) for v in (params.scale, params.bias)))


def broadcast_one(v: Any, kept: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Place one array of parameters; `None` stays `None`."""
    if v is None:
        return None
    v = jnp.asarray(v)
    extra = v.ndim - len(kept)
    first = min(kept, default=len(shape))
    axes = (*range(extra), *kept)
    fits = 0 <= extra <= first and all(
        size in (1, shape[a]) for size, a in zip(v.shape, axes, strict=True)
    )
    if not fits:
        features = tuple(shape[a] for a in kept)
        raise ValueError(
            f"scale or bias of shape {v.shape} does not fit x of shape {shape}: give one of shape "
            f"{features}, as init(x.shape) does, or one per sample of shape "
            f"{(*shape[: min(first, 1)], *features)}"
        )
    return expand(v, axes, len(shape))


def check_affine(eps: float, scale_init: float = 1.0, bias_init: float = 0.0) -> None:
    """Refuse numbers outside their ranges, when a factory is called."""
    _checks.positive("eps", eps)
    _checks.number("scale_init", scale_init)
    _checks.number("bias_init", bias_init)
