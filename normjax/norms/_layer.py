"""Layer normalization, over the features of each sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from normjax._internal import _hints
from normjax.base import Norm
from normjax.norms._per_sample import FeatureNorm
from normjax.statistics._types import AxisName


@dataclasses.dataclass(frozen=True, repr=False)
class LayerNorm(FeatureNorm):
    """Layer normalization as a value; made by `layer_norm`."""

    factory: ClassVar[str] = "layer_norm"
    centred: ClassVar[bool] = True


@_hints.with_hints()
def layer_norm(
    *,
    axes: int | Sequence[int] = -1,
    feature_axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    feature_axis_name: AxisName = None,
    impl: Literal["xla", "kernel"] = "xla",
) -> Norm:
    r"""Layer normalization: over the features of one sample, separately at every position.

    $$y = \gamma \odot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta, \qquad
      \mu = \tfrac1H \sum_{i=1}^H x_i$$

    Nothing depends on the batch, so there is no state and both modes are the same.

    *Adaptive* layer norm, whose gain and bias are computed from a condition, is this norm called
    with other params: `Affine(1 + scale, shift)`, where both have the batch axes before the
    feature axes (`[batch, features]` for x of shape `[batch, time, features]`).

    Args:
        axes: axes averaged over, those of the features.
        feature_axes: axes of scale and bias; by default the same as `axes`.
        eps: added to the variance; 1e-5 as in the authors' code (Flax: 1e-6).
        use_scale: whether there is a gain.
        use_bias: whether there is a bias.
        scale_init: initial gain; the authors found 1 better than 0.1, which suits recurrent batch
            norm.
        bias_init: initial bias.
        feature_axis_name: device axis that the *features* are split over.
        impl: `"xla"`, or `"kernel"` to use the kernels of `normjax.kernels` where possible. On an
            H100 a forward pass with them reads x once, and training gains nothing. No TPU has run
            them. A CPU runs the plain formulas.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        TypeError: `scale_init` or `bias_init` is not a plain number.
        ValueError: a number is outside its range, or `axes` are empty or repeat an axis.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.layer_norm()
        >>> params, state = norm.init((1, 2))
        >>> y, state = norm.apply(params, state, jnp.array([[1.0, 3.0]]), stats="batch")
        >>> [round(v, 3) for v in y[0].tolist()]
        [-1.0, 1.0]
        >>> adapted = nj.Affine(scale=jnp.array([[2.0, 2.0]]), bias=jnp.array([[0.5, 0.5]]))
        >>> y, _ = norm.apply(adapted, (), jnp.array([[[1.0, 3.0]]]), stats="batch")
        >>> [round(v, 3) for v in y[0, 0].tolist()]
        [-1.5, 2.5]

    Reference:
        Ba, Kiros, Hinton, "Layer Normalization", 2016; Peebles, Xie, "Scalable Diffusion Models
        with Transformers", 2023 (the adaptive one).
    """
    return LayerNorm(**locals())
