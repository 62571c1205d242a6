"""Keeps running statistics: initial values, exponential average, exact accumulation, reset."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Num

from normjax._internal import _checks
from normjax.statistics._compensated import (
    Compensated,
    add,
    compensate,
    compensated_type,
    two_sum,
)
from normjax.statistics._debias import Debiased, data_weights, debias
from normjax.statistics._merge import _KINDS, State, kind_of, merge
from normjax.statistics._shapes import append_axes, scale_by_weight, stat_dtype
from normjax.statistics._types import Accumulator, Array, BatchMeans, Debias, PyTree, Running


def ema(
    running: State,
    m: Any,
    *,
    decay: float | np.number | Num[Array, ""],
    correction: int = 0,
    warmup: bool | Num[Array, "*counts"] = False,
) -> State:
    r"""Update running statistics by an exponential average, skipping empty and nonfinite batches.

    $$\text{running} \leftarrow d \cdot \text{running} + (1 - d) \cdot m$$

    A float32 average stops where a step is below half a unit in its last place, so it may stay
    6e-8 / (1 - d) away from a value that hardly varies between batches, relative to it: 6e-5 at a
    decay of 0.999, 6e-4 at 0.9999. A compensated state, that of a norm with `compensated=True`,
    carries what float32 leaves out and stays within 1e-6. `population_statistics` has no such
    limit either.

    A debiased state, that of a norm with `debias=True`, averages the data alone: each batch has the
    weight (1 - d) / (1 - d^n), so that the first replaces the start. With `warmup` the n-th has at
    least the weight 9 / (n + 8): the decay grows with n until it is d.

    Args:
        running: the current state, `Running`, `RunningCov` or `RunningMean`.
        m: statistics of a new batch, of the same kind and shape.
        decay: weight of the old value, in [0, 1]; may be traced.
        correction: 0 stores the biased variance (Flax), 1 the unbiased one (paper, PyTorch).
        warmup: whether the decay grows with the number of batches, of which a debiased state
            alone keeps account; there also an array of the shape of the counts, positive where it
            does.

    Returns:
        The next state, of the same dtype; unchanged where `m.count` is 0 or a statistic is not
        finite. Carries no gradient.

    Raises:
        TypeError: `running` and `m` are of different kinds, or only `m` is complex.
        ValueError: their shapes differ, `decay` is outside [0, 1], or `warmup` is asked of a
            state that is not debiased.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> run = nj.Running(jnp.zeros(1), jnp.ones(1))
        >>> run = nj.ema(run, nj.moments(jnp.array([[1.0], [3.0]]), 0), decay=0.5)
        >>> float(run.mean[0]), float(run.var[0])
        (1.0, 1.0)
    """
    number = isinstance(decay, int | float | np.number)
    if isinstance(decay, bool) or (number and not 0 <= decay <= 1):
        _checks.unit_interval("decay", decay, hint=": it is the weight of the old value")
    m = lax.stop_gradient(m)
    new = to_running(m, correction)
    _check_fits(running, new)
    if jnp.iscomplexobj(m.mean) and not jnp.iscomplexobj(running[0]):
        raise TypeError(
            f"complex statistics do not fit a state of {running[0].dtype}: write "
            f"init(shape, dtype=jnp.{m.mean.dtype})"
        )

    olds = [lax.stop_gradient(jnp.asarray(old)) for old in running]
    # In float32 1 - 0.9999 is off by 2e-4 of itself, and with it the pace of the average.
    weight: Any = 1 - float(decay) if number else 1 - jnp.asarray(decay)
    if isinstance(running, Debiased):
        return _debiased_ema(running, m, new, weight, correction, warmup)
    if not isinstance(warmup, bool) or warmup:
        raise ValueError(
            "warmup=True counts the batches by the weight of a debiased state, and this one is "
            f'{type(running).__name__}: start from that of a norm with debias="warmup"'
        )
    if isinstance(running, Compensated):
        return type(running)(*_compensated_ema(running, m, new, weight, correction)[0])
    moved = _average(olds, new, weight)
    # Checked after the average, in the state's own dtype, where a value may overflow. Mean and
    # spread of a feature move together or not at all.
    good = (m.count > 0) & _finite(m.count, moved)
    # A single value has a mean but no unbiased spread.
    both = (good, good & (m.count > 1) if correction else good)
    return type(running)(
        *(
            jnp.where(b if b.ndim == old.ndim else append_axes(b, old.ndim), value, old)
            for b, old, value in zip(both, olds, moved, strict=False)
        )
    )


def _debiased_ema(
    running: Any, m: Any, new: Any, weight: Any, correction: int, warmup: bool | Array
) -> Any:
    """Average as `ema`, the data alone: the start has no part in it."""
    before = lax.stop_gradient(jnp.asarray(running.weight))
    total, share = data_weights(before, weight, warmup)
    if correction:
        # Mean and spread have one weight, so a single value, which has no spread, enters neither.
        m = m._replace(count=jnp.where(m.count > 1, m.count, 0))
    if isinstance(running, Compensated):
        values, good = _compensated_ema(running, m, new, share, 0)
    else:
        olds = [lax.stop_gradient(jnp.asarray(old)) for old in running]
        moved = _average(olds, new, share)
        good = (m.count > 0) & _finite(m.count, moved)
        values = [
            jnp.where(append_axes(good, old.ndim), value, old)
            for old, value in zip(olds, moved, strict=True)
        ]
    return type(running)(*values, jnp.where(good, total, before))


def _compensated_ema(
    running: Any, m: Any, new: Any, weight: Any, correction: int
) -> tuple[list[jax.Array], jax.Array]:
    """Average as `ema`, in two parts: r + (1 - d) (m - r), and what its last digit leaves out.

    Returns:
        Fields and errors, and which sets moved.
    """
    static = isinstance(weight, float)
    pairs: list[Any] = []
    for old, error, value in zip(running, running.error, new, strict=True):
        old, error = lax.stop_gradient((jnp.asarray(old), jnp.asarray(error)))
        w, large = _cast_weight(weight, old)
        value = jnp.asarray(value).astype(old.dtype)
        step = add((old, error), w * ((value - old) - error))
        # One that forgets most of the old value must not pass through its rounding.
        mix = two_sum((1 - w) * old, w * value)
        if static:
            pairs.append(mix if large else step)
        else:
            pairs.append(tuple(jnp.where(large, a, b) for a, b in zip(mix, step, strict=True)))
    values, rests = zip(*pairs, strict=True)
    good = (m.count > 0) & _finite(m.count, values)
    both = (good, good & (m.count > 1) if correction else good)

    def kept(moved: Any, before: Any) -> list[jax.Array]:
        fields = zip(both, moved, before, strict=False)
        return [jnp.where(append_axes(b, v.ndim), v, jnp.asarray(old)) for b, v, old in fields]

    return [*kept(values, running), *kept(rests, running.error)], good


def _average(olds: list[jax.Array], news: tuple[Array, ...], weight: Any) -> list[jax.Array]:
    """Return (1 - weight) * old + weight * new of each, in the dtype of the old values.

    A half-precision average would stall a few percent away from its target.
    """
    static = isinstance(weight, float)
    moved = []
    for old, new in zip(olds, news, strict=True):
        if static:
            w, large = jnp.asarray(weight).astype(jnp.finfo(old.dtype).dtype), weight > 0.5
            w = w.astype(old.dtype)
        else:
            w, large = _cast_weight(weight, old)
        new = jnp.asarray(new).astype(old.dtype)
        # The step from the old value is exact where it is small; one that forgets the old value,
        # at decay 0 altogether, must not pass through the old value's rounding.
        step, mix = old + (w * new - w * old), (1 - w) * old + w * new
        if static:
            moved.append(mix if large else step)
        else:
            moved.append(jnp.where(large, mix, step))
    return moved


def _cast_weight(weight: Any, old: jax.Array) -> tuple[jax.Array, Any]:
    """Return a weight in the dtype of `old`, and whether it is above a half.

    It is one number, or an array of the shape of the counts.
    """
    w = jnp.asarray(weight).astype(jnp.finfo(old.dtype).dtype)
    w = append_axes(w, old.ndim) if w.ndim else w
    return w.astype(old.dtype), weight > 0.5 if isinstance(weight, float) else w > 0.5


def to_running(m: Any, correction: int = 0) -> Any:
    """Convert a measurement to running statistics, without its count; `correction` as in `ema`."""
    kind = _KINDS[type(m)]
    if kind.square is None:
        return kind.running(m.mean)
    return kind.running(m.mean, unbiased(m) if correction else m[1])


def zero_measurement(running: PyTree) -> Any:
    """Return a measurement of no values, in the shapes of `running`."""
    kind = _KINDS[type(running)]

    def zeros() -> list[jax.Array]:
        """Make arrays of their own, so that a step may donate them."""
        real = jnp.zeros(count_shape(running), jnp.finfo(running.mean.dtype).dtype)
        return [*(jnp.zeros_like(leaf) for leaf in running), real]

    # Compensated, as `merge` returns it.
    return compensated_type(kind.measured)(*zeros(), *zeros())


def where_measured(weight: Array, new: Array, old: Array) -> jax.Array:
    """Return `new` where its weight is positive, else `old`."""
    return jnp.where(append_axes(weight, jnp.ndim(old)) > 0, new, old)


def count_shape(running: PyTree) -> tuple[int, ...]:
    """Return the shape of the counts: that of the mean, without the features of a covariance."""
    shape = jnp.shape(running[0])
    # A covariance [*sets, features, features] has one axis more than its mean; a variance none.
    extra = jnp.ndim(running[1]) - len(shape) if len(running) > 1 else 0
    return shape[: len(shape) - extra]


def unbiased(m: Any) -> jax.Array:
    """Return the spread times n / (n - 1); for a single value, the biased spread, 0."""
    return scale_by_weight(m.count / jnp.maximum(m.count - 1, 1), m[1])


def accumulate(
    state: PyTree,
    measured: Any,
    *,
    stats: str,
    decay: Any,
    correction: int,
    debias: Debias = False,
) -> Any:
    """Add a batch to a state: exactly to an `Accumulator`, else by an exponential average."""
    if measured is None or (stats == "running" and not isinstance(state, Accumulator)):
        return state
    if isinstance(state, Accumulator):
        _check_fits(state.running, to_running(measured))
        measured = _drop_nonfinite(lax.stop_gradient(measured))
        add = _add_batch if isinstance(state.measured, BatchMeans) else merge
        grows = warmup_flag(state)
        if grows is not None and debias == "warmup":
            grows = jnp.maximum(grows, 1)
        return Accumulator(state.running, add(state.measured, measured), grows)
    # A state of Flax's layout, from a checkpoint, stays one and counts nothing.
    warmup = debias == "warmup" and isinstance(state, Debiased)
    return ema(state, measured, decay=decay, correction=correction, warmup=warmup)


def warmup_flag(state: Accumulator) -> jax.Array | None:
    """Return the field `warmup`, 0 where it is left out beside debiased statistics."""
    if state.warmup is None and isinstance(state.running, Debiased):
        return jnp.zeros_like(state.running.weight)
    return None if state.warmup is None else lax.stop_gradient(jnp.asarray(state.warmup))


def select(state: PyTree, measured: Any, stats: str) -> Any:
    """Return the statistics to normalize with: this batch's, or the running ones."""
    if stats == "batch":
        assert measured is not None
        return measured
    return state.running if isinstance(state, Accumulator) else state


