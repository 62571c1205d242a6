"""Shapes, lengths and reversal of the sequences of an RNN, in Flax's conventions."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax._internal import _checks
from normjax.statistics._types import Array, PyTree


class StepFlags(NamedTuple):
    """What an RNN is told of each step, in the order in which it runs.

    Attributes:
        counts: `[time, *batch]`, True where a step counts; `None` where all do.
        resets: `[time, *batch]`, True where the carry starts again before the step.
        holds: whether the carry holds, and the output is 0, where a step does not count; else it
            is padding at the end, where Flax lets the cell run on.
    """

    counts: jax.Array | None
    resets: jax.Array | None
    holds: bool


class Layout(NamedTuple):
    """Where the axes of a sequence are.

    Attributes:
        time_axis: axis of the steps, in inputs and outputs.
        steps: number of steps.
        step_shape: `[*batch, *features]`, shape of one step of the inputs.
        batch_shape: `[*batch]`.
    """

    time_axis: int
    steps: int
    step_shape: tuple[int, ...]
    batch_shape: tuple[int, ...]

    def check_lengths(self, lengths: Array) -> jax.Array:
        """Return `seq_lengths` as integers, refusing those that are known not to fit."""
        lengths = _checks.lengths("seq_lengths", lengths, self.steps, self.batch_shape)
        return lengths.astype(jnp.result_type(int))

    def valid(self, lengths: jax.Array) -> jax.Array:
        """`[time, *batch]`, True where a step is not padding."""
        step = jnp.arange(self.steps).reshape((self.steps,) + (1,) * lengths.ndim)
        return step < lengths[None]

    def flags(self, lengths: jax.Array | None, mask: Any, resets: Any, reverse: bool) -> StepFlags:
        """Check `mask` and `resets`, in the layout of the inputs, and put them in order."""
        counts = None if lengths is None else self.valid(lengths)

        def in_order(flags: jax.Array) -> jax.Array:
            flags = self.reverse(flags, lengths) if reverse else flags
            return jnp.moveaxis(flags, self.time_axis, 0)

        if resets is not None:
            resets = self._checked("resets", resets)
            # The segments stay the same, so backward the last step of each is its first.
            resets = in_order(jnp.roll(resets, -1, self.time_axis) if reverse else resets)
            if reverse:  # the first step that runs begins with the carry that is given
                resets = resets.at[0].set(False)
            resets = resets if counts is None else resets & counts
        if mask is not None:
            ordered = in_order(self._checked("mask", mask))
            counts = ordered if counts is None else ordered & counts
        return StepFlags(counts, resets, mask is not None)

    def _checked(self, name: str, flags: Any) -> jax.Array:
        """Return flags of each step; raise unless they are boolean and of their shape."""
        flags, at = jnp.asarray(flags), self.time_axis
        shape = (*self.batch_shape[:at], self.steps, *self.batch_shape[at:])
        if flags.shape != shape:
            raise ValueError(
                f"{name} of shape {flags.shape} must have one entry for each step of the inputs, "
                f"shape {shape}"
            )
        if flags.dtype != jnp.bool_:
            raise TypeError(
                f"{name} must be boolean and is {flags.dtype}: write {name}.astype(bool)"
            )
        return flags

    def reverse(self, x: Array, lengths: jax.Array | None) -> jax.Array:
        """Reverse the steps of each sequence; its padding stays at the end."""
        if lengths is None:
            return jnp.flip(x, self.time_axis)
        step = jnp.arange(self.steps).reshape((1,) * lengths.ndim + (self.steps,))
        # [*batch, time]: n - 1, ..., 0 for a sequence of n steps, then the padding backwards.
        index = jnp.moveaxis((lengths[..., None] - 1 - step) % self.steps, -1, self.time_axis)
        index = index.reshape(index.shape + (1,) * (x.ndim - index.ndim))
        return jnp.take_along_axis(x, index, axis=self.time_axis)


def layout(shape: tuple[int, ...], num_feature_axes: int, time_major: bool) -> Layout:
    """Describe inputs `[*batch, time, *features]`, or `[time, *batch, *features]`."""
    time_axis = 0 if time_major else len(shape) - num_feature_axes - 1
    step_shape = shape[:time_axis] + shape[time_axis + 1 :]
    batch_shape = step_shape[: len(step_shape) - num_feature_axes]
    return Layout(time_axis, shape[time_axis], step_shape, batch_shape)


def where(flags: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """Choose between trees of `[*batch, ...]` by flags `[*batch]`."""

    def choose(new: Array, old: Array) -> jax.Array:
        trailing = (1,) * (jnp.ndim(new) - flags.ndim)
        return jnp.where(flags.reshape(*flags.shape, *trailing), new, old)

    return jax.tree.map(choose, new, old)


def last_carry(carries: PyTree, initial: PyTree, lengths: jax.Array) -> PyTree:
    """The carry after the last step of each sequence, of carries `[time, *batch, ...]`."""

    def pick(carry: Array) -> jax.Array:
        index = jnp.maximum(lengths - 1, 0)
        index = index.reshape((1, *lengths.shape) + (1,) * (carry.ndim - 1 - lengths.ndim))
        return jnp.take_along_axis(carry, index, axis=0)[0]

    return final_carry(jax.tree.map(pick, carries), initial, lengths)


def final_carry(last: PyTree, initial: PyTree, lengths: Array) -> PyTree:
    """The carry after each sequence: Flax's, but of a sequence of no steps its start."""
    return where(jnp.asarray(lengths) > 0, last, initial)
