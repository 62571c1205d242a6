"""Statistics as values: what a kind of statistics is, how two merge, how a state keeps them.

A kind is registered once; `merge`, `ema`, gathering, population statistics, reset and the
Flax wrappers then understand it. The averages themselves are taken in `_moments.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Num

from normjax import _checks
from normjax.base import (
    Array,
    BatchMeans,
    Collect,
    Means,
    Moments,
    PyTree,
    Running,
    RunningCov,
    RunningMean,
    SecondMoments,
)

Seen = TypeVar("Seen", bound=tuple)
Kept = TypeVar("Kept", bound=tuple)


class Kind(NamedTuple):
    """One kind of statistics, and all that merging and keeping it needs to know.

    A measurement is `seen(mean[, spread], count)`, what a state keeps of it is
    `running(mean[, spread])`, with the same names. The axes that a leaf has beyond those of
    `count` belong to one statistic together: the features of a covariance.

    Attributes:
        seen: type of a measurement.
        running: type of what is kept.
        square: what a distance between two means adds to the spread; `None` without spread.
        identity: start of the spread, from the shape and dtype of a mean.
    """

    seen: type
    running: type
    square: Callable[[Array], jax.Array] | None = None
    identity: Callable[[tuple[int, ...], Any], jax.Array] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what is kept."""
        return self.running._fields  # type: ignore[attr-defined]


_KINDS: dict[type, Kind] = {}


def register(kind: Kind) -> None:
    """Make `merge`, `ema`, `Collect`, `population` and `reset` understand a kind."""
    _KINDS[kind.seen] = _KINDS[kind.running] = kind


def kind_of(node: PyTree) -> Kind | None:
    """Kind of a measurement or of kept statistics; `None` of anything else."""
    return _KINDS.get(type(node))


def kinds() -> list[Kind]:
    """Every registered kind."""
    return list(dict.fromkeys(_KINDS.values()))


