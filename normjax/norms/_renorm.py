"""Batch renormalization, and the schedule of its limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from normjax._internal import _checks, _hints
from normjax.base import Affine, Call, Norm
from normjax.norms._batch import BatchNorm
from normjax.statistics import _core, _running, _shapes
from normjax.statistics._types import Array, Debias, Moments, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class BatchRenorm(BatchNorm):
    """Batch renormalization as a value; made by `batch_renorm`."""

    factory: ClassVar[str] = "batch_renorm"
    hyper_names: ClassVar[tuple[str, ...]] = ("decay", "r_max", "d_max")

    r_max: float = 3.0
    d_max: float = 5.0

    def __post_init__(self) -> None:
        """Check the fields and bring axes and groups into canonical form."""
        super().__post_init__()
        _checks.number("r_max", self.r_max)
        _checks.number("d_max", self.d_max)
        _check_limits(self.r_max, self.d_max)

    def transform(
        self, params: Affine, state: PyTree, measured: Moments | None, x: jax.Array, call: Call
    ) -> jax.Array:
        """Normalize with the batch's statistics, corrected towards the running ones."""
        if jnp.iscomplexobj(x):
            raise TypeError(
                "batch_renorm clips a difference of means, which complex x has no order for: "
                "normalize x.real and x.imag separately, or write batch_norm"
            )
        if call.stats == "running":
            return super().transform(params, state, measured, x, call)
        assert measured is not None
        _checks.same_features(state, measured.mean.shape, self.factory)
        running = _running.select(state, measured, "running")
        mean, var = running.mean, running.var
        real = measured.var.dtype
        limits = [(call.hyper or {}).get(name, getattr(self, name)) for name in ("r_max", "d_max")]
        _check_limits(*limits)
        r_max, d_max = (jnp.asarray(limit).astype(real) for limit in limits)
        # Constants in the gradient (paper, section 3), which would undo the correction otherwise.
        sigma = jnp.sqrt(var + self.eps).astype(real)
        r = lax.stop_gradient(jnp.clip(jnp.sqrt(measured.var + self.eps) / sigma, 1 / r_max, r_max))
        d = lax.stop_gradient(jnp.clip((measured.mean - mean.astype(real)) / sigma, -d_max, d_max))
        # gamma (x_hat r + d) + beta is one affine of x_hat: scale gamma r, bias gamma d + beta.
        scale, bias = r, d
        if params.scale is not None:
            scale, bias = (v * params.scale.astype(real) for v in (r, d))
        if params.bias is not None:
            bias = bias + params.bias.astype(real)
        features = self.feature_axes(x.ndim)
        scale, bias = (_shapes.expand(v, features, x.ndim) for v in (scale, bias))
        axes = _checks.resolve_axes(self.axes, x.ndim)
        return _core.normalize(x, measured, axes, scale, bias, self.eps, call.mask)


def _check_limits(r_max: Any, d_max: Any) -> None:
    """Raise if a limit is outside its range; traced values cannot be checked."""
    if isinstance(r_max, int | float | np.number) and not r_max >= 1:
        raise ValueError(f"r_max={r_max!r} must be at least 1: r_max=1, d_max=0 is batch norm")
    if isinstance(d_max, int | float | np.number) and not d_max >= 0:
        raise ValueError(f"d_max={d_max!r} must be a non-negative number")


@_hints.with_hints()
def batch_renorm(
    *,
    r_max: float = 3.0,
    d_max: float = 5.0,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    decay: float = 0.99,
    correction: int = 0,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    allow_single: bool = False,
    compensated: bool = False,
    debias: Debias = False,
) -> Norm:
    r"""Batch renormalization: batch norm whose output in training is close to that in inference.

    $$y = \gamma\left(\frac{x - \mu_B}{\sigma_B}\,r + d\right) + \beta, \quad
      r = \mathrm{clip}_{[1/r_{max}, r_{max}]}\frac{\sigma_B}{\sigma}, \quad
      d = \mathrm{clip}_{[-d_{max}, d_{max}]}\frac{\mu_B - \mu}{\sigma}$$

    r and d carry no gradient. With `r_max=1, d_max=0` it is batch norm; with both infinite it
    normalizes with the running statistics and still has the gradient of batch norm. It uses the
    running statistics from before this batch.

    Args:
        r_max: largest correction of the scale, at least 1. It is meant to grow during training,
            as is `d_max`: `hyper=renorm_schedule(step)`.
        d_max: largest correction of the shift, in running standard deviations.
        axes: as in `batch_norm`.
        eps: added to both variances.
        decay: weight of the old running value; the paper found faster averages useful.
        correction: as in `batch_norm`. The paper averages standard deviations; this norm averages
            variances, as `batch_norm` does, so that states can be exchanged and pooled exactly.
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: initial gamma.
        bias_init: initial beta.
        axis_index_groups: as in `batch_norm`.
        allow_single: as in `batch_norm`.
        compensated: as in `batch_norm`.
        debias: as in `batch_norm`.

    Returns:
        A `Norm` with params `Affine` and state `Running`; `hyper` takes `decay`, `r_max` and
        `d_max`.

    Raises:
        TypeError: x is complex, or an initial value or limit is not a plain number.
        ValueError: a number is outside its range, or `axes` are empty or repeat an axis.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.batch_renorm()
        >>> params, state = norm.init((1, 1))
        >>> x = jnp.array([[1.0], [4.0]])
        >>> y, _ = norm.apply(params, state, x, stats="batch")  # running: mean 0, variance 1
        >>> [round(v, 3) for v in y.ravel().tolist()]
        [1.0, 4.0]
        >>> y, _ = norm.apply(params, state, x, stats="batch", hyper=nj.renorm_schedule(0))
        >>> [round(v, 3) for v in y.ravel().tolist()]
        [-1.0, 1.0]

    Reference:
        Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in
        Batch-Normalized Models", 2017.
    """
    return BatchRenorm(**locals())


def renorm_schedule(
    step: int | Array,
    *,
    start: int = 5_000,
    r_end: int = 40_000,
    d_end: int = 25_000,
    r_max: float = 3.0,
    d_max: float = 5.0,
) -> dict[str, jax.Array]:
    r"""Return `hyper` of `batch_renorm` for a training step: batch norm first, then wider limits.

    $$r_{max}(t) = 1 + (R - 1)\,\mathrm{clip}_{[0,1]}\frac{t - t_0}{t_r - t_0}, \qquad
      d_{max}(t) = D\,\mathrm{clip}_{[0,1]}\frac{t - t_0}{t_d - t_0}$$

    Args:
        step: number of the training step; may be traced.
        start: last step of plain batch norm.
        r_end: step at which r_max reaches its final value.
        d_end: step at which d_max reaches its final value.
        r_max: final value of r_max.
        d_max: final value of d_max.

    Returns:
        `{"r_max": ..., "d_max": ...}`, float32 scalars.

    Raises:
        ValueError: `r_end` or `d_end` is not after `start`.

    Example:
        >>> import normjax as nj
        >>> {k: float(v) for k, v in nj.renorm_schedule(15_000).items()}
        {'r_max': 1.5714285373687744, 'd_max': 2.5}

    Reference:
        Ioffe, "Batch Renormalization", 2017, section 4.2.
    """
    if r_end <= start or d_end <= start:
        raise ValueError(f"r_end={r_end} and d_end={d_end} must be after start={start}")
    past = jnp.asarray(step).astype(jnp.float32) - start
    return {
        "r_max": 1 + (r_max - 1) * jnp.clip(past / (r_end - start), 0, 1),
        "d_max": d_max * jnp.clip(past / (d_end - start), 0, 1),
    }
