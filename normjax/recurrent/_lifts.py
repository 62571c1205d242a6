"""Lifts: what a norm's statistics do over time.

A lift turns a `Norm` into a `SeqNorm`, whose state may depend on the time step. It changes
the state only. Inside a scan the state of each step travels in as `xs` (`unroll`), what each
step measured travels out as `ys`, and the state moves once, after the scan (`commit`): no
dynamic index, no carry, and nothing of the running average inside the loop.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from normjax import _checks, _moments, _words
from normjax.base import Array, AxisName, Hyper, Norm, PyTree, Stats, gathers

Beyond = Literal["last", "merge", "error"]


@dataclasses.dataclass(frozen=True, repr=False)
class SeqNorm(abc.ABC):
    """A norm over time: hashable value, pure functions; sequences are time-major `[T, B, F]`.

    Class attributes:
        factory: name of the lift.
        stepwise: whether a single step can be normalized without the rest of the sequence, or,
            where the whole is at hand, measured with it and normalized alone.
    """

    factory: ClassVar[str] = "lift"
    stepwise: ClassVar[bool] = True

    norm: Norm

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Make `(params, state)` for steps of `shape`, for example `(1, features)`."""
        return self.norm.init(shape, dtype, key=key)

    def apply(
        self,
        params: PyTree,
        state: PyTree,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
    ) -> tuple[jax.Array, PyTree]:
        """Normalize a whole sequence and return the next state.

        Args:
            params: what `init` returned.
            state: what `init` or the last `apply` returned.
            x: `[time, batch, features]`.
            stats: `"batch"` or `"running"`.
            mask: `[time, batch, 1]`, True where a step is not padding.
            axis_name: device axis that the batch is split over.
            hyper: numbers that may vary during training.

        Returns:
            `(y, state)`.
        """
        _checks.stats(stats)
        _checks.hyper(hyper, self.norm.hypers, self.norm.factory)
        x = _checks.floating(x, self.factory)
        mask = _checks.mask(mask, x.shape)
        how: dict[str, Any] = {"stats": stats, "axis_name": axis_name, "hyper": hyper}
        y, seen = self.sequence(params, state, x, mask=mask, **how)
        return y, self.commit(state, seen, stats=stats, hyper=hyper)

    def sequence(
        self, params: PyTree, state: PyTree, x: Array, *, mask: Array | None = None, **how: Any
    ) -> tuple[jax.Array, PyTree]:
        """Normalize all steps at once; return `(y, seen)`, `seen` for `commit`."""

        def one(at: PyTree, x_t: Array, mask_t: Array | None) -> tuple[jax.Array, PyTree]:
            return self.step(params, state, at, x_t, mask=mask_t, **how)

        return jax.vmap(one)(self.unroll(params, state, x.shape[0]), x, _each(mask, x))

    def measure(
        self,
        params: PyTree,
        state: PyTree,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
    ) -> PyTree:
        """Measure all steps at once, for `place` to normalize them one by one; `None`: no need."""
        del hyper
        if not _measures(self.norm, state, stats):
            return None

        def one(at: PyTree, x_t: Array, mask_t: Array | None) -> PyTree:
            own, _ = self.at(params, state, at)
            return self.norm.moments(own, x_t, mask=mask_t, axis_name=axis_name)

        return jax.vmap(one)(self.unroll(params, state, x.shape[0]), x, _each(mask, x))

    def place(
        self,
        params: PyTree,
        state: PyTree,
        at: PyTree,
        seen: PyTree,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Normalize one step with what `measure` found for it."""
        del axis_name
        own, kept = self.at(params, state, at)
        return self.norm.transform(own, kept, seen, x, stats=stats, mask=mask, hyper=hyper)

    def at(self, params: PyTree, state: PyTree, at: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and state of one step, `at` being its slice of `unroll`."""
        del at
        return params, state

    def unroll(self, params: PyTree, state: PyTree, steps: int) -> PyTree:
        """Return what depends on the step, with a leading axis of `steps`, for a scan's `xs`."""
        del params, state, steps
        return None

    def step(
        self,
        params: PyTree,
        state: PyTree,
        at: PyTree,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
    ) -> tuple[jax.Array, PyTree]:
        """Normalize one step `[batch, features]`: what a scan body calls.

        Args:
            params: parameters of the whole sequence.
            state: state of the whole sequence.
            at: this step's slice of `unroll`.
            x: the values of this step.
            stats: `"batch"` or `"running"`.
            mask: `[batch, 1]`, True where the step is not padding.
            axis_name: device axis that the batch is split over.
            hyper: numbers that may vary during training.

        Returns:
            `(y, seen)`; `seen`, stacked over steps, goes to `commit`.
        """
        own, kept = self.at(params, state, at)
        return _normalize(self.norm, own, kept, x, stats, mask, axis_name, hyper)

    @abc.abstractmethod
    def commit(self, state: PyTree, seen: PyTree, *, stats: Stats, hyper: Hyper = None) -> PyTree:
        """Return the next state from what all steps measured."""

    __repr__ = Norm.__repr__


def _normalize(
    norm: Norm,
    params: PyTree,
    state: PyTree,
    x: Array,
    stats: Stats,
    mask: Array | None,
    axis_name: AxisName,
    hyper: Hyper,
) -> tuple[jax.Array, PyTree]:
    """`Norm.apply` with the state's move left for later: return `(y, seen)`."""
    seen = None
    if _measures(norm, state, stats):
        seen = norm.moments(params, x, mask=mask, axis_name=axis_name)
    y = norm.transform(params, state, seen, x, stats=stats, mask=mask, hyper=hyper)
    return y, (seen if norm.stateful else None)


def _measures(norm: Norm, state: PyTree, stats: Stats) -> bool:
    return stats == "batch" or not norm.stateful or gathers(state)


def resize(tree: PyTree, steps: int) -> PyTree:
    """The first `steps` along axis 0 of each leaf, the last one repeated where there are fewer."""

    def one(leaf: Array) -> jax.Array:
        leaf = jnp.asarray(leaf)[:steps]
        missing = steps - leaf.shape[0]
        return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf

    return jax.tree.map(one, tree)


def _each(mask: Array | None, x: Array) -> Array | None:
    """The mask of every step of x, where it is one for all."""
    return None if mask is None else jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:]))