def stat_dtype(dtype: Any) -> jnp.dtype:
    """Dtype in which statistics of `dtype` are taken: at least float32, complex if it is."""
    dtype = jnp.dtype(dtype)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def merge(a: Seen, b: Seen) -> Seen:
    r"""Statistics of the union of two disjoint sets, from theirs.

    $$n = n_a + n_b, \quad \mu = \mu_a + \tfrac{n_b}{n}\delta, \quad
      \sigma^2 = \tfrac{n_a}{n}\sigma_a^2 + \tfrac{n_b}{n}\sigma_b^2
      + \tfrac{n_a n_b}{n^2}\,|\delta|^2, \quad \delta = \mu_b - \mu_a$$

    and for covariances $\delta\delta^*$ in the place of $|\delta|^2$.

    Args:
        a: `Moments`, `SecondMoments` or `Means` of one set.
        b: those of the other, same type and shape.

    Returns:
        The same of both; exact up to rounding, and equal to the other where one is empty.

    Raises:
        TypeError: statistics of two kinds, or without counts.
        ValueError: statistics of two shapes.

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
    if kind is None or {type(a), type(b)} != {kind.seen}:
        raise TypeError(
            f"merge takes two measurements of one kind, such as moments() returns, and got "
            f"{type(x).__name__} and {type(y).__name__}: kept statistics have no count to weigh by"
        )
    if (shapes := [jnp.shape(v) for v in x]) != (others := [jnp.shape(v) for v in y]):
        raise ValueError(
            f"merge takes statistics of the same features and got shapes {shapes} and {others}: "
            "measure both over the same axes"
        )
    count = x.count + y.count
    share = y.count / jnp.maximum(count, 1)
    delta = y.mean - x.mean
    mean = x.mean + weigh(share, delta)
    if kind.square is None:
        return kind.seen(mean, count)
    spread = x[1] + weigh(share, y[1] - x[1]) + weigh(share * (1 - share), kind.square(delta))
    return kind.seen(mean, spread, count)


def merge_axis(m: PyTree, axis: int = 0) -> Any:
    """Pool statistics that are stacked along `axis` (time steps, groups, devices) into one."""
    kind = kind_of(m)
    if kind is None:  # a norm's own bundle of statistics
        return jax.tree.map(
            lambda part: merge_axis(part, axis), m, is_leaf=lambda part: kind_of(part) is not None
        )
    count = jnp.sum(m.count, axis)
    share = m.count / jnp.expand_dims(jnp.maximum(count, 1), axis)
    mean = jnp.sum(weigh(share, m.mean), axis)
    if kind.square is None:
        return kind.seen(mean, count)
    apart = kind.square(m.mean - jnp.expand_dims(mean, axis))
    return kind.seen(mean, jnp.sum(weigh(share, m[1] + apart), axis), count)


def ema(
    running: Kept, m: Any, *, decay: float | np.number | Num[Array, ""], correction: int = 0
) -> Kept:
    r"""Exponential running average of statistics, safe against empty and broken batches.

    $$\text{running} \leftarrow d \cdot \text{running} + (1 - d) \cdot m$$

    Args:
        running: the present state, `Running`, `RunningCov` or `RunningMean`.
        m: statistics of a new batch, of the same kind and shape.
        decay: weight of the old value, in [0, 1]; may be traced.
        correction: 0 stores the biased variance (Flax), 1 the unbiased one (paper, PyTorch).

    Returns:
        The next state, of the same dtype; unchanged where `m.count` is 0 or a statistic is not
        finite. Carries no gradient.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> run = nj.Running(jnp.zeros(1), jnp.ones(1))
        >>> run = nj.ema(run, nj.moments(jnp.array([[1.0], [3.0]]), 0), decay=0.5)
        >>> float(run.mean[0]), float(run.var[0])
        (1.0, 1.0)
    """
    m = lax.stop_gradient(m)
    new = keep(m, correction)
    _fits(running, new)
    if isinstance(decay, int | float | np.number):
        _checks.fraction("decay", decay, hint=": it is the weight of the old value")
    if jnp.iscomplexobj(m.mean) and not jnp.iscomplexobj(running[0]):
        raise TypeError(
            f"complex statistics do not fit a state of {running[0].dtype}: write "
            f"init(shape, dtype=jnp.{m.mean.dtype})"
        )

    def average(old: Array, new: Array) -> jax.Array:
        # A half-precision average would stall a few percent away from its target.
        d = jnp.asarray(decay).astype(jnp.finfo(old.dtype).dtype).astype(old.dtype)
        return d * old + (1 - d) * jnp.asarray(new).astype(old.dtype)

    olds = [lax.stop_gradient(jnp.asarray(old)) for old in running]
    moved = [average(old, value) for old, value in zip(olds, new, strict=True)]
    # Of what was measured and of what it makes of the state, in the state's own dtype: together
    # or not at all.
    good = (m.count > 0) & _finite(m.count, moved)
    # The unbiased spread of a single value does not exist, its mean does.
    spread = good & (m.count > 1) if correction else good
    return type(running)(
        *(
            jnp.where(trail(spread if i else good, old.ndim), value, old)
            for i, (old, value) in enumerate(zip(olds, moved, strict=True))
        )
    )


def keep(m: Any, correction: int = 0) -> Any:
    """What a state keeps of a measurement: all but the count; `correction` as in `ema`."""
    kind = _KINDS[type(m)]
    if kind.square is None:
        return kind.running(m.mean)
    return kind.running(m.mean, unbiased(m) if correction else m[1])


def empty(running: PyTree) -> Any:
    """The measurement of nothing, in the shapes of `running`."""
    kind = _KINDS[type(running)]
    zeros = [jnp.zeros_like(leaf) for leaf in running]
    real = jnp.zeros(count_shape(running), jnp.finfo(running.mean.dtype).dtype)
    return kind.seen(*zeros, real)


def where_seen(weight: Array, new: Array, old: Array) -> jax.Array:
    """Return `new` where its weight is positive, else `old`."""
    return jnp.where(trail(weight, jnp.ndim(old)) > 0, new, old)


def count_shape(running: PyTree) -> tuple[int, ...]:
    """Shape of the counts of kept statistics: that of the mean less what one statistic spans."""
    shape = jnp.shape(running[0])
    beyond = jnp.ndim(running[1]) - len(shape) if len(running) > 1 else 0
    return shape[: len(shape) - beyond]


def unbiased(m: Any) -> jax.Array:
    """Spread times n / (n - 1); of a single value, which has none, the biased one."""
    return weigh(m.count / jnp.maximum(m.count - 1, 1), m[1])


def observe(state: PyTree, seen: Any, *, stats: str, decay: Any, correction: int) -> Any:
    """Add a batch to a state: an exponential average, or an exact one where it gathers."""
    if seen is None or (stats == "running" and not isinstance(state, Collect)):
        return state
    if isinstance(state, Collect):
        _fits(state.running, keep(seen))
        seen = _sound(lax.stop_gradient(seen))
        add = _add_batch if isinstance(state.seen, BatchMeans) else merge
        return Collect(state.running, add(state.seen, seen))
    return ema(state, seen, decay=decay, correction=correction)


def source(state: PyTree, seen: Any, stats: str) -> Any:
    """Statistics that normalize: this batch's, or the kept ones."""
    if stats == "batch":
        assert seen is not None
        return seen
    return state.running if isinstance(state, Collect) else state


