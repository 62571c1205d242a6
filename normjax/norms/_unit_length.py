"""Norms that divide by the Euclidean length: `l2_norm`, `scale_norm`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax

from normjax._internal import _checks, _hints
from normjax.base import Affine, Call, Norm
from normjax.norms._per_sample import PerSampleNorm
from normjax.statistics import _core
from normjax.statistics._types import AxisName, Moments, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class L2Norm(PerSampleNorm):
    """L2 normalization as a value; made by `l2_norm`."""

    factory: ClassVar[str] = "l2_norm"

    axes: int | Sequence[int] = (-1,)
    eps: float = 1e-12
    use_scale: bool = False
    use_bias: bool = False
    feature_axis_name: AxisName = None

    def __post_init__(self) -> None:
        """Check the fields and bring `axes` into canonical form."""
        super().__post_init__()
        _checks.set_field(self, "axes", _checks.axes(self.axes) or (-1,))

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of one vector."""
        return _checks.resolve_axes(self.axes, ndim)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of scale, those of one vector."""
        return self.averaged(ndim)

    def measure(self, params: Affine, x: jax.Array, call: Call) -> Moments:
        """Return moments whose variance is the squared length: the sum of squares, not the mean."""
        del params
        m = _core.mean_square(x, self.averaged(x.ndim), call.mask, self.feature_axis_name)
        return m._replace(var=m.var * m.count)


@_hints.with_hints()
def l2_norm(
    *,
    axes: int | Sequence[int] = -1,
    eps: float = 1e-12,
    use_scale: bool = False,
    scale_init: float = 1.0,
    feature_axis_name: AxisName = None,
) -> Norm:
    r"""L2 normalization: divides each vector by its Euclidean length.

    $$y = \gamma \odot \frac{x}{\sqrt{\sum_i x_i^2 + \epsilon}}$$

    Args:
        axes: axes of one vector.
        eps: added to the squared length; the paper has none, and 1e-12 makes no difference to a
            vector that is longer than 1e-3.
        use_scale: whether there is a learned gain for each feature.
        scale_init: initial gain.
        feature_axis_name: device axis that the *features* are split over.

    Returns:
        A `Norm` with params `Affine` (its bias is `None`) and no state.

    Raises:
        TypeError: `scale_init` is not a plain number.
        ValueError: a number is outside its range, or `axes` are empty or repeat an axis.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.l2_norm()
        >>> params, state = norm.init((1, 2))
        >>> y, state = norm.apply(params, state, jnp.array([[3.0, 4.0]]), stats="batch")
        >>> [round(v, 3) for v in y[0].tolist()]
        [0.6, 0.8]

    Reference:
        Liu, Rabinovich, Berg, "ParseNet: Looking Wider to See Better", 2015 (with the gain).
    """
    return L2Norm(**locals())


@dataclasses.dataclass(frozen=True, repr=False)
class ScaleNorm(L2Norm):
    """Scale normalization as a value; made by `scale_norm`."""

    factory: ClassVar[str] = "scale_norm"

    eps: float = 1e-10
    use_scale: bool = True
    scale_init: float | None = None  # type: ignore[assignment]  # None: sqrt(number of features)

    def __post_init__(self) -> None:
        """Check the fields and bring `axes` into canonical form."""
        if self.scale_init is not None:
            return super().__post_init__()
        dataclasses.replace(self, scale_init=1.0)  # checks all other fields
        _checks.set_field(self, "axes", _checks.axes(self.axes) or (-1,))

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return no axes: one gain is shared by all features."""
        return ()

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[Affine, PyTree]:
        """Return `(Affine, ())` with a scalar gain; `key` is not used."""
        if self.scale_init is not None:
            return super().start(shape, dtype, key)
        size = math.prod(shape[a] for a in self.averaged(len(shape)))
        return dataclasses.replace(self, scale_init=math.sqrt(size)).start(shape, dtype, key)


@_hints.with_hints()
def scale_norm(
    *, axes: int | Sequence[int] = -1, eps: float = 1e-10, scale_init: float | None = None
) -> Norm:
    r"""Scale normalization: divides each vector by its length and multiplies by one learned gain.

    $$y = g\,\frac{x}{\sqrt{\sum_i x_i^2 + \epsilon}}$$

    Args:
        axes: axes of one vector.
        eps: added to the squared length; the authors' code bounds the length below by 1e-5,
            the root of 1e-10.
        scale_init: initial g; `None` is the root of the number of features, as in the paper.

    Returns:
        A `Norm` with params `Affine` (a scalar scale, its bias is `None`) and no state.

    Raises:
        TypeError: `scale_init` is not a plain number.
        ValueError: a number is outside its range, or `axes` are empty or repeat an axis.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.scale_norm()
        >>> params, state = norm.init((1, 4))
        >>> y, state = norm.apply(params, state, jnp.array([[3.0, 4.0, 0, 0]]), stats="batch")
        >>> float(params.scale), [round(v, 3) for v in y[0].tolist()]
        (2.0, [1.2, 1.6, 0.0, 0.0])

    Reference:
        Nguyen, Salazar, "Transformers without Tears: Improving the Normalization of
        Self-Attention", 2019.
    """
    return ScaleNorm(**locals())
