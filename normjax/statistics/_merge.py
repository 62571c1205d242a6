"""Merges statistics, for every registered kind: `register`, `merge`, `merge_axis`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from normjax.statistics._compensated import add, compensated_type, errors, plain_type
from normjax.statistics._debias import debiased_type
from normjax.statistics._shapes import abs2, append_axes, outer, scale_by_weight
from normjax.statistics._types import (
    Array,
    Means,
    Moments,
    PyTree,
    Running,
    RunningCov,
    RunningMean,
    SecondMoments,
)

Measured = TypeVar("Measured", bound=tuple)
State = TypeVar("State", bound=tuple)


class Kind(NamedTuple):
    """Describe one kind of statistics, so that it can be merged and averaged over time.

    A measurement is `measured(mean[, spread], count)`. A state stores it as
    `running(mean[, spread])`, with the same field names. If a field has more axes than `count`,
    its extra axes belong to one statistic, as the two feature axes of a covariance do.

    Attributes:
        measured: type of a measurement.
        running: type of the running statistics in a state.
        square: what a distance between two means adds to the spread; `None` without a spread.
        identity: initial spread, from the shape and dtype of a mean.
    """

    measured: type
    running: type
    square: Callable[[Array], jax.Array] | None = None
    identity: Callable[[tuple[int, ...], Any], jax.Array] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the field names of the running statistics."""
        return self.running._fields  # type: ignore[attr-defined]


_KINDS: dict[type, Kind] = {}


def register(kind: Kind) -> None:
    """Add a kind of statistics to those that `merge`, `ema` and `Accumulator` accept."""
    for plain in (kind.measured, kind.running):
        _KINDS[plain] = _KINDS[compensated_type(plain)] = kind
    for biased in (kind.running, compensated_type(kind.running)):
        _KINDS[debiased_type(biased)] = kind


def kind_of(node: PyTree) -> Kind | None:
    """Return the kind of a measurement or of running statistics; `None` for anything else."""
    return _KINDS.get(type(node))


def kinds() -> list[Kind]:
    """Return every registered kind."""
    return list(dict.fromkeys(_KINDS.values()))


def merge(a: Measured, b: Measured) -> Measured:
    r"""Merge the statistics of two disjoint sets into those of their union.

    $$n = n_a + n_b, \quad \mu = \mu_a + \tfrac{n_b}{n}\delta, \quad
      \sigma^2 = \tfrac{n_a}{n}\sigma_a^2 + \tfrac{n_b}{n}\sigma_b^2
      + \tfrac{n_a n_b}{n^2}\,|\delta|^2, \quad \delta = \mu_b - \mu_a$$

    For covariances, $\delta\delta^*$ replaces $|\delta|^2$.

    Args:
        a: `Moments`, `SecondMoments` or `Means` of one set.
        b: those of the other set, of the same type and shape.

    Returns:
        The statistics of the union, of a subclass of the same type that carries, beside each
        field, what float32 leaves out of it (`mean_error`, ...). Merging millions of small sets
        into one is thus exact up to rounding: counts do not stop at 2^24, and the mean goes on
        where a step is below its last digit. A loop that carries the statistics through a `scan`
        starts it from what `merge` returned. If one set is empty, they are those of the other.

    Raises:
        TypeError: the statistics are of different kinds or have no counts.
        ValueError: their shapes differ.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> x = jnp.array([[1.0], [2.0], [6.0]])
        >>> both = nj.merge(nj.moments(x[:1], 0), nj.moments(x[1:], 0))
        >>> float(both.mean[0]), float(both.count[0])
        (3.0, 3.0)

    Reference:
        Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983.
    """
    x: Any = a
    y: Any = b
    kind = kind_of(x)
    if kind is None or {plain_type(a), plain_type(b)} != {kind.measured}:
        raise TypeError(
            f"merge takes two measurements of one kind, such as moments() returns, and got "
            f"{type(x).__name__} and {type(y).__name__}: running statistics have no count"
        )
    if (shapes := [jnp.shape(v) for v in x]) != (others := [jnp.shape(v) for v in y]):
        raise ValueError(
            f"merge takes statistics of the same features and got shapes {shapes} and {others}: "
            "measure both over the same axes"
        )
    # In terms of share = n_b / n: mu = mu_a + share delta, and the spread is the weighted mean of
    # both spreads plus share (1 - share) |delta|^2.
    # The larger set is where sums start from, so that all steps are small.
    swap = jnp.asarray(y.count > x.count)
    fields = zip((*x, *errors(x)), (*y, *errors(y)), strict=True)
    both = [_exchanged(swap, jnp.asarray(a), jnp.asarray(b)) for a, b in fields]
    large, small = zip(*both, strict=True)
    cut = len(kind.measured._fields)  # type: ignore[attr-defined]
    starts = list(zip(large[:cut], large[cut:], strict=True))  # pairs of a field and its error
    count = add(starts[-1], small[cut - 1], small[-1])
    share = small[cut - 1] / jnp.maximum(count[0], 1)
    # What float32 leaves out of the two means counts where these are nearly equal.
    delta = (small[0] - large[0]) + (small[cut] - large[cut])
    merged = [add(starts[0], scale_by_weight(share, delta))]
    if kind.square is not None:
        widening = (small[1] - large[1]) + scale_by_weight(1 - share, kind.square(delta))
        merged.append(add(starts[1], scale_by_weight(share, widening)))
    values, rests = zip(*merged, count, strict=True)
    return compensated_type(kind.measured)(*values, *rests)


def _exchanged(swap: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a field of both sets, exchanged where `swap`, of the shape of the counts, is True."""
    here = append_axes(swap, a.ndim)
    return jnp.where(here, b, a), jnp.where(here, a, b)


def merge_axis(m: PyTree, axis: int = 0) -> Any:
    """Merge statistics that are stacked along `axis` (time steps, groups, devices) into one."""
    kind = kind_of(m)
    if kind is None:  # a tuple of several statistics, such as a switchable norm's
        return jax.tree.map(
            lambda part: merge_axis(part, axis), m, is_leaf=lambda part: kind_of(part) is not None
        )
    count = jnp.sum(m.count, axis)
    share = m.count / jnp.expand_dims(jnp.maximum(count, 1), axis)
    mean = jnp.sum(scale_by_weight(share, m.mean), axis)
    if kind.square is None:
        return kind.measured(mean, count)
    # The merged spread is the mean spread plus the spread of the means around the merged mean.
    between = kind.square(m.mean - jnp.expand_dims(mean, axis))
    return kind.measured(mean, jnp.sum(scale_by_weight(share, m[1] + between), axis), count)


def _ones(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.ones(shape, dtype)


def _eyes(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), (*shape, shape[-1]))


register(Kind(Moments, Running, abs2, _ones))
register(Kind(SecondMoments, RunningCov, outer, _eyes))
register(Kind(Means, RunningMean))
