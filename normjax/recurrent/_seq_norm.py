"""The contract of a norm over time, `SeqNorm`."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from normjax._internal import _checks
from normjax.base import Call, Hyper, Norm, Stats
from normjax.statistics._types import Array, AxisName, PyTree, is_accumulator

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
        x: jax.Array,
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
        _checks.hyper(hyper, self.norm.hyper_names, self.norm.factory)
        x = _checks.floating(x, self.factory)
        mask = _checks.mask(mask, x.shape)
        how: dict[str, Any] = {"stats": stats, "axis_name": axis_name, "hyper": hyper}
        y, measured = self.sequence(params, state, x, mask=mask, **how)
        return y, self.update_state(state, measured, stats=stats, hyper=hyper)

    def sequence(
        self, params: PyTree, state: PyTree, x: jax.Array, *, mask: Array | None = None, **how: Any
    ) -> tuple[jax.Array, PyTree]:
        """Normalize all steps at once; return `(y, measured)`, `measured` for `update_state`."""

        def one(at: PyTree, x_t: jax.Array, mask_t: Array | None) -> tuple[jax.Array, PyTree]:
            return self.normalize_step(params, state, at, x_t, mask=mask_t, **how)

        return jax.vmap(one)(
            self.per_step_inputs(params, state, x.shape[0]), x, _per_step_mask(mask, x)
        )

    def measure(
        self,
        params: PyTree,
        state: PyTree,
        x: jax.Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
    ) -> PyTree:
        """Measure all steps at once, for `transform_step`; `None` where nothing needs measuring."""
        del hyper
        if not needs_measuring(self.norm, state, stats):
            return None

        def one(at: PyTree, x_t: jax.Array, mask_t: Array | None) -> PyTree:
            own, _ = self.slice_for_step(params, state, at)
            return self.norm.measure(own, x_t, Call(stats, mask_t, axis_name))

        return jax.vmap(one)(
            self.per_step_inputs(params, state, x.shape[0]), x, _per_step_mask(mask, x)
        )

    def transform_step(
        self,
        params: PyTree,
        state: PyTree,
        at: PyTree,
        measured: PyTree,
        x: jax.Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Normalize one step with what `measure` found for it."""
        del axis_name
        own, kept = self.slice_for_step(params, state, at)
        return self.norm.transform(own, kept, measured, x, Call(stats, mask, hyper=hyper))

    def slice_for_step(self, params: PyTree, state: PyTree, at: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and state of one step, `at` being its slice of `per_step_inputs`."""
        del at
        return params, state

    def per_step_inputs(self, params: PyTree, state: PyTree, steps: int) -> PyTree:
        """Return what depends on the step, with a leading axis of `steps`, for a scan's `xs`."""
        del params, state, steps
        return None

    def normalize_step(
        self,
        params: PyTree,
        state: PyTree,
        at: PyTree,
        x: jax.Array,
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
            at: this step's slice of `per_step_inputs`.
            x: the values of this step.
            stats: `"batch"` or `"running"`.
            mask: `[batch, 1]`, True where the step is not padding.
            axis_name: device axis that the batch is split over.
            hyper: numbers that may vary during training.

        Returns:
            `(y, measured)`; `measured`, stacked over steps, goes to `update_state`.
        """
        own, kept = self.slice_for_step(params, state, at)
        return normalize_now(self.norm, own, kept, x, stats, mask, axis_name, hyper)

    @abc.abstractmethod
    def update_state(
        self, state: PyTree, measured: PyTree, *, stats: Stats, hyper: Hyper = None
    ) -> PyTree:
        """Return the next state from what all steps measured."""

    __repr__ = Norm.__repr__


def normalize_now(
    norm: Norm,
    params: PyTree,
    state: PyTree,
    x: jax.Array,
    stats: Stats,
    mask: Array | None,
    axis_name: AxisName,
    hyper: Hyper,
) -> tuple[jax.Array, PyTree]:
    """`Norm.apply` with the state's move left for later: return `(y, measured)`."""
    call = Call(stats, mask, axis_name, hyper)
    measured = None
    if needs_measuring(norm, state, stats):
        measured = norm.measure(params, x, call)
    y = norm.transform(params, state, measured, x, call)
    return y, (measured if norm.stateful else None)


def needs_measuring(norm: Norm, state: PyTree, stats: Stats) -> bool:
    return stats == "batch" or not norm.stateful or is_accumulator(state)


def _per_step_mask(mask: Array | None, x: jax.Array) -> Array | None:
    """The mask of every step of x, where it is one for all."""
    return None if mask is None else jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:]))


def unlifted(norm: Any, who: str) -> Norm:
    if not isinstance(norm, Norm):
        raise TypeError(f"{who} lifts a norm such as batch_norm() and got {norm!r}")
    return norm