@dataclasses.dataclass(frozen=True, repr=False)
class PerStep(SeqNorm):
    """The value behind `per_step`; see there."""

    factory: ClassVar[str] = "per_step"

    max_steps: int = dataclasses.field(kw_only=True)
    share_params: bool = True
    beyond: Beyond = "last"

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Make parameters, shared or one per step, and one state per step."""
        params, state = self.norm.init(shape, dtype, key=key)

        def repeat(leaf: jax.Array) -> jax.Array:
            return jnp.tile(leaf, (self.max_steps,) + (1,) * leaf.ndim)

        params = params if self.share_params else jax.tree.map(repeat, params)
        return params, jax.tree.map(repeat, state)

    def unroll(self, params: PyTree, state: PyTree, steps: int) -> PyTree:
        """Slice out the first `steps` states, the last one repeated past `max_steps`."""
        _checks.steps(steps, self.max_steps, self.beyond)
        for leaf in jax.tree.leaves(state):
            if jnp.shape(leaf)[0] != self.max_steps:
                raise ValueError(
                    f"the state has statistics of {jnp.shape(leaf)[0]} steps and this lift keeps "
                    f"{self.max_steps}: write max_steps={jnp.shape(leaf)[0]}"
                )

        own = None if self.share_params else resize(params, steps)
        return own, resize(state, steps)

    def at(self, params: PyTree, state: PyTree, at: PyTree) -> tuple[PyTree, PyTree]:
        """The state of this step, and its parameters if it has its own."""
        own, kept = at
        return params if self.share_params else own, kept

    def commit(self, state: PyTree, seen: PyTree, *, stats: Stats, hyper: Hyper = None) -> PyTree:
        """Move the statistics of the steps that were seen; the others stay."""
        if seen is None:
            return state
        steps = jax.tree.leaves(seen)[0].shape[0]
        n = min(steps, self.max_steps)
        if self.beyond == "merge" and steps > n:
            last = _moments.merge_axis(jax.tree.map(lambda s: s[n - 1 :], seen))
            seen = jax.tree.map(lambda s, e: s[:n].at[n - 1].set(e), seen, last)
        else:
            seen = jax.tree.map(lambda s: s[:n], seen)

        def move(state_t: PyTree, seen_t: PyTree) -> PyTree:
            return self.norm.update(state_t, seen_t, stats=stats, hyper=hyper)

        moved = jax.vmap(move)(jax.tree.map(lambda s: jnp.asarray(s)[:n], state), seen)
        if n == self.max_steps:
            return moved
        return jax.tree.map(lambda s, m: jnp.asarray(s).at[:n].set(m), state, moved)


@dataclasses.dataclass(frozen=True, repr=False)
class Shared(SeqNorm):
    """The value behind `shared`; see there."""

    factory: ClassVar[str] = "shared"

    def commit(self, state: PyTree, seen: PyTree, *, stats: Stats, hyper: Hyper = None) -> PyTree:
        """Move the one set of statistics by the moments of all steps together."""
        if seen is None:
            return state
        return self.norm.update(state, _moments.merge_axis(seen), stats=stats, hyper=hyper)


@dataclasses.dataclass(frozen=True, repr=False)
class SequenceWise(SeqNorm):
    """The value behind `sequence_wise`; see there."""

    factory: ClassVar[str] = "sequence_wise"
    stepwise: ClassVar[bool] = False

    def sequence(
        self, params: PyTree, state: PyTree, x: Array, *, mask: Array | None = None, **how: Any
    ) -> tuple[jax.Array, PyTree]:
        """Normalize over time and batch together."""
        stats, axis_name, hyper = how["stats"], how.get("axis_name"), how.get("hyper")
        # Batch first: norms of one sample, or of parts of the batch, go by the first axis.
        x = x.swapaxes(0, 1)
        mask = None if mask is None else mask.swapaxes(0, 1)
        y, seen = _normalize(self.norm, params, state, x, stats, mask, axis_name, hyper)
        return y.swapaxes(0, 1), seen

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Make `(params, state)` for sequences of steps of `shape`."""
        return self.norm.init((shape[0], 1, *shape[1:]), dtype, key=key)

    def step(self, *args: Any, **how: Any) -> Any:
        """Refuse: one step does not have the whole sequence."""
        raise ValueError(
            "sequence_wise needs the whole sequence, which a recurrent term never has: use it as "
            "norm_x, and per_step(norm, max_steps) in the other places"
        )

    def commit(self, state: PyTree, seen: PyTree, *, stats: Stats, hyper: Hyper = None) -> PyTree:
        """Move the statistics as the norm itself does."""
        return state if seen is None else self.norm.update(state, seen, stats=stats, hyper=hyper)


