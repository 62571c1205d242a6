"""Norms that scale and do not centre: by the root mean square, by the length."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax import _checks, _impl, _moments, _words
from normjax._affine import check_affine
from normjax._one_sample import OneSample
from normjax.base import Affine, Array, AxisName, Hyper, Moments, Norm, PyTree, Stats


@dataclasses.dataclass(frozen=True, repr=False)
class RMSNorm(OneSample):
    """The value behind `rms_norm`; see there."""

    factory: ClassVar[str] = "rms_norm"

    axes: tuple[int, ...] = (-1,)
    feature_axes: tuple[int, ...] | None = None
    use_bias: bool = False
    unit_offset: bool = False
    partial: float = 1.0
    feature_axis_name: AxisName = None
    impl: _impl.Impl = "xla"

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of the features."""
        return _checks.resolve_axes(self.axes, ndim)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of the affine, by default the same."""
        axes = self.axes if self.feature_axes is None else self.feature_axes
        return _checks.resolve_axes(axes, ndim, name="feature_axes")

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[Affine, PyTree]:
        """Return `(Affine, ())`; with `unit_offset` the scale is stored less 1."""
        if not self.unit_offset:
            return super().init(shape, dtype, key=key)
        stored = dataclasses.replace(self, unit_offset=False, scale_init=self.scale_init - 1)
        return stored.init(shape, dtype, key=key)

    def measure(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Return the mean square, over all devices that share the features."""
        axes = self.averaged(x.ndim)
        if self.partial < 1:
            (axis,) = axes
            # Less a hair, so that 0.07 of 100 features, 7.000000000000001, are 7 and not 8.
            first = max(1, math.ceil(x.shape[axis] * self.partial - 1e-9))
            x = jax.lax.slice_in_dim(x, 0, first, axis=axis)
            if mask is not None and mask.shape[axis] > 1:
                mask = jax.lax.slice_in_dim(mask, 0, first, axis=axis)
        return _moments.mean_square(x, axes, mask=mask, axis_name=self.feature_axis_name)

    def transform(
        self,
        params: Affine,
        state: PyTree,
        seen: Moments,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Scale each sample by itself."""
        if self.unit_offset and params.scale is not None:
            # Widened first: near 1, a bfloat16 sum would round most of what was learned away.
            scale = jnp.asarray(params.scale)
            params = params._replace(scale=1 + scale.astype(_moments.stat_dtype(scale.dtype)))
        return super().transform(params, state, seen, x, stats=stats, mask=mask, hyper=hyper)

    def by_kernel(
        self, params: Affine, seen: Moments, x: jax.Array, mask: Array | None
    ) -> jax.Array | None:
        """Scale rows; the kernel measures them once more, on the chip."""
        del seen
        return None if self.partial < 1 else _impl.rows(self, params, x, mask, centred=False)


@_words.told()
def rms_norm(
    *,
    axes: int | Sequence[int] = -1,
    feature_axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_bias: bool = False,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    unit_offset: bool = False,
    partial: float = 1.0,
    feature_axis_name: AxisName = None,
    impl: _impl.Impl = "xla",
) -> Norm:
    r"""Root mean square normalization: layer norm without centring.

    $$y = \gamma \odot \frac{x}{\sqrt{\tfrac1H \sum_{i=1}^H x_i^2 + \epsilon}}\;(+\,\beta)$$

    Args:
        axes: axes averaged over, those of the features.
        feature_axes: axes that scale and bias run over; by default the same.
        eps: added to the mean square, inside the root; 1e-5 as in the authors' Theano code
            (their PyTorch code adds 1e-8 to the root).
        use_scale: whether there is a gain.
        use_bias: whether there is a bias; the paper has none.
        scale_init: start of the gain that is applied.
        bias_init: start of the bias.
        unit_offset: store the gain less 1, so that it starts at 0 and weight decay pulls it
            to 1; what is applied is 1 + stored.
        partial: fraction of the features, the first ones (rounded up), that the mean square
            is taken over: pRMSNorm; the paper's is 0.0625. In (0, 1].
        feature_axis_name: device axis that the *features* are split over.
        impl: `"xla"`, or `"kernel"`: kernels of ours where they serve (`normjax.kernels`), which
            no device has tried yet and a CPU interprets, slowly.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        ValueError: a number outside its range, axes that name nothing, `partial` over more
            than one axis or over split features.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.rms_norm(unit_offset=True)
        >>> params, state = norm.init((1, 2))
        >>> y, state = norm.apply(params, state, jnp.array([[1.0, 7.0]]), stats="batch")
        >>> params.scale.tolist(), [round(v, 3) for v in y[0].tolist()]
        ([0.0, 0.0], [0.2, 1.4])

    Reference:
        Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    check_affine(eps, scale_init, bias_init)
    _checks.fraction("partial", partial)
    _checks.positive("partial", partial)
    found = _checks.axes(axes) or (-1,)
    if partial < 1 and (len(found) > 1 or feature_axis_name is not None):
        raise ValueError(
            "rms_norm(partial=...) takes the first features of one axis that is whole on each "
            "device: write axes=-1 and no feature_axis_name"
        )
    return RMSNorm(
        axes=found,
        feature_axes=_checks.axes(feature_axes),
        eps=eps,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
        unit_offset=unit_offset,
        partial=partial,
        feature_axis_name=feature_axis_name,
        impl=_impl.check(impl),
    )


@dataclasses.dataclass(frozen=True, repr=False)
class L2Norm(OneSample):
    """The value behind `l2_norm`; see there."""

    factory: ClassVar[str] = "l2_norm"

    axes: tuple[int, ...] = (-1,)
    eps: float = 1e-12
    use_scale: bool = False
    use_bias: bool = False
    feature_axis_name: AxisName = None

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of one vector."""
        return _checks.resolve_axes(self.axes, ndim)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the same axes."""
        return self.averaged(ndim)

    def measure(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Return moments whose spread is the squared length: the sum, not the mean."""
        axes = self.averaged(x.ndim)
        m = _moments.mean_square(x, axes, mask=mask, axis_name=self.feature_axis_name)
        return m._replace(var=m.var * m.count)


@_words.told()
def l2_norm(
    *,
    axes: int | Sequence[int] = -1,
    eps: float = 1e-12,
    use_scale: bool = False,
    scale_init: float = 1.0,
    feature_axis_name: AxisName = None,
) -> Norm:
    r"""Unit length: each vector divided by its Euclidean norm.

    $$y = \gamma \odot \frac{x}{\sqrt{\sum_i x_i^2 + \epsilon}}$$

    Args:
        axes: axes of one vector.
        eps: added to the squared length; the paper has none, and 1e-12 is lost beside any
            vector that is longer than 1e-3.
        use_scale: whether there is a learned gain for each feature.
        scale_init: start of the gain.
        feature_axis_name: device axis that the *features* are split over.

    Returns:
        A `Norm` with params `Affine` (its bias `None`) and no state.

    Raises:
        ValueError: a number outside its range, axes that name nothing.

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
    check_affine(eps, scale_init)
    return L2Norm(
        axes=_checks.axes(axes) or (-1,),
        eps=eps,
        use_scale=use_scale,
        scale_init=scale_init,
        feature_axis_name=feature_axis_name,
    )


@dataclasses.dataclass(frozen=True, repr=False)
class ScaleNorm(L2Norm):
    """The value behind `scale_norm`; see there."""

    factory: ClassVar[str] = "scale_norm"

    eps: float = 1e-10
    use_scale: bool = True
    scale_init: float | None = None  # type: ignore[assignment]  # None: the root of the features

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return no axis: one gain for all features."""
        return ()

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[Affine, PyTree]:
        """Return `(Affine, ())`, the gain a scalar; `key` is not used."""
        if self.scale_init is not None:
            return super().init(shape, dtype, key=key)
        size = math.prod(shape[a] for a in self.averaged(len(shape)))
        return dataclasses.replace(self, scale_init=math.sqrt(size)).init(shape, dtype, key=key)


@_words.told()
def scale_norm(
    *, axes: int | Sequence[int] = -1, eps: float = 1e-10, scale_init: float | None = None
) -> Norm:
    r"""Scale normalization: unit length times one learned number.

    $$y = g\,\frac{x}{\sqrt{\sum_i x_i^2 + \epsilon}}$$

    Args:
        axes: axes of one vector.
        eps: added to the squared length; the authors' code bounds the length below by 1e-5,
            the root of 1e-10.
        scale_init: start of g; `None` is the root of the number of features, as in the paper.

    Returns:
        A `Norm` with params `Affine` (a scalar scale, its bias `None`) and no state.

    Raises:
        ValueError: a number outside its range, axes that name nothing.

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
    check_affine(eps, 1.0 if scale_init is None else scale_init)
    return ScaleNorm(axes=_checks.axes(axes) or (-1,), eps=eps, scale_init=scale_init)
