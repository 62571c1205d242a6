"""Scales from elsewhere: a squashing function in place of statistics, a style's statistics.

Adaptive *layer* norm (and group, instance, RMS norm) needs no function of its own: these norms
take an `Affine` per sample at the call. Adaptive *instance* norm after Huang and Belongie
takes gain and bias from the moments of another image, which is `adain`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Inexact, Num

from normjax import _checks, _moments, _words
from normjax._affine import check_affine, place, place_one, start_affine
from normjax._one_sample import space, wide
from normjax.base import Affine, Array, AxisName, Hyper, Norm, PyTree, Stats


class Tanh(NamedTuple):
    """Parameters of `dynamic_tanh`.

    Attributes:
        alpha: slope at 0, a scalar.
        scale: gamma, one a feature, or `None`.
        bias: beta, one a feature, or `None`.
    """

    alpha: Num[Array, "*samples"]
    scale: Num[Array, "*features"] | None
    bias: Num[Array, "*features"] | None


@dataclasses.dataclass(frozen=True, repr=False)
class DynamicTanh(Norm):
    """The value behind `dynamic_tanh`; see there."""

    factory: ClassVar[str] = "dynamic_tanh"

    alpha_init: float = 0.5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: float = 1.0
    bias_init: float = 0.0

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[Tanh, PyTree]:
        """Return `(Tanh, ())`, the affine over the last axis; `key` is not used."""
        del key
        affine = start_affine(self, shape[-1:], dtype)
        return Tanh(jnp.full((), self.alpha_init, dtype), affine.scale, affine.bias), ()

    def moments(
        self, params: Tanh, x: Array, *, mask: Array | None = None, axis_name: AxisName = None
    ) -> None:
        """Measure nothing."""
        del params, x, mask, axis_name

    def transform(
        self,
        params: Tanh,
        state: PyTree,
        seen: None,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Squash each value by itself."""
        del state, seen, stats, hyper
        x = jnp.asarray(x)
        alpha = place_one(params.alpha, (), x.shape)
        squashed = jnp.tanh(_moments.affine(wide(x, mask), alpha, None))
        at = place(Affine(params.scale, params.bias), (x.ndim - 1,), x.shape)
        return _moments.affine(squashed, at.scale, at.bias).astype(x.dtype)


@_words.told()
def dynamic_tanh(
    *,
    alpha_init: float = 0.5,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
) -> Norm:
    r"""Dynamic tanh: the squashing that layer norm amounts to, without its statistics.

    $$y = \gamma \odot \tanh(\alpha x) + \beta$$

    Args:
        alpha_init: start of the one learned slope; 0.5, the paper's. For large language models
            it advises more in front of attention than elsewhere (0.8 and 0.2 at 7B).
        use_scale: whether there is a gain over the last axis.
        use_bias: whether there is a bias over the last axis.
        scale_init: start of the gain.
        bias_init: start of the bias.

    Returns:
        A `Norm` with params `Tanh` and no state.

    Raises:
        TypeError: a start that is not a plain number.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.dynamic_tanh()
        >>> params, state = norm.init((1, 2))
        >>> y, state = norm.apply(params, state, jnp.array([[-100.0, 1.0]]), stats="batch")
        >>> [round(v, 3) for v in y[0].tolist()]
        [-1.0, 0.462]

    Reference:
        Zhu, Chen, He, LeCun, Liu, "Transformers without Normalization", 2025.
    """
    for name, value in (
        ("alpha_init", alpha_init),
        ("scale_init", scale_init),
        ("bias_init", bias_init),
    ):
        _checks.number(name, value)
    return DynamicTanh(alpha_init, use_scale, use_bias, scale_init, bias_init)


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
    check_affine(eps)
    content, style = _checks.floating(content, "adain"), _checks.floating(style, "adain")
    over = space(_checks.axes(axes), content.ndim, "adain", empty=False)
    kept = tuple(a for a in range(content.ndim) if a not in over)
    if style.ndim != content.ndim or any(style.shape[a] != content.shape[a] for a in kept):
        raise ValueError(
            f"adain got content of shape {content.shape} and style of shape {style.shape}: they "
            f"may differ in the axes of space {over} alone; repeat or broadcast the style first"
        )
    m = _moments.moments(content, over, mask=mask)
    s = _moments.moments(style, over, mask=style_mask)
    return _moments.normalize(
        content,
        m,
        over,
        scale=_moments.expand(jnp.sqrt(s.var + eps), kept, content.ndim),
        bias=_moments.expand(s.mean, kept, content.ndim),
        eps=eps,
        mask=_checks.mask(mask, content.shape),
    )