@_words.told()
def per_step(
    norm: Norm, max_steps: int, *, share_params: bool = True, beyond: Beyond = "last"
) -> SeqNorm:
    r"""Keep statistics of each time step apart, as recurrent batch norm needs.

    $$\hat x_t = \frac{x_t - \mu_t}{\sqrt{\sigma_t^2 + \epsilon}}, \qquad
      t > T_{\max}:\; \mu_t = \mu_{T_{\max}},\; \sigma_t = \sigma_{T_{\max}}$$

    The hidden state starts from the same value in every sequence and settles within tens of
    steps; statistics averaged over that transient fit no step.

    A step is known as well as its data: one that no sequence reached keeps mean 0 and variance
    1, and one that a single sequence reached in a batch moves toward variance 0. Where lengths
    differ much, evaluate with `population` over enough data, with `max_steps` no longer than
    its sequences.

    Args:
        norm: the norm of one step, with any state.
        max_steps: number of steps with statistics of their own; the longest training length.
        share_params: one gamma and beta for all steps (the paper), or one per step.
        beyond: steps past `max_steps`: `"last"` normalizes them with the last statistics in
            mode `"running"`, and in mode `"batch"` leaves these alone; `"merge"` also adds what
            was seen there to the last statistics; `"error"` refuses longer sequences.

    Returns:
        A `SeqNorm` whose state has a leading axis of `max_steps`.

    Raises:
        TypeError: `norm` is not a `Norm`.
        ValueError: `max_steps` is not a positive integer, `beyond` is unknown.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from normjax import recurrent
        >>> seq = recurrent.per_step(nj.batch_norm(decay=0.0), max_steps=2)
        >>> params, state = seq.init((1, 1))
        >>> x = jnp.array([[[0.0], [2.0]], [[4.0], [8.0]]])  # [time, batch, features]
        >>> _, state = seq.apply(params, state, x, stats="batch")
        >>> state.mean.ravel().tolist()
        [1.0, 6.0]

    Reference:
        Cooijmans, Ballas, Laurent, Gulcehre, Courville, "Recurrent Batch Normalization", 2017.
    """
    _checks.positive_int("max_steps", max_steps)
    _checks.one_of("beyond", beyond, ("last", "merge", "error"))
    return PerStep(
        _plain(norm, "per_step"), max_steps=max_steps, share_params=share_params, beyond=beyond
    )


