"""Adds a residual and normalizes the sum: `add_norm`, the pair of steps of every transformer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Inexact

from normjax._internal import _checks
from normjax.base import Affine, Norm
from normjax.norms._layer import LayerNorm
from normjax.norms._per_sample import FeatureNorm
from normjax.norms._rms import RMSNorm
from normjax.state import _names
from normjax.statistics import _residual, _shapes
from normjax.statistics._types import Array


def add_norm(
    norm: Norm,
    params: Affine | Mapping[str, Any],
    x: Inexact[Array, "*shape"],
    residual: Inexact[Array, "*shape"],
    *,
    mask: Bool[Array, "..."] | None = None,
) -> tuple[Inexact[jax.Array, "*shape"], Inexact[jax.Array, "*shape"]]:
    r"""Add a residual, and normalize the sum by a layer or RMS norm, with one derivative for both.

    $$s = x + r, \qquad y = \mathrm{norm}(s)$$

    The values are those of the two steps. The gradient of x and of the residual is one
    expression: in half precision it is rounded once, and a training step takes fewer passes over
    memory. All further transformations work as for the two steps.

    Args:
        norm: `layer_norm` or `rms_norm`.
        params: its parameters.
        x: real or complex, such as the output of an attention or of an MLP.
        residual: what is added, of the shape and dtype of `x`.
        mask: True where a value counts; rank of `x`, broadcastable to it.

    Returns:
        `(y, s)`: the normalized sum for the next sublayer, and the sum, its residual. Both have
        the shape and dtype of `x`.

    Raises:
        TypeError: `norm` is another norm, or `x` is not floating or complex, or `residual` has
            another dtype.
        ValueError: shapes do not fit.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.layer_norm()
        >>> params, _ = norm.init((1, 2))
        >>> y, s = nj.add_norm(norm, params, jnp.array([[1.0, 3.0]]), jnp.array([[1.0, 2.0]]))
        >>> [round(v, 3) for v in y[0].tolist()], s.tolist()
        ([-1.0, 1.0], [[2.0, 5.0]])

    Reference:
        Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020 (the order of
        sublayers, norms and residuals).
    """
    if not isinstance(norm, LayerNorm | RMSNorm):
        raise TypeError(
            f"add_norm takes layer_norm() or rms_norm() and got {norm!r}: write s = x + residual, "
            "and norm.apply(params, state, s, stats=…)"
        )
    x, residual = _checks.floating(x, "add_norm"), _checks.floating(residual, "add_norm")
    if x.dtype != residual.dtype:
        raise TypeError(
            f"add_norm got x of {x.dtype} and a residual of {residual.dtype}: write "
            f"residual.astype(x.dtype), or x.astype({residual.dtype}) to keep the sum in the "
            "residual's precision"
        )
    if x.shape != residual.shape:
        raise ValueError(
            f"add_norm got x of shape {x.shape} and a residual of shape {residual.shape}: "
            "broadcast one to the other"
        )
    affine: Affine = _names.named(Affine, params)
    if mask is None and _is_plain(norm, affine, x):
        scale, bias = affine
        if scale is not None and getattr(norm, "unit_offset", False):
            scale = 1 + _shapes.widen_half(jnp.asarray(scale))
        return _residual.add_and_normalize(
            x,
            residual,
            None if scale is None else jnp.asarray(scale),
            None if bias is None else jnp.asarray(bias),
            norm.eps,
            axes=len(norm.averaged(x.ndim)),
            centred=norm.centred,
        )
    total = x + residual
    return norm.apply(affine, (), total, stats="batch", mask=mask)[0], total


def _is_plain(norm: FeatureNorm, params: Affine, x: jax.Array) -> bool:
    """Whether the norm is one over the last axes of real x, with one gain and bias for all rows."""
    axes = norm.averaged(x.ndim)
    features = x.shape[x.ndim - len(axes) :]
    defaults = {f.name: f.default for f in dataclasses.fields(norm)}
    same = ("partial", "cast_first", "feature_axis_name", "impl", "feature_axes")
    return (
        type(norm) in (LayerNorm, RMSNorm)  # a subclass may do more than its fields say
        and all(getattr(norm, name) == defaults[name] for name in same if name in defaults)
        and axes == tuple(range(x.ndim - len(axes), x.ndim))
        and all(v is None or jnp.shape(v) == features for v in params)
        and not jnp.iscomplexobj(x)
        and x.size > 0
    )