def initial_running(
    features: tuple[int, ...], dtype: Any, *, compensated: bool = False, debiased: Debias = False
) -> Running:
    """Return the initial running statistics: mean 0 and variance 1, at least float32."""
    dtype = stat_dtype(dtype)
    running = Running(jnp.zeros(features, dtype), jnp.ones(features, jnp.finfo(dtype).dtype))
    return extended(running, compensated, debiased)


def extended(running: PyTree, compensated: bool, debiased: Debias) -> Any:
    """Return initial statistics with what a norm's options keep beside them."""
    running = compensate(running) if compensated else running
    return debias(running) if debiased else running


def is_stats(leaf: PyTree) -> bool:
    """Whether a node of a state pytree is one norm's statistics."""
    kind = kind_of(leaf)
    return isinstance(leaf, Accumulator) or (kind is not None and isinstance(leaf, kind.running))


def reset_running(running: PyTree) -> Any:
    """Return initial running statistics of the kind, shapes and dtypes of `running`."""
    kind = _KINDS[type(running)]
    mean = jnp.zeros_like(running[0])
    if kind.identity is None:
        initial = kind.running(mean)
    else:
        initial = kind.running(mean, kind.identity(mean.shape, running[1].dtype))
    return extended(initial, isinstance(running, Compensated), isinstance(running, Debiased))


