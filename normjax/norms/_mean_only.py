"""Mean-only batch normalization."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Affine, Hyper, Norm, Stats
from normjax.statistics import _formulas, _measure, _running, _shapes
from normjax.statistics._types import Array, AxisName, Means, PyTree, RunningMean


@dataclasses.dataclass(frozen=True, repr=False)
class MeanOnlyBatchNorm(Norm):
    """The value behind `mean_only_batch_norm`; see there."""

    factory: ClassVar[str] = "mean_only_batch_norm"
    stateful: ClassVar[bool] = True
    hyper_names: ClassVar[tuple[str, ...]] = ("decay",)

    axes: tuple[int, ...] | None = None
    decay: float = 0.9
    use_bias: bool = True
    bias_init: float = 0.0
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[Affine, PyTree]:
        """Return `(Affine(None, bias), RunningMean)`; `key` is not used."""
        del key
        features = tuple(shape[a] for a in self._kept(len(shape)))
        bias = jnp.full(features, self.bias_init, dtype) if self.use_bias else None
        mean = jnp.zeros(features, _shapes.stat_dtype(dtype))
        return Affine(None, bias), RunningMean(mean)

    def moments(
        self, params: Affine, x: Array, *, mask: Array | None = None, axis_name: AxisName = None
    ) -> Means:
        """Measure this batch's means, over all devices of `axis_name`."""
        del params
        groups = self.axis_index_groups if axis_name is not None else None
        return _measure.means(
            x, self.axes, mask=mask, axis_name=axis_name, axis_index_groups=groups
        )

    def transform(
        self,
        params: Affine,
        state: PyTree,
        measured: Means | None,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Subtract this batch's means or the kept ones."""
        del hyper
        x = jnp.asarray(x)
        kept = self._kept(x.ndim)
        _checks.same_features(state, tuple(x.shape[a] for a in kept), self.factory)
        mean = _running.select(state, measured, stats).mean
        d = _formulas.center(x, _shapes.expand(mean, kept, x.ndim), mask)
        bias = None if params.bias is None else _shapes.expand(params.bias, kept, x.ndim)
        return _formulas.affine(d, None, bias).astype(x.dtype)

    def update(
        self, state: PyTree, measured: Means | None, *, stats: Stats, hyper: Hyper = None
    ) -> PyTree:
        """Move the running means; never toward an empty or non-finite batch."""
        decay = (hyper or {}).get("decay", self.decay)
        return _running.accumulate(state, measured, stats=stats, decay=decay, correction=0)

    def _kept(self, ndim: int) -> tuple[int, ...]:
        axes = _checks.resolve_axes(self.axes, ndim)
        return tuple(a for a in range(ndim) if a not in axes)


@_hints.with_hints()
def mean_only_batch_norm(
    *,
    axes: int | Sequence[int] | None = None,
    decay: float = 0.9,
    use_bias: bool = True,
    bias_init: float = 0.0,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Norm:
    r"""Mean-only batch normalization: centred over the batch, never scaled by it.

    $$y = x - \mu_B + \beta$$

    Meant for the output of a layer with weight normalization, which sets the scale. The noise
    that the batch adds is then gentler than that of full batch norm.

    Args:
        axes: axes averaged over; `None` is all but the last.
        decay: weight of the old running mean, in [0, 1]; 0.9 in the authors' code. May be given
            at each call as `hyper={"decay": d}`.
        use_bias: whether there is a beta.
        bias_init: start of beta.
        axis_index_groups: groups of device indices whose means are pooled apart, under
            `axis_name`.

    Returns:
        A `Norm` with params `Affine(None, bias)` and state `RunningMean`.

    Raises:
        ValueError: a number outside its range, axes that name nothing.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.mean_only_batch_norm(decay=0.5)
        >>> params, state = norm.init((1, 1))
        >>> y, state = norm.apply(params, state, jnp.array([[1.0], [4.0]]), stats="batch")
        >>> y.ravel().tolist(), state.mean.tolist()
        ([-1.5, 1.5], [1.25])

    Reference:
        Salimans, Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate
        Training of Deep Neural Networks", 2016, section 4.
    """
    _checks.unit_interval("decay", decay, hint=": it is the weight of the old value")
    _checks.number("bias_init", bias_init)
    groups = axis_index_groups
    return MeanOnlyBatchNorm(
        axes=_checks.axes(axes),
        decay=decay,
        use_bias=use_bias,
        bias_init=bias_init,
        axis_index_groups=None if groups is None else tuple(tuple(g) for g in groups),
    )