def start(features: tuple[int, ...], dtype: Any) -> Running:
    """Return a fresh running state: mean 0 and variance 1, at least float32."""
    dtype = stat_dtype(dtype)
    return Running(jnp.zeros(features, dtype), jnp.ones(features, jnp.finfo(dtype).dtype))


def is_stats(leaf: PyTree) -> bool:
    """Whether a node of a state pytree is one norm's statistics."""
    kind = kind_of(leaf)
    return isinstance(leaf, Collect) or (kind is not None and isinstance(leaf, kind.running))


def restart(running: PyTree) -> Any:
    """Kept statistics of these shapes, back at their start."""
    kind = _KINDS[type(running)]
    mean = jnp.zeros_like(running[0])
    if kind.identity is None:
        return kind.running(mean)
    return kind.running(mean, kind.identity(mean.shape, running[1].dtype))


def _fits(running: Any, new: Any) -> None:
    """Refuse what is no state of these statistics; shapes that differ would broadcast."""
    if type(running) is not type(new):
        raise TypeError(
            f"the state is a {type(running).__name__} and must be the {type(new).__name__} that "
            "init returned: apply takes (params, state, x) in this order"
        )
    for old, value in zip(running, new, strict=True):
        if jnp.shape(old) != jnp.shape(value):
            raise ValueError(
                f"kept statistics of shape {jnp.shape(old)} do not fit those of x, of shape "
                f"{jnp.shape(value)}: init with the shape of this x"
            )


def _finite(count: Array, leaves: Any) -> jax.Array:
    """Whether each statistic is finite, in the shape of the counts."""
    good = jnp.isfinite(jnp.asarray(count))
    for leaf in leaves:
        good &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(good.ndim, leaf.ndim)))
    return good


def _sound(m: Any) -> Any:
    """The measurement, with nothing in the place of statistics that are not finite."""
    good = _finite(m.count, m)
    return type(m)(*(jnp.where(trail(good, leaf.ndim), leaf, 0) for leaf in m))


def _add_batch(total: BatchMeans, m: Any) -> BatchMeans:
    batches = total.batches + (m.count > 0).astype(total.batches.dtype)
    pairs = total.pairs + (m.count > 1).astype(total.pairs.dtype)
    weight = jnp.where(m.count > 0, 1 / jnp.maximum(batches, 1), 0)
    weight_pairs = jnp.where(m.count > 1, 1 / jnp.maximum(pairs, 1), 0)

    def mean(old: Array, new: Array, weight: jax.Array) -> Array:
        return old + weigh(weight, jnp.asarray(new - old))

    biased, unbiased = keep(m, 0), keep(m, 1)
    return BatchMeans(
        type(biased)(*(mean(o, n, weight) for o, n in zip(total.biased, biased, strict=True))),
        type(unbiased)(
            *(
                mean(o, n, weight_pairs if i else weight)
                for i, (o, n) in enumerate(zip(total.unbiased, unbiased, strict=True))
            )
        ),
        batches,
        pairs,
    )


def trail(v: Array, ndim: int) -> jax.Array:
    """Give `v` axes of size 1 behind its own."""
    v = jnp.asarray(v)
    return v.reshape(v.shape + (1,) * (ndim - v.ndim))


def weigh(weight: Array, leaf: Array) -> jax.Array:
    """Real weight of each statistic times a leaf of it, which may be complex and have more axes."""
    leaf = jnp.asarray(leaf)
    return trail(weight, leaf.ndim).astype(leaf.dtype) * leaf


def abs2(z: Array) -> jax.Array:
    z = jnp.asarray(z)
    return (z * z.conj()).real if jnp.iscomplexobj(z) else z * z


def outer(z: Array) -> jax.Array:
    z = jnp.asarray(z)
    return z[..., :, None] * z[..., None, :].conj()


def _ones(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.ones(shape, dtype)


def _eyes(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), (*shape, shape[-1]))


register(Kind(Moments, Running, abs2, _ones))
register(Kind(SecondMoments, RunningCov, outer, _eyes))
register(Kind(Means, RunningMean))
