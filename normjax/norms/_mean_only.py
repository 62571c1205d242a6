"""Mean-only batch normalization: subtracts the mean over the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Affine, Call, Norm
from normjax.norms._affine import check_affine, check_running
from normjax.statistics import _core, _formulas, _running, _shapes
from normjax.statistics._types import Debias, Means, PyTree, RunningMean


@dataclasses.dataclass(frozen=True, repr=False)
class MeanOnlyBatchNorm(Norm):
    """Mean-only batch normalization as a value; made by `mean_only_batch_norm`."""

    factory: ClassVar[str] = "mean_only_batch_norm"
    stateful: ClassVar[bool] = True
    hyper_names: ClassVar[tuple[str, ...]] = ("decay",)

    axes: int | Sequence[int] | None = None
    decay: float = 0.9
    use_bias: bool = True
    bias_init: float = 0.0
    axis_index_groups: Sequence[Sequence[int]] | None = None
    allow_single: bool = False
    compensated: bool = False
    debias: Debias = False

    def __post_init__(self) -> None:
        """Check the fields and bring axes and groups into canonical form."""
        check_affine(1.0, self.bias_init)
        check_running(self.decay, 0, self.debias)
        _checks.set_field(self, "axes", _checks.axes(self.axes))
        _checks.set_field(self, "axis_index_groups", _checks.groups(self.axis_index_groups))

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[Affine, PyTree]:
        """Return `(Affine(None, bias), RunningMean)`."""
        del key
        features = tuple(shape[a] for a in self.feature_axes(len(shape)))
        bias = jnp.full(features, self.bias_init, dtype) if self.use_bias else None
        running = RunningMean(jnp.zeros(features, _shapes.stat_dtype(dtype)))
        return Affine(None, bias), _running.extended(running, self.compensated, self.debias)

    def measure(self, params: Affine, x: jax.Array, call: Call) -> Means:
        """Measure this batch's means over all devices of `axis_name`."""
        del params
        axes = _checks.resolve_axes(self.axes, x.ndim)
        groups = self.axis_index_groups if call.axis_name is not None else None
        return _core.means(x, axes, call.mask, call.axis_name, groups)

    def transform(
        self, params: Affine, state: PyTree, measured: Means | None, x: jax.Array, call: Call
    ) -> jax.Array:
        """Subtract this batch's means or the running ones."""
        features = self.feature_axes(x.ndim)
        _checks.same_features(state, tuple(x.shape[a] for a in features), self.factory)
        mean = _running.select(state, measured, call.stats).mean
        d = _formulas.center(x, _shapes.expand(mean, features, x.ndim), call.mask)
        bias = None if params.bias is None else _shapes.expand(params.bias, features, x.ndim)
        return _formulas.affine(d, None, bias).astype(x.dtype)

    def update(self, state: PyTree, measured: Means | None, call: Call) -> PyTree:
        """Update the running means, skipping empty and nonfinite batches."""
        decay = (call.hyper or {}).get("decay", self.decay)
        return _running.accumulate(
            state, measured, stats=call.stats, decay=decay, correction=0, debias=self.debias
        )

    def feature_axes(self, ndim: int) -> tuple[int, ...]:
        """Return the axes that are not averaged over."""
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
    allow_single: bool = False,
    compensated: bool = False,
    debias: Debias = False,
) -> Norm:
    r"""Mean-only batch normalization: subtracts the batch's mean and does not scale.

    $$y = x - \mu_B + \beta$$

    It is meant for the output of a layer with weight normalization, which sets the scale. The
    batch then adds less noise than in full batch norm.

    Args:
        axes: axes averaged over; `None` is all but the last.
        decay: weight of the old running mean, in [0, 1]; 0.9 in the authors' code. May be given
            at each call as `hyper={"decay": d}`.
        use_bias: whether there is a beta.
        bias_init: initial beta.
        axis_index_groups: groups of device indices whose means are pooled separately, with
            `axis_name`.
        allow_single: whether a mean may be that of a single value in training, so that the output
            is the bias; else that is an error.
        compensated: as in `batch_norm`.
        debias: as in `batch_norm`.

    Returns:
        A `Norm` with params `Affine(None, bias)` and state `RunningMean`.

    Raises:
        TypeError: `bias_init` is not a plain number.
        ValueError: a number is outside its range, or `axes` are empty or repeat an axis.

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
    return MeanOnlyBatchNorm(**locals())
