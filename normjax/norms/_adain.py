"""Adaptive instance normalization: the statistics of one image on the content of another."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Inexact

from normjax._internal import _checks
from normjax.norms._per_sample import spatial_axes
from normjax.statistics import _measure, _normalize, _shapes
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
    r"""Adaptive instance normalization: the content with the style's mean and spread.

    $$y = \sigma(s)\,\frac{c - \mu(c)}{\sigma(c)} + \mu(s), \qquad
      \sigma = \sqrt{\sigma^2 + \epsilon}$$

    Mean and spread are those of each channel of each sample over space. Space of content and
    style may differ in size, and their other axes not.

    Args:
        content: floating, `[batch, *space, channels]`.
        style: floating, as many axes as `content`.
        axes: axes of space in both. `None`: all between the first and the last.
        eps: added to both variances, as in the authors' code.
        mask: True where the content counts; rank of `content`. Masked outputs are the
            style's mean.
        style_mask: True where the style counts; rank of `style`.

    Returns:
        Output of the shape and dtype of `content`.

    Raises:
        ValueError: axes that do not fit, other axes of different sizes, eps not positive.

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
    over = spatial_axes(_checks.axes(axes), content.ndim, "adain", empty=False)
    kept = tuple(a for a in range(content.ndim) if a not in over)
    if style.ndim != content.ndim or any(style.shape[a] != content.shape[a] for a in kept):
        raise ValueError(
            f"adain got content of shape {content.shape} and style of shape {style.shape}: they "
            f"may differ in the axes of space {over} alone; repeat or broadcast the style first"
        )
    m = _measure.moments(content, over, mask=mask)
    s = _measure.moments(style, over, mask=style_mask)
    return _normalize.normalize(
        content,
        m,
        over,
        scale=_shapes.expand(jnp.sqrt(s.var + eps), kept, content.ndim),
        bias=_shapes.expand(s.mean, kept, content.ndim),
        eps=eps,
        mask=_checks.mask(mask, content.shape),
    )
