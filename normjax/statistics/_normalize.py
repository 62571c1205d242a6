"""Centres and scales an array with statistics that were measured before: `normalize`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jaxtyping import Bool, Inexact, Num

from normjax._internal import _checks
from normjax.statistics import _core
from normjax.statistics._shapes import to_rank
from normjax.statistics._types import Array, Moments, Running


def normalize(
    x: Inexact[Array, "*shape"],
    m: Moments | Running,
    axes: int | Sequence[int] | None,
    *,
    scale: Num[Array, "..."] | None = None,
    bias: Num[Array, "..."] | None = None,
    eps: float,
    mask: Bool[Array, "..."] | None = None,
) -> Inexact[jax.Array, "*shape"]:
    r"""Centre and scale `x` with the statistics `m`, then apply scale and bias.

    $$y = \text{scale} \cdot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \text{bias}$$

    Args:
        x: floating or complex, any shape.
        m: statistics of the shape of x without `axes`.
        axes: the axes that `m` was averaged over; `None` is all but the last.
        scale: broadcastable to `x` by NumPy's rules.
        bias: broadcastable to `x` by NumPy's rules.
        eps: added to the variance, not negative.
        mask: True where a value counts. Masked outputs are the bias, never NaN.

    Returns:
        Output of the shape and dtype of `x`; the arithmetic is in at least float32.

    Raises:
        TypeError: `x` is not floating or complex, `mask` is not boolean.
        ValueError: `m`, `scale`, `bias` or `mask` do not fit `x`, or `eps` is negative.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> x = jnp.array([[1.0], [3.0]])
        >>> nj.normalize(x, nj.moments(x, 0), 0, eps=0.0).ravel().tolist()
        [-1.0, 1.0]

    Reference:
        Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
        Internal Covariate Shift", 2015, algorithm 1.
    """
    x = _checks.floating(x, "normalize")
    axes = _checks.resolve_axes(axes, x.ndim)
    if not (hasattr(m, "mean") and hasattr(m, "var")):
        raise TypeError(
            f"normalize takes Moments or Running and got {type(m).__name__}: write "
            "Running(m['mean'], m['var']) for a dictionary"
        )
    _checks.positive("eps", eps, zero=True)
    for name, v in (("scale", scale), ("bias", bias)):
        _checks.broadcasts(name, v, x.shape)
    scale, bias = (None if v is None else to_rank(v, x.ndim) for v in (scale, bias))
    return _core.normalize(x, m, axes, scale, bias, eps, _checks.mask(mask, x.shape))