@_words.told()
def shared(norm: Norm) -> SeqNorm:
    """Keep one set of statistics for all steps: the ablation that the recurrent paper warns of.

    In mode `"batch"` each step is still normalized by its own batch; what is kept for mode
    `"running"` are the moments of all steps together.

    Args:
        norm: the norm of one step.

    Returns:
        A `SeqNorm` with the norm's own state.

    Raises:
        TypeError: `norm` is not a `Norm`.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from normjax import recurrent
        >>> seq = recurrent.shared(nj.batch_norm(decay=0.0))
        >>> params, state = seq.init((1, 1))
        >>> x = jnp.array([[[0.0], [2.0]], [[4.0], [8.0]]])
        >>> _, state = seq.apply(params, state, x, stats="batch")
        >>> state.mean.tolist()
        [3.5]

    Reference:
        Cooijmans et al., "Recurrent Batch Normalization", 2017, section 3 (against it).
    """
    return Shared(_plain(norm, "shared"))


@_words.told()
def sequence_wise(norm: Norm) -> SeqNorm:
    r"""Take statistics over time and batch together, padding left out.

    $$\mu = \frac1n \sum_{i=1}^{B} \sum_{t=1}^{T_i} x_{i,t}, \qquad n = \sum_i T_i$$

    Only where the whole sequence is at hand: the input projection, `norm_x`.

    Args:
        norm: a norm over all axes but the last.

    Returns:
        A `SeqNorm` with the norm's own state.

    Raises:
        TypeError: `norm` is not a `Norm`.
        ValueError: `norm` names axes of its own.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from normjax import recurrent
        >>> seq = recurrent.sequence_wise(nj.batch_norm(decay=0.0))
        >>> params, state = seq.init((1, 1))
        >>> x = jnp.array([[[0.0], [2.0]], [[4.0], [8.0]]])
        >>> y, state = seq.apply(params, state, x, stats="batch")
        >>> state.mean.tolist(), round(float(y.std()), 3)
        ([3.5], 1.0)

    Reference:
        Laurent, Pereyra, Brakel, Zhang, Bengio, "Batch Normalized Recurrent Neural Networks",
        2016; Amodei et al., "Deep Speech 2", 2016.
    """
    norm = _plain(norm, "sequence_wise")
    if norm.stateful and getattr(norm, "axes", None) is not None:
        raise ValueError(
            f"sequence_wise averages over time and batch, and {norm!r} names axes: leave axes=None"
        )
    return SequenceWise(norm)


def lift(norm: Any, place: str, *, stepwise: bool) -> SeqNorm | None:
    """Return the `SeqNorm` of a place of a layer; a stateless norm needs no lift."""
    if norm is None or isinstance(norm, SeqNorm):
        if isinstance(norm, SeqNorm) and stepwise and not norm.stepwise:
            raise ValueError(
                f"{place}={norm!r} needs the whole sequence, and {place} sees one step at a time: "
                f"write {place}=per_step({norm.norm!r}, max_steps=...)"
            )
        return norm
    if not isinstance(norm, Norm):
        raise TypeError(
            f"{place}={norm!r} is not a norm: write for example {place}=layer_norm() or "
            f"{place}=per_step(batch_norm(scale_init=0.1), max_steps=...)"
        )
    if norm.stateful:
        raise ValueError(
            f"{place}={norm!r} keeps statistics, so say which over time: "
            f"per_step({norm!r}, max_steps=...), shared(...)"
            + ("" if stepwise else " or sequence_wise(...)")
        )
    return Shared(norm)


def _plain(norm: Any, who: str) -> Norm:
    if not isinstance(norm, Norm):
        raise TypeError(f"{who} lifts a norm such as batch_norm() and got {norm!r}")
    return norm
