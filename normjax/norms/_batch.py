"""Batch normalization: statistics over the batch, kept as running averages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Affine, Hyper, Norm, Stats
from normjax.norms import _dispatch
from normjax.norms._affine import broadcast_affine, initial_affine
from normjax.statistics import _measure, _normalize, _running
from normjax.statistics._types import Accumulator, Array, AxisName, Moments, Running


@dataclasses.dataclass(frozen=True, repr=False)
class BatchNorm(Norm):
    """The value behind `batch_norm`; see there."""

    factory: ClassVar[str] = "batch_norm"
    stateful: ClassVar[bool] = True
    hyper_names: ClassVar[tuple[str, ...]] = ("decay",)

    axes: tuple[int, ...] | None = None
    eps: float = 1e-5
    decay: float = 0.99
    correction: int = 0
    use_scale: bool = True
    use_bias: bool = True
    scale_init: float = 1.0
    bias_init: float = 0.0
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    impl: _dispatch.Impl = "xla"

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[Affine, Running]:
        """Return `(Affine, Running)` of the shape of the features; `key` is not used."""
        del key
        features = tuple(shape[a] for a in self._kept(len(shape)))
        return initial_affine(self, features, dtype), _running.initial_running(features, dtype)

    def moments(
        self, params: Affine, x: Array, *, mask: Array | None = None, axis_name: AxisName = None
    ) -> Moments:
        """Measure this batch, over all devices of `axis_name`."""
        del params
        groups = self.axis_index_groups if axis_name is not None else None
        axes = _checks.resolve_axes(self.axes, jnp.ndim(x))
        found = _dispatch.kernel_moments(self, x, axes, mask)
        if found is not None:
            return _measure.pool(found, axis_name, groups)
        return _measure.moments(x, axes, mask=mask, axis_name=axis_name, axis_index_groups=groups)

    def transform(
        self,
        params: Affine,
        state: Running | Accumulator,
        measured: Moments | None,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Normalize with this batch's statistics or the kept ones."""
        del hyper
        kept = self._kept(jnp.ndim(x))
        _checks.same_features(state, tuple(jnp.shape(x)[a] for a in kept), self.factory)
        at = broadcast_affine(params, kept, jnp.shape(x))
        m = _running.select(state, measured, stats)
        axes = _checks.resolve_axes(self.axes, jnp.ndim(x))
        y = _dispatch.kernel_standardize(self, params, m, x, axes, mask)
        if y is not None:
            return y
        return _normalize.normalize(
            x, m, axes, scale=at.scale, bias=at.bias, eps=self.eps, mask=mask
        )

    def update(
        self,
        state: Running | Accumulator,
        measured: Moments | None,
        *,
        stats: Stats,
        hyper: Hyper = None,
    ) -> Running | Accumulator:
        """Move the running average; never toward an empty or non-finite batch."""
        decay = (hyper or {}).get("decay", self.decay)
        return _running.accumulate(
            state, measured, stats=stats, decay=decay, correction=self.correction
        )

    def _kept(self, ndim: int) -> tuple[int, ...]:
        axes = _checks.resolve_axes(self.axes, ndim)
        return tuple(a for a in range(ndim) if a not in axes)


@_hints.with_hints()
def batch_norm(
    *,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    decay: float = 0.99,
    correction: int = 0,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    impl: _dispatch.Impl = "xla",
) -> Norm:
    r"""Batch normalization: each feature over the batch (and space), Ioffe and Szegedy's.

    $$y = \gamma\,\frac{x - \mu_B}{\sqrt{\sigma_B^2 + \epsilon}} + \beta, \qquad
      \text{running} \leftarrow d \cdot \text{running} + (1 - d) \cdot (\mu_B, \sigma_B^2)$$

    The state is `Running(mean, var)`; it starts at 0 and 1, has Flax's layout, and is kept in
    at least float32. A batch that is fully masked, or not finite, leaves it as it is.

    Args:
        axes: axes averaged over. `None`, all but the last, shares a convolution's statistics
            per feature map; `(0,)` keeps them per activation.
        eps: added to the variance; the paper names no value, 1e-5 is every library's.
        decay: weight of the old running value, in [0, 1]; what PyTorch calls momentum is
            1 - decay. May be given at each call as `hyper={"decay": d}`.
        correction: variance that is *stored*: 0 the biased one (Flax), 1 times n/(n-1) (paper,
            PyTorch). What normalizes a batch is always biased.
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: start of gamma; 0 makes a residual branch start as identity, 0.1 is the
            recurrent paper's.
        bias_init: start of beta.
        axis_index_groups: groups of device indices whose statistics are pooled apart, under
            `axis_name`.
        impl: `"xla"`, or `"kernel"`: kernels of ours where they serve (`normjax.kernels`), which
            no device has tried yet and a CPU interprets, slowly.

    Returns:
        A `Norm` with params `Affine` and state `Running`.

    Raises:
        ValueError: a number outside its range, axes that name nothing.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.batch_norm(decay=0.5)
        >>> params, state = norm.init((1, 3))
        >>> x = jnp.arange(12.0).reshape(4, 3)
        >>> y, state = norm.apply(params, state, x, stats="batch")
        >>> state.mean.tolist()
        [2.25, 2.75, 3.25]

    Reference:
        Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
        Internal Covariate Shift", 2015.
    """
    _checks.positive("eps", eps)
    _checks.unit_interval("decay", decay, hint=": it is the weight of the old value")
    _checks.one_of("correction", correction, (0, 1))
    _checks.number("scale_init", scale_init)
    _checks.number("bias_init", bias_init)
    groups = axis_index_groups
    return BatchNorm(
        axes=_checks.axes(axes),
        eps=eps,
        decay=decay,
        correction=correction,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
        axis_index_groups=None if groups is None else tuple(tuple(g) for g in groups),
        impl=_dispatch.check(impl),
    )


def fields_of(norm: Any) -> dict[str, Any]:
    """Return the fields of a norm, to make a relative with more of them."""
    return {f.name: getattr(norm, f.name) for f in dataclasses.fields(norm)}
