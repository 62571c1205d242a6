"""Converts running statistics and decays between this library (and Flax) and PyTorch."""

from __future__ import annotations

import jax
from jaxtyping import Inexact

from normjax._internal import _checks
from normjax.statistics import _shapes
from normjax.statistics._types import Array, Running


def running_from_torch(
    running_mean: Inexact[Array, "*features"],
    running_var: Inexact[Array, "*features"],
    count: int,
    *,
    correction: int = 0,
) -> Running:
    r"""Convert PyTorch's running statistics, which have the unbiased variance, to a state.

    $$\sigma^2_{\text{biased}} = \tfrac{n - 1}{n}\,\sigma^2_{\text{unbiased}}$$

    The factor also multiplies what is left of PyTorch's initial variance of 1, so the conversion
    is exact once the initial value has decayed.

    Args:
        running_mean: the buffer of this name, as an array (`tensor.numpy()`).
        running_var: the buffer of this name.
        count: number of values behind each statistic of a training batch: the batch size, for
            images times height and width, over all devices if they were synchronized.
        correction: that of the norm the state is for: 0 stores biased variance, 1 unbiased.

    Returns:
        `Running`.

    Raises:
        TypeError: a buffer is not floating.
        ValueError: `count` is below 2, so that there is no unbiased variance, or `correction` is
            not 0 or 1.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> nj.running_from_torch(jnp.zeros(1), jnp.array([2.0]), count=2).var.tolist()
        [1.0]

    Reference:
        Ioffe, Szegedy, "Batch Normalization", 2015, algorithm 2 (the unbiased estimate).
    """
    _checks.one_of("correction", correction, (0, 1))
    mean, var = (_wide(v) for v in (running_mean, running_var))
    n = _count(count)
    return Running(mean, var if correction else var * ((n - 1) / n))


def running_to_torch(
    running: Running, count: int, *, correction: int = 0
) -> tuple[Inexact[jax.Array, "*features"], Inexact[jax.Array, "*features"]]:
    r"""Convert a state to PyTorch's `(running_mean, running_var)`; inverts `running_from_torch`.

    $$\sigma^2_{\text{unbiased}} = \tfrac{n}{n - 1}\,\sigma^2_{\text{biased}}$$

    Args:
        running: the state; Flax's `batch_stats` are `Running(**batch_stats["layer"])`.
        count: number of values behind each statistic of a training batch: the batch size, for
            images times height and width.
        correction: that of the norm the state is from: 0 stored biased variance, 1 unbiased.

    Returns:
        The two buffers, in at least float32.

    Raises:
        TypeError: a statistic is not floating.
        ValueError: `count` is below 2, so that there is no unbiased variance, or `correction` is
            not 0 or 1.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> mean, var = nj.running_to_torch(nj.Running(jnp.zeros(1), jnp.ones(1)), count=2)
        >>> var.tolist()
        [2.0]

    Reference:
        Ioffe, Szegedy, "Batch Normalization", 2015, algorithm 2 (the unbiased estimate).
    """
    _checks.one_of("correction", correction, (0, 1))
    mean, var = (_wide(v) for v in (running.mean, running.var))
    n = _count(count)
    return mean, var if correction else var * (n / (n - 1))


def decay_from_torch(momentum: float) -> float:
    """Convert PyTorch's `momentum`, the weight of the *new* value, to a decay.

    Args:
        momentum: in [0, 1]; PyTorch's default is 0.1. PyTorch's `None` is a plain average over
            batches: see `population_statistics(how="unbiased")`.

    Returns:
        1 - momentum.

    Raises:
        ValueError: `momentum` is not a number in [0, 1].

    Example:
        >>> import normjax as nj
        >>> nj.decay_from_torch(0.25)
        0.75

    Reference:
        Ioffe, Szegedy, "Batch Normalization", 2015, algorithm 2 (the unbiased estimate).
    """
    _checks.unit_interval("momentum", momentum, hint=": it is the weight of the new value")
    return 1 - momentum


def decay_to_torch(decay: float) -> float:
    """Convert a decay to PyTorch's `momentum`; inverts `decay_from_torch`.

    Args:
        decay: weight of the old value, in [0, 1].

    Returns:
        1 - decay.

    Raises:
        ValueError: `decay` is not a number in [0, 1].

    Example:
        >>> import normjax as nj
        >>> nj.decay_to_torch(0.75)
        0.25

    Reference:
        Ioffe, Szegedy, "Batch Normalization", 2015, algorithm 2 (the unbiased estimate).
    """
    _checks.unit_interval("decay", decay, hint=": it is the weight of the old value")
    return 1 - decay


def _wide(v: Array) -> jax.Array:
    """Convert to at least float32."""
    v = _checks.floating(v, "running statistics")
    return v.astype(_shapes.stat_dtype(v.dtype))


def _count(count: int) -> int:
    """Return the count; raise unless it is an integer of at least 2."""
    _checks.positive_int("count", count)
    if count < 2:
        raise ValueError("count=1: one value has no unbiased variance")
    return int(count)
