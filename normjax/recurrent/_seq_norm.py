"""The contract of a norm over time, `SeqNorm`."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from normjax._internal import _single
from normjax.base import Call, Hyper, Norm, Stats, checked_call
from normjax.state import _names
from normjax.statistics._shapes import widen_half
from normjax.statistics._types import Accumulator, Array, AxisName, PyTree

Beyond = Literal["last", "merge", "error"]


@dataclasses.dataclass(frozen=True, repr=False)
class SeqNorm(abc.ABC):
    """A norm over time: hashable value, pure functions; sequences are time-major `[T, B, F]`.

    As in `Norm`, users call `init` and `apply`, which check; the other methods are what a layer
    composes, and trust what they are given.

    Class attributes:
        factory: name of the lift.
        stepwise: whether a single step can be normalized without the rest of the sequence, or,
            where there is the whole of it, measured with it and normalized alone.
    """

    factory: ClassVar[str] = "lift"
    stepwise: ClassVar[bool] = True

    norm: Norm

    def __post_init__(self) -> None:
        """Refuse what is no norm."""
        if not isinstance(self.norm, Norm):
            raise TypeError(
                f"{self.factory} lifts a norm such as batch_norm() and got {self.norm!r}"
            )

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
        call = Call(stats, mask, axis_name, hyper)
        x, call = checked_call(self.norm, params, state, x, call)
        if isinstance(params, Mapping) or isinstance(state, Mapping):
            made = jax.eval_shape(lambda: self.init(x.shape[1:], key=jax.random.key(0)))
            params, state = (
                _names.from_dict(template, tree) if isinstance(tree, Mapping) else tree
                for template, tree in zip(made, (params, state), strict=True)
            )
        y, measured = self.sequence(params, state, x, call)
        y = y if call.dtype is None else y.astype(call.dtype)
        return y, self.update_state(state, measured, call)

    # All steps at once; the mask of the call is `[time, batch, 1]`.

    def sequence(
        self, params: PyTree, state: PyTree, x: jax.Array, call: Call
    ) -> tuple[jax.Array, PyTree]:
        """Normalize all steps; return `(y, measured)`, `measured` for `update_state`."""

        def normalize(
            step_inputs: PyTree, x_t: jax.Array, mask_t: Array | None
        ) -> tuple[jax.Array, PyTree]:
            call_t = dataclasses.replace(call, mask=mask_t, at_once=x.shape[0])
            return self.normalize_step(params, state, step_inputs, x_t, call_t)

        if call.stats == "running":
            state = self.state_for_inference(state)
        inputs = self.per_step_inputs(params, state, x.shape[0])
        return jax.vmap(normalize)(inputs, x, _mask_of_every_step(call.mask, x))

    def measure(self, params: PyTree, state: PyTree, x: jax.Array, call: Call) -> PyTree:
        """Measure all steps, for `transform_step`; `None` where nothing needs measuring."""
        if not needs_measuring(self.norm, state, call):
            return None

        def measure(step_inputs: PyTree, x_t: jax.Array, mask_t: Array | None) -> PyTree:
            params_t, _ = self.slice_for_step(params, state, step_inputs)
            call_t = dataclasses.replace(call, mask=mask_t, at_once=x.shape[0])
            m = self.norm.measure(params_t, x_t, call_t)
            if getattr(m[0] if m else None, "size", None) == x_t.size:
                _single.refuse(self.norm, x_t.shape, m, call, " of each time step")
            return m

        inputs = self.per_step_inputs(params, state, x.shape[0])
        return jax.vmap(measure)(inputs, x, _mask_of_every_step(call.mask, x))

    def per_step_inputs(self, params: PyTree, state: PyTree, steps: int) -> PyTree:
        """Return what depends on the step, with a leading axis of `steps`, for a scan's `xs`."""
        del params, state, steps
        return None

    def state_for_inference(self, state: PyTree) -> PyTree:
        """Return the state that mode `"running"` normalizes with."""
        return state

    @abc.abstractmethod
    def update_state(self, state: PyTree, measured: PyTree, call: Call) -> PyTree:
        """Return the next state from what all steps measured, with a leading axis of steps."""

    # One step `[batch, features]`, in the body of a scan; the mask of the call is `[batch, 1]`.

    def normalize_step(
        self, params: PyTree, state: PyTree, step_inputs: PyTree, x: jax.Array, call: Call
    ) -> tuple[jax.Array, PyTree]:
        """Measure and normalize one step.

        Args:
            params: parameters of the whole sequence.
            state: state of the whole sequence.
            step_inputs: this step's slice of `per_step_inputs`.
            x: the values of this step.
            call: mode, mask of this step, device axis and hyper.

        Returns:
            `(y, measured)`; `measured`, stacked over steps, goes to `update_state`.
        """
        params, state = self.slice_for_step(params, state, step_inputs)
        return normalize_without_update(self.norm, params, state, x, call)

    def transform_step(
        self,
        params: PyTree,
        state: PyTree,
        step_inputs: PyTree,
        measured: PyTree,
        x: jax.Array,
        call: Call,
    ) -> jax.Array:
        """Normalize one step with what `measure` returned for it."""
        params, state = self.slice_for_step(params, state, step_inputs)
        return self.norm.transform(params, state, measured, x, call)

    def slice_for_step(
        self, params: PyTree, state: PyTree, step_inputs: PyTree
    ) -> tuple[PyTree, PyTree]:
        """Return parameters and state of one step, from its slice of `per_step_inputs`."""
        del step_inputs
        return params, state

    __repr__ = Norm.__repr__


def normalize_without_update(
    norm: Norm, params: PyTree, state: PyTree, x: jax.Array, call: Call
) -> tuple[jax.Array, PyTree]:
    """Do as `Norm.apply` but for the state's update; return `(y, measured)`."""
    dtype, measured = x.dtype, None
    if dtype.itemsize < 4:
        call = dataclasses.replace(call, dtype=dtype)
        x = widen_half(x)
    if call.stats == "batch" or needs_measuring(norm, state, call):
        measured = norm.measure(params, x, call)
        # By shape, before any other call is made: a step of a loop is traced often.
        if getattr(measured[0] if measured else None, "size", None) == x.size:
            _single.refuse(norm, x.shape, measured, call, " of each time step")
    y = norm.transform(params, state, measured, x, call)
    return y.astype(dtype), (measured if norm.stateful else None)


def needs_measuring(norm: Norm, state: PyTree, call: Call) -> bool:
    return call.stats == "batch" or not norm.stateful or isinstance(state, Accumulator)


def _mask_of_every_step(mask: Array | None, x: jax.Array) -> Array | None:
    """Repeat a mask that is one for all steps."""
    return None if mask is None else jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:]))
