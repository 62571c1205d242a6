"""Adaptive instance normalization: gives one image the channel statistics of another."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Inexact

from normjax._internal import _checks
from normjax.norms._per_sample import spatial_axes
from normjax.statistics import _moments, _normalize, _shapes
from normjax.statistics._types import Array


def adain(
    content: Inexact[Array, "*shape"],
    style: Inexact[Array, "..."],
    axes: int | Sequence[int] | None = None,
    *,
    eps: float = 1e-5,
    mask: Bool[Array, "..."] | None = None,
    style_mask: Bool[Array, "..."] | None = None,
) -> Inexact[jax.Array, "*shape"]:
    r"""Give the content the mean and spread of the style: adaptive instance normalization.

    $$y = \sigma(s)\,\frac{c - \mu(c)}{\sigma(c)} + \mu(s), \qquad
      \sigma = \sqrt{\sigma^2 + \epsilon}$$

    Mean and spread are taken over space, for each channel of each sample. Content and style may
    differ in the size of space, but not in their other axes.

    Args:
        content: floating, `[batch, *space, channels]`.
        style: floating, as many axes as `content`.
        axes: spatial axes of both. `None`: all between the first and the last.
        eps: added to both variances, so that a style without spread has a gradient. The authors'
            code adds it to the content's variance alone.
        mask: True where the content counts; rank of `content`. Masked outputs are the
            style's mean.
        style_mask: True where the style counts; rank of `style`.

    Returns:
        Output of the shape and dtype of `content`.

    Raises:
        TypeError: `content` or `style` is not floating, or a mask is not boolean.
        ValueError: the axes do not fit, other axes differ in size, or `eps` is not positive.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> content, style = jnp.array([[[1.0], [3.0]]]), jnp.array([[[0.0], [10.0], [20.0]]])
        >>> [round(v, 2) for v in nj.adain(content, style).ravel().tolist()]
        [1.84, 18.16]

    Reference:
        Huang, Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance
        Normalization", 2017.
    """
    _checks.positive("eps", eps)
    content, style = _checks.floating(content, "adain"), _checks.floating(style, "adain")
    space = spatial_axes(_checks.axes(axes), content.ndim, "adain", empty=False)
    remaining = tuple(a for a in range(content.ndim) if a not in space)
    if style.ndim != content.ndim or any(style.shape[a] != content.shape[a] for a in remaining):
        raise ValueError(
            f"adain got content of shape {content.shape} and style of shape {style.shape}: they "
            f"may differ in the spatial axes {space} alone; repeat or broadcast the style first"
        )
    dtype, content, style = content.dtype, _shapes.widen_half(content), _shapes.widen_half(style)
    m = _moments.moments(content, space, mask=mask)
    s = _moments.moments(style, space, mask=style_mask)
    # The style's statistics are an affine per sample: [batch, 1, ..., 1, channels].
    y = _normalize.normalize(
        content,
        m,
        space,
        scale=_shapes.expand(jnp.sqrt(s.var + eps), remaining, content.ndim),
        bias=_shapes.expand(s.mean, remaining, content.ndim),
        eps=eps,
        mask=_checks.mask(mask, content.shape),
    )
    return y.astype(dtype)
