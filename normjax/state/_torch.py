"""Running statistics between conventions: ours and Flax's, and PyTorch's."""

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
    r"""Return the state for statistics that PyTorch kept, which stores the unbiased variance.

    $$\sigma^2_{\text{biased}} = \tfrac{n - 1}{n}\,\sigma^2_{\text{unbiased}}$$

    PyTorch's start of 1 counts as a variance like any other, so the conversion is exact once
    that start has decayed.

    Args:
        running_mean: the buffer, as an array (`tensor.numpy()`).
        running_var: the buffer.
        count: values that each statistic of a training batch was taken over: the batch size,
            for images times height and width, over all devices if they were synchronized.
        correction: of the norm that takes the state: 0 stores biased variance, 1 unbiased.

    Returns:
        `Running`.

    Raises:
        ValueError: a count below 2, whose unbiased variance does not exist.

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
    r"""Return `(running_mean, running_var)` for PyTorch; the inverse of `from_torch`.

    $$\sigma^2_{\text{unbiased}} = \tfrac{n}{n - 1}\,\sigma^2_{\text{biased}}$$

    Args:
        running: the state; Flax's `batch_stats` are `Running(**batch_stats["layer"])`.
        count: values that each statistic of a training batch was taken over.
        correction: of the norm that kept it.

    Returns:
        The two buffers, in at least float32.

    Raises:
        ValueError: a count below 2.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> mean, var = nj.running_to_torch(nj.Running(jnp.zeros(1), jnp.ones(1)), count=2)
        >>> var.tolist()
        [2.0]

    Reference:
        As `from_torch`.
    """
    _checks.one_of("correction", correction, (0, 1))
    mean, var = (_wide(v) for v in (running.mean, running.var))
    n = _count(count)
    return mean, var if correction else var * (n / (n - 1))


def decay_from_torch(momentum: float) -> float:
    """Return the decay for PyTorch's `momentum`, which is the weight of the *new* value.

    Args:
        momentum: in [0, 1]; 0.1 by default there. `None` there is a plain average over batches:
            see `population(how="unbiased")`.

    Returns:
        1 - momentum.

    Raises:
        ValueError: not a number in [0, 1].

    Example:
        >>> import normjax as nj
        >>> nj.decay_from_torch(0.25)
        0.75

    Reference:
        As `from_torch`.
    """
    _checks.unit_interval("momentum", momentum, hint=": it is the weight of the new value")
    return 1 - momentum


def decay_to_torch(decay: float) -> float:
    """Return PyTorch's `momentum` for a decay; the inverse of `decay_from_torch`.

    Args:
        decay: weight of the old value, in [0, 1].

    Returns:
        1 - decay.

    Raises:
        ValueError: not a number in [0, 1].

    Example:
        >>> import normjax as nj
        >>> nj.decay_to_torch(0.75)
        0.25

    Reference:
        As `from_torch`.
    """
    _checks.unit_interval("decay", decay, hint=": it is the weight of the old value")
    return 1 - decay


def _wide(v: Array) -> jax.Array:
    v = _checks.floating(v, "running statistics")
    return v.astype(_shapes.stat_dtype(v.dtype))


def _count(count: int) -> int:
    _checks.positive_int("count", count)
    if count < 2:
        raise ValueError("count=1: one value has no unbiased variance")
    return int(count)
