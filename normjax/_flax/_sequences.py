"""Shapes, lengths and reversal of the sequences of an RNN, in Flax's conventions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax._internal import _checks
from normjax.statistics._types import Array, PyTree


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


def last_carry(carries: PyTree, initial: PyTree, lengths: jax.Array) -> PyTree:
    """The carry after the last step of each sequence, of carries `[time, *batch, ...]`."""

    def pick(carry: Array) -> jax.Array:
        index = jnp.maximum(lengths - 1, 0)
        index = index.reshape((1, *lengths.shape) + (1,) * (carry.ndim - 1 - lengths.ndim))
        return jnp.take_along_axis(carry, index, axis=0)[0]

    return final_carry(jax.tree.map(pick, carries), initial, lengths)


def final_carry(last: PyTree, initial: PyTree, lengths: Array) -> PyTree:
    """The carry after each sequence: Flax's, but of a sequence of no steps its start."""

    def choose(last: Array, start: Array) -> jax.Array:
        trailing = (1,) * (jnp.ndim(last) - jnp.ndim(lengths))
        return jnp.where(jnp.reshape(lengths, (*jnp.shape(lengths), *trailing)) > 0, last, start)

    return jax.tree.map(choose, last, initial)
