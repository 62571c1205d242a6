"""Types of statistics: measured ones with their counts, running ones, accumulators."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Inexact

from normjax._internal._exportable import exportable

Array = jax.Array | np.ndarray
PyTree = Any
AxisName = str | tuple[str, ...] | None
Debias = bool | Literal["warmup"]


@exportable
class Moments(NamedTuple):
    """Mean, biased variance and count of one set of values.

    Attributes:
        mean: average; shape of the features (the axes that were not averaged), at least float32.
        var: biased variance, same shape, real even for complex values.
        count: number of values behind each statistic, same shape; 0 where all were masked.
    """

    mean: Inexact[Array, "*features"]
    var: Inexact[Array, "*features"]
    count: Inexact[Array, "*features"]  # type: ignore[assignment]  # shadows tuple.count


@exportable
class Running(NamedTuple):
    """Running mean and variance, the state of batch norm: Flax's layout, initially 0 and 1.

    Attributes:
        mean: running mean, of the shape of the features.
        var: running variance, same shape, real.
    """

    mean: Inexact[Array, "*features"]
    var: Inexact[Array, "*features"]


@exportable
class Means(NamedTuple):
    """Mean and count of one set of values, without a variance.

    Attributes:
        mean: average; shape of the features (the axes that were not averaged), at least float32.
        count: number of values behind each mean, same shape; 0 where all were masked.
    """

    mean: Inexact[Array, "*features"]
    count: Inexact[Array, "*features"]  # type: ignore[assignment]  # shadows tuple.count


@exportable
class RunningMean(NamedTuple):
    """Running mean, the state of a norm that needs no variance; initially 0.

    Attributes:
        mean: running mean, of the shape of the features.
    """

    mean: Inexact[Array, "*features"]


@exportable
class SecondMoments(NamedTuple):
    """Mean, biased covariance and count of one set of vectors.

    Attributes:
        mean: `[*sets, features]`, at least float32.
        cov: `[*sets, features, features]`, E[d_i conj(d_j)] of the centred vectors d.
        count: `[*sets]`, number of vectors; 0 where all were masked.
    """

    mean: Inexact[Array, "*sets features"]
    cov: Inexact[Array, "*sets features features"]
    count: Inexact[Array, "*sets"]  # type: ignore[assignment]  # shadows tuple.count


@exportable
class RunningCov(NamedTuple):
    """Running mean and covariance, the state of whitening norms; initially 0 and the identity.

    Attributes:
        mean: `[*sets, features]`.
        cov: `[*sets, features, features]`.
    """

    mean: Inexact[Array, "*sets features"]
    cov: Inexact[Array, "*sets features features"]


@exportable
class BatchMeans(NamedTuple):
    """Plain averages of per-batch statistics, and the number of batches in each of them.

    Attributes:
        biased: average of the batches' statistics, as running statistics (`Running`, ...).
        unbiased: the same with the spread of each batch of m values times m / (m - 1); a batch
            of one value has no such spread and counts for the mean alone.
        batches: number of batches with at least one value.
        pairs: number of batches with at least two.
    """

    biased: PyTree
    unbiased: PyTree
    batches: Inexact[Array, "*features"]
    pairs: Inexact[Array, "*features"]


@exportable
class Accumulator(NamedTuple):
    """A state that accumulates statistics exactly instead of averaging them exponentially.

    It replaces a `Running` anywhere in a state pytree and makes `apply` add each batch to
    `measured`, in either mode. `population_statistics` and exact gradient accumulation are
    built on it.

    Attributes:
        running: the running statistics that `stats="running"` normalizes with.
        measured: the statistics of all batches so far.
        warmup: beside debiased statistics, 1 once a norm with `debias="warmup"` has added a batch,
            else 0, of the shape of the counts; `None` beside others. The running statistics do not
            say which of the two averages they are of, and `finalize_statistics` has to know.
    """

    running: PyTree
    measured: PyTree
    warmup: Inexact[Array, "*features"] | None = None


def is_accumulator(state: PyTree) -> bool:
    """Whether `state` accumulates, so that batches are measured in mode `"running"` too."""
    return isinstance(state, Accumulator)
