"""Segments of sequences: where `resets` start them, which steps `mask` skips, how they are packed.

Statistics by the clock of the segments need all first steps of segments at once, then all second
steps, and so on. `Packing` says where each step of `[time, batch]` goes then: to a lane of its
row, one for each segment, at the clock of its segment. Of the segments of a row of T steps at most
T / k have k steps, so lanes are sorted by length, and the loop over the clock runs in stages, each
with half the lanes and twice the steps of the stage before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax.recurrent import _sequences
from normjax.statistics._types import Array, PyTree


def step_flags(name: str, flags: Any, x: jax.Array, time_major: bool) -> jax.Array | None:
    """Return `resets` or `mask` as `[time, batch]`; raise unless it is boolean and fits x.

    Args:
        name: that of the argument.
        flags: what was given for it.
        x: `[time, batch, features]`.
        time_major: whether `flags` have time first too.
    """
    if flags is None:
        return None
    flags = jnp.asarray(flags)
    shape = x.shape[:2] if time_major else x.shape[1::-1]
    if flags.shape != shape:
        order = "[time, batch]" if time_major else "[batch, time]"
        hint = ""
        if flags.shape == (*shape, 1):
            hint = f": write {name}[..., 0]"
        elif flags.shape == shape[::-1]:
            hint = f": write {name}.T"
        raise ValueError(
            f"{name} of shape {flags.shape} must be {order} of shape {shape}, one for each step "
            f"of x{hint}"
        )
    if flags.dtype != jnp.bool_:
        meaning = {
            "resets": "True where the carry starts again before the step",
            "mask": "True where a step counts",
        }[name]
        raise TypeError(
            f"{name} must be boolean, {meaning}, and is {flags.dtype}: write {name}.astype(bool)"
        )
    return flags if time_major else flags.T


def steps_that_count(
    lengths: Array | None, mask: Any, resets: Any, x: jax.Array, time_major: bool
) -> tuple[jax.Array | None, jax.Array | None]:
    """Return the mask and the resets of x `[time, batch, features]`, `[time, batch, 1]` each.

    A reset in the padding is none; one at a skipped step is.
    """
    counts = _sequences.padding(lengths, x.shape[0], x.shape[1])
    resets = step_flags("resets", resets, x, time_major)
    mask = step_flags("mask", mask, x, time_major)
    if resets is not None:
        resets = resets[..., None] if counts is None else resets[..., None] & counts
    if mask is not None:
        counts = mask[..., None] if counts is None else mask[..., None] & counts
    return counts, resets


def refuse_nan(x: Any, steps: Iterable[Any], time_major: bool) -> None:
    """Raise if x has NaN and neither lengths nor mask say that it is padding; for `debug_nans`.

    Before any operation on x: `debug_nans` stops at the first, and knows nothing of padding.
    """
    if any(given is not None for given in steps):
        return
    if not isinstance(x, jax.core.Tracer):
        found = np.isnan(np.asarray(x)).any(-1)
        _refuse_nan_in(found if time_major else found.swapaxes(0, 1))
        return
    traced = jnp.any(jnp.isnan(x), axis=-1)
    jax.debug.callback(_refuse_nan_in, traced if time_major else traced.swapaxes(0, 1))


def _refuse_nan_in(found: Any) -> None:
    """Raise if any of the steps `[time, batch]` has NaN, naming the argument for padding."""
    found = np.asarray(found)
    if not found.any():
        return
    row = int(np.argmax(found.any(0)))
    step = int(np.argmax(found[:, row]))
    to_the_end = bool(np.sort(found, axis=0).tolist() == found.tolist())
    hint = (
        "all rows with NaN have it to their end, so it looks like padding: write lengths="
        if to_the_end
        else "if these steps are padding, write lengths=, or mask= where there are gaps"
    )
    raise FloatingPointError(
        f"x of a recurrent layer has NaN in {int(found.any(0).sum())} of {found.shape[1]} "
        f"sequences, first in sequence {row} at step {step}, and was given neither lengths nor "
        f"mask, so that all steps count: {hint}"
    )


def resets_backward(resets: Array | None, lengths: Array | None, time_major: bool) -> Any:
    """Return the resets of a layer that reads backward, in the order of the inputs.

    The segments stay the same, so the carry starts again at the last step of each.
    """
    if resets is None:
        return None
    resets, time = jnp.asarray(resets), 0 if time_major else 1
    steps = resets.shape[time]
    following = jnp.roll(resets, -1, axis=time)
    own = jnp.expand_dims(jnp.arange(1, steps + 1, dtype=jnp.int32), 1 - time)
    # Padding ends no segment, and neither does the end of the row.
    if lengths is None:
        return following & (own < steps)
    return following & (own < jnp.expand_dims(jnp.asarray(lengths).astype(jnp.int32), time))


class Stage(NamedTuple):
    """Steps of the clock that run with equally many lanes.

    Attributes:
        start: its first step.
        stop: the step after its last.
        lanes: number of lanes of each row.
    """

    start: int
    stop: int
    lanes: int

    def clock(self) -> jax.Array:
        """Return its steps, `[clock, 1, 1]`."""
        return jnp.arange(self.start, self.stop, dtype=jnp.int32)[:, None, None]


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """Segments as sequences of their own, in lanes of each row, the longest first.

    Attributes:
        stages: of the loop over the clock.
        lane: `[time, batch]`, the lane of each step.
        clock: `[time, batch]`, steps of its segment before each step.
        counts: `[time, batch]`, whether a step counts.
        order: `[time of counted steps, batch]`, which step of the row each is.
        begins: `[lanes, batch]`, counted steps of the row before the segment of each lane.
        lengths: `[lanes, batch]`, number of steps of each.
        first: `[lanes, batch]`, whether the lane has the steps before the first reset.
        last: `[1, batch]`, the lane of the last segment.
        ends_empty: `[1, batch]`, whether the last segment has no step.
        was_reset: `[1, batch]`, whether there is any reset.
    """

    stages: tuple[Stage, ...]
    lane: jax.Array
    clock: jax.Array
    counts: jax.Array
    order: jax.Array
    begins: jax.Array
    lengths: jax.Array
    first: jax.Array
    last: jax.Array
    ends_empty: jax.Array
    was_reset: jax.Array

    @classmethod
    def of(cls, mask: jax.Array | None, resets: jax.Array | None, like: jax.Array) -> Packing:
        """Pack the steps of `like` `[time, batch, …]`; mask and resets are `[time, batch, 1]`."""
        steps, batch = like.shape[:2]
        counts = jnp.ones((steps, batch), bool) if mask is None else mask[..., 0]
        if resets is None:
            segment, most = jnp.zeros((steps, batch), jnp.int32), 1
            stages = [Stage(0, steps, 1)]
        else:
            # Segment 0 has the steps before the first reset, so it may be empty.
            segment, most = jnp.cumsum(resets[..., 0], axis=0, dtype=jnp.int32), steps + 1
            starts = [2**i - 1 for i in range((steps + 1).bit_length()) if 2**i - 1 < steps]
            stops = [*starts[1:], steps]
            stages = [Stage(a, b, steps // (a + 1)) for a, b in zip(starts, stops, strict=True)]
        taken = jnp.cumsum(counts, axis=0, dtype=jnp.int32)  # this step included
        rows = jnp.broadcast_to(jnp.arange(batch)[None], segment.shape)
        size = jnp.zeros((most, batch), jnp.int32).at[segment, rows].add(counts.astype(jnp.int32))
        begins = jnp.cumsum(size, axis=0) - size
        by_length = jnp.argsort(size, axis=0, descending=True)  # lane to segment
        lane_of = jnp.argsort(by_length, axis=0).astype(jnp.int32)  # segment to lane
        return cls(
            stages=tuple(stages),
            lane=_take(lane_of, segment),
            clock=taken - 1 - _take(begins, segment),
            counts=counts,
            order=jnp.argsort(~counts, axis=0),
            begins=_take(begins, by_length),
            lengths=_take(size, by_length),
            first=by_length == 0,
            last=_take(lane_of, segment[-1:]),
            ends_empty=_take(size, segment[-1:]) == 0,
            was_reset=segment[-1:] > 0,
        )

    def lanes_of_rows(self, rows: PyTree, lanes: int) -> PyTree:
        """Give each lane what its row has: `[batch, …]` to `[batch * lanes, …]`."""
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, lanes, axis=0), rows)

    def start(self, first: PyTree, fresh: PyTree) -> PyTree:
        """Return the carries of the lanes: `first` before a row's first reset, else `fresh`.

        Both are `[batch * lanes, hidden]`.
        """
        own = self._rows(self.first[: self.stages[0].lanes])
        return jax.tree.map(lambda a, b: jnp.where(own, a, b), first, fresh)

    def mask(self, stage: Stage) -> jax.Array:
        """Return `[clock, batch * lanes, 1]`, True where a lane has a step."""
        clock = stage.clock()
        mask = clock < self.lengths[None, : stage.lanes]
        return mask.swapaxes(1, 2).reshape(mask.shape[0], -1, 1)

    def pack(self, values: PyTree, stage: Stage) -> PyTree:
        """Give each lane its steps: `[time, batch, …]` to `[clock, batch * lanes, …]`."""
        clock = stage.clock()
        taken = jnp.minimum(self.begins[None, : stage.lanes] + clock, self.order.shape[0] - 1)
        batch = self.order.shape[1]
        step = _take(self.order, taken.reshape(-1, batch))  # [clock * lanes, batch]

        def of_lanes(leaf: jax.Array) -> jax.Array:
            lanes = _take(leaf, step).reshape(-1, stage.lanes, *leaf.shape[1:])
            return lanes.swapaxes(1, 2).reshape(lanes.shape[0], -1, *leaf.shape[2:])

        return jax.tree.map(of_lanes, values)

    def unpack(self, values: list[PyTree]) -> PyTree:
        """Return the values of all stages, `[clock, batch * lanes, …]`, as `[time, batch, …]`.

        A step that does not count has 0.
        """
        batch = self.order.shape[1]
        sizes = [(s.stop - s.start) * s.lanes for s in self.stages]
        offsets = np.cumsum([0, *sizes[:-1]])
        place = np.concatenate(
            [
                offset + np.arange(s.stop - s.start) * s.lanes
                for offset, s in zip(offsets, self.stages, strict=True)
            ]
        )
        clock = jnp.where(self.counts, self.clock, 0)
        where = jnp.asarray(place, jnp.int32)[clock] + self.lane

        def of_steps(*leaves: jax.Array) -> jax.Array:
            lanes = [
                leaf.reshape(leaf.shape[0], batch, -1, *leaf.shape[2:])
                .swapaxes(1, 2)
                .reshape(-1, batch, *leaf.shape[2:])
                for leaf in leaves
            ]
            steps = _take(jnp.concatenate(lanes), jnp.where(self.counts, where, 0))
            return jnp.where(self.counts[(..., *(None,) * (steps.ndim - 2))], steps, 0)

        return jax.tree.map(of_steps, *values)

    def end(self, ends: list[PyTree], first: PyTree, fresh: PyTree) -> PyTree:
        """Return each row's last carry `[batch, hidden]`.

        Args:
            ends: of each stage, the last carries of its lanes, `[batch * lanes, hidden]`.
            first: `[batch, hidden]`, the carry that was given.
            fresh: the carry after a reset.
        """
        batch = self.order.shape[1]

        def of_rows(first: jax.Array, fresh: jax.Array, *leaves: jax.Array) -> jax.Array:
            # A lane ends in the last stage that it is in.
            lanes: list[jax.Array] = []
            known = 0
            for leaf in reversed(leaves):
                of_lane = leaf.reshape(batch, -1, leaf.shape[-1]).swapaxes(0, 1)
                lanes.append(of_lane[known:])
                known = of_lane.shape[0]
            last = jnp.minimum(self.last, known - 1)
            carry = _take(jnp.concatenate(lanes), last)[0]
            empty = jnp.where(self.was_reset[0, :, None], fresh, first)
            return jnp.where(self.ends_empty[0, :, None], empty, carry)

        return jax.tree.map(of_rows, first, fresh, *ends)

    def _rows(self, lanes: jax.Array) -> jax.Array:
        """`[lanes, batch]` as `[batch * lanes, 1]`."""
        return lanes.T.reshape(-1, 1)


def _take(values: jax.Array, index: jax.Array) -> jax.Array:
    """Take entries of `[n, batch, …]` along the first axis by index `[m, batch]`."""
    index = index.reshape(index.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=0)
