"""The values that statistics are: means, variances and covariances, each with its weight."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Inexact

Array = jax.Array | np.ndarray
PyTree = Any
AxisName = str | tuple[str, ...] | None


class Moments(NamedTuple):
    """Mean, biased variance and weight of one set of values.

    Attributes:
        mean: average; shape of the features (the axes that were not averaged), at least float32.
        var: biased variance, same shape, real even for complex values.
        count: how many values each statistic was taken over, same shape; 0 where all were masked.
    """

    mean: Inexact[Array, "*features"]
    var: Inexact[Array, "*features"]
    count: Inexact[Array, "*features"]  # type: ignore[assignment]  # shadows tuple.count


class Running(NamedTuple):
    """The state of a norm that keeps statistics: Flax's layout, starting at 0 and 1."""

    mean: Inexact[Array, "*features"]
    var: Inexact[Array, "*features"]


class Means(NamedTuple):
    """Mean and weight of one set of values, where no spread is asked for; fields as `Moments`."""

    mean: Inexact[Array, "*features"]
    count: Inexact[Array, "*features"]  # type: ignore[assignment]  # shadows tuple.count


class RunningMean(NamedTuple):
    """The state of a norm that keeps means alone, starting at 0."""

    mean: Inexact[Array, "*features"]


class SecondMoments(NamedTuple):
    """Mean, biased covariance and weight of one set of vectors.

    Attributes:
        mean: `[*sets, features]`, at least float32.
        cov: `[*sets, features, features]`, E[d_i conj(d_j)] of the centred vectors d.
        count: `[*sets]`, how many vectors; 0 where all were masked.
    """

    mean: Inexact[Array, "*sets features"]
    cov: Inexact[Array, "*sets features features"]
    count: Inexact[Array, "*sets"]  # type: ignore[assignment]  # shadows tuple.count


class RunningCov(NamedTuple):
    """The state of a norm that keeps covariances, starting at 0 and the identity."""

    mean: Inexact[Array, "*sets features"]
    cov: Inexact[Array, "*sets features features"]


class BatchMeans(NamedTuple):
    """Plain averages of per-batch statistics, and how many batches entered each of them.

    Attributes:
        biased: average over batches of the batch's statistics, in the form that a state keeps
            them (`Running`, ...).
        unbiased: the same with m / (m - 1) times the spread of each batch of m values; a batch
            of one value, which has no such spread, counts for the mean alone.
        batches: number of batches with at least one value.
        pairs: number of batches with at least two.
    """

    biased: PyTree
    unbiased: PyTree
    batches: Inexact[Array, "*features"]
    pairs: Inexact[Array, "*features"]


class Accumulator(NamedTuple):
    """A state that gathers statistics exactly instead of averaging them exponentially.

    Put in the place of a `Running` anywhere in a state pytree, it makes `apply` add each
    batch to `measured`, in either mode; `running` is what `stats="running"` normalizes with.
    `population_statistics` and exact gradient accumulation are built on it.
    """

    running: PyTree
    measured: PyTree


def is_accumulator(state: PyTree) -> bool:
    """Whether `state` wants the batch measured even when running statistics normalize."""
    return isinstance(state, Accumulator)