def _check_fits(running: Any, new: Any) -> None:
    """Raise unless `running` has the type and shapes of `new`; other shapes would broadcast."""
    if not isinstance(running, type(new)):
        raise TypeError(
            f"the state is a {type(running).__name__} and must be the {type(new).__name__} that "
            "init returned: apply takes (params, state, x) in this order; a dictionary is written "
            f"{type(new).__name__}(**state)"
        )
    for old, value in zip(running, new, strict=True):
        if jnp.shape(old) != jnp.shape(value):
            raise ValueError(
                f"running statistics of shape {jnp.shape(old)} do not fit those of x, of shape "
                f"{jnp.shape(value)}: init with the shape of this x"
            )


def _finite(count: Array, leaves: Any) -> jax.Array:
    """Whether each statistic is finite, as an array of the shape of the counts."""
    good = jnp.isfinite(jnp.asarray(count))
    for leaf in leaves:
        good &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(good.ndim, leaf.ndim)))
    return good


def _drop_nonfinite(m: Any) -> Any:
    """Return the measurement with nonfinite statistics replaced by empty ones (count 0)."""
    good = _finite(m.count, m)
    return jax.tree.map(lambda leaf: jnp.where(append_axes(good, leaf.ndim), leaf, 0), m)


def _add_batch(total: BatchMeans, m: Any) -> BatchMeans:
    """Update plain averages over batches: mean += (new - mean) / batches."""
    batches = total.batches + (m.count > 0).astype(total.batches.dtype)
    pairs = total.pairs + (m.count > 1).astype(total.pairs.dtype)
    weight = jnp.where(m.count > 0, 1 / jnp.maximum(batches, 1), 0)
    weight_pairs = jnp.where(m.count > 1, 1 / jnp.maximum(pairs, 1), 0)

    def mean(old: Array, new: Array, weight: jax.Array) -> Array:
        return old + scale_by_weight(weight, jnp.asarray(new - old))

    biased, unbiased = to_running(m, 0), to_running(m, 1)
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
