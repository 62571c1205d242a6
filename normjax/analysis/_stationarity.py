"""Measures how soon per-step statistics become stationary."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from normjax._internal import _checks
from normjax.statistics import _merge, _moments, _types
from normjax.statistics._types import Array


class Stationarity(NamedTuple):
    """Distance of each step's statistics from their stationary values.

    Attributes:
        mean: distance of the mean in stationary standard deviations, root mean square over the
            features; `[time]`.
        spread: logarithm of the ratio of the standard deviations, root mean square over the
            features; `[time]`.
        steps: number of steps after which both stay within the tolerance to the end.
        feature_steps: the same for each feature separately; `[features]`.
        tolerance: the tolerance, as in the call.
    """

    mean: Float[Array, " time"]
    spread: Float[Array, " time"]
    steps: Integer[Array, ""]
    feature_steps: Integer[Array, " features"]
    tolerance: Float[Array, ""]


def stationarity(
    statistics: Any,
    *,
    tolerance: float = 0.1,
    tail: float = 0.25,
    eps: float = 1e-5,
    max_steps: int | None = None,
) -> Stationarity:
    r"""Count the steps until per-step statistics are, and stay, near their stationary values.

    $$\frac{|\mu_t - \mu_*|}{\sigma_*} \le \tau \quad \text{and} \quad
      \Big|\log\frac{\sigma_t}{\sigma_*}\Big| \le \tau \quad \text{for all later } t$$

    The stationary values are the mean and variance of the last part of the sequence, with all of
    its steps pooled. If statistics become stationary within T_max steps, those of the last step
    can be used for the further steps of longer sequences.

    Args:
        statistics: `mean` and `var` with a leading axis of time: the state of
            `per_step(batch_norm(), T)`, such as `state["norm_h"]` of a layer, or
            `layer.info(...).moments["norm_h"]`.
        tolerance: tau, positive; 0.1 is a tenth of a standard deviation.
        tail: share of the steps, at the end, that the stationary values are taken over.
        eps: added to the variances, so that a constant feature stays finite.
        max_steps: number of steps that sequences reached; later steps still have their initial
            statistics and are left out. `None`: all.

    Returns:
        `Stationarity`. `steps` is 0 if all steps are within the tolerance, and the number of
        steps if the last one is not.

    Raises:
        TypeError: `statistics` have no `mean` and `var`.
        ValueError: there is no time axis, a number is outside its range, or no sequence reached
            the last step (checked unless the statistics are traced).

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from normjax import analysis
        >>> mean = jnp.array([3.0, 2.0, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0])[:, None]
        >>> result = analysis.stationarity(nj.Running(mean, jnp.ones((8, 1))), eps=1e-12)
        >>> int(result.steps), [round(v, 2) for v in result.mean.tolist()[:3]]
        (3, [2.0, 1.0, 0.5])

    Reference:
        Cooijmans, Ballas, Laurent, Gulcehre, Courville, "Recurrent Batch Normalization", 2017,
        section 3 and appendix A.
    """
    _checks.positive("tolerance", tolerance)
    _checks.positive("eps", eps)
    _checks.unit_interval("tail", tail)
    if not {"mean", "var"} <= set(getattr(statistics, "_fields", ())):
        raise TypeError(
            f"stationarity takes statistics with mean and var and got {type(statistics).__name__}: "
            'write state["norm_h"], or layer.info(...).moments["norm_h"]'
        )
    mean, var = jnp.asarray(statistics.mean), jnp.asarray(statistics.var)
    if mean.ndim < 2:
        raise ValueError(
            f"statistics of shape {mean.shape} have no axis of time: [time, features] is what "
            "per_step(...) keeps"
        )
    if max_steps is not None:
        _checks.positive_int("max_steps", max_steps)
    mean, var = (v.reshape(len(v), -1)[:max_steps] for v in (mean, var))
    counted = "count" in statistics._fields
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in statistics):
        initial = (np.asarray(mean) == 0) & (np.asarray(var) == 1)
        unreached = np.asarray(statistics.count) == 0 if counted else initial
        reached = max((t + 1 for t in range(len(mean)) if not unreached[t].all()), default=0)
        if reached < len(mean):
            hint = "run batches or population_statistics first"
            raise ValueError(
                f"sequences reached {reached} of {len(mean)} steps, and the others have their "
                f"initial statistics: {f'write max_steps={reached}' if reached else hint}"
            )
    last = max(1, round(tail * len(mean)))
    # Merge the late steps: their mean, and their variance including that of their means.
    ones = jnp.ones_like(var[-last:])
    late = _merge.merge_axis(_types.Moments(mean[-last:], var[-last:], ones))
    scale = jnp.sqrt(late.var + eps)
    shift = (mean - late.mean[None]) / scale[None]
    spread = 0.5 * jnp.log((var + eps) / (late.var[None] + eps))

    def rms(v: Any) -> Any:
        return jnp.sqrt(_moments.mean_square(v, 1).var)

    far = jnp.maximum(rms(shift), rms(spread)) > tolerance  # [time]
    far_each = jnp.maximum(jnp.abs(shift), jnp.abs(spread)) > tolerance  # [time, features]
    # The last step outside the tolerance, counted from 1.
    order = jnp.arange(1, len(mean) + 1)
    return Stationarity(
        rms(shift),
        rms(spread),
        jnp.max(jnp.where(far, order, 0)),
        jnp.max(jnp.where(far_each, order[:, None], 0), axis=0),
        jnp.asarray(tolerance, mean.dtype),
    )
