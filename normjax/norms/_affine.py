"""Initializes the affine of a norm, and checks the settings that norms share."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from normjax._internal import _checks
from normjax.base import Affine
from normjax.statistics._types import Debias


def initial_affine(norm: Any, features: tuple[int, ...], dtype: Any) -> Affine:
    """Make the affine that the fields `use_scale`, `use_bias`, `*_init` of a norm describe."""
    # Scale and bias are real even for complex x.
    dtype = jnp.finfo(dtype).dtype if jnp.issubdtype(dtype, jnp.complexfloating) else dtype
    return Affine(
        scale=jnp.full(features, norm.scale_init, dtype) if norm.use_scale else None,
        bias=jnp.full(features, norm.bias_init, dtype) if norm.use_bias else None,
    )


def check_running(decay: float, correction: int, debias: Debias) -> None:
    """Raise if a setting of a running average is outside its range."""
    _checks.unit_interval("decay", decay, hint=": it is the weight of the old value")
    _checks.one_of("correction", correction, (0, 1))
    _checks.one_of("debias", debias, (False, True, "warmup"))


def check_affine(scale_init: float, bias_init: float, eps: float | None = None) -> None:
    """Raise if a setting of the affine, or `eps`, is outside its range."""
    if eps is not None:
        _checks.positive("eps", eps)
    _checks.number("scale_init", scale_init)
    _checks.number("bias_init", bias_init)
