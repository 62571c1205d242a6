"""Statistics per time step for any NNX cell, inside Flax's RNN or ours."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from normjax._flax import _padding
from normjax._internal import _checks
from normjax.statistics._types import Array, PyTree


class StepCarry(NamedTuple):
    """Carry of a `PerStepCell`: the cell's own, and where in time it is.

    Attributes:
        step: `[*batch]`, int32, number of steps done.
        lengths: `[*batch]`, int32, number of steps of each sequence, counted from step 0; those
            past it are padding. `None` where nothing is padding.
        carry: carry of the cell.
    """

    step: Array
    lengths: Array | None
    carry: PyTree


class PerStepCell(nnx.RNNCellBase):
    r"""A cell whose norms keep statistics of each time step, for `flax.nnx.RNN`.

    $$\hat x_t = \frac{x_t - \mu_t}{\sqrt{\sigma_t^2 + \epsilon}}, \qquad
      t > T_{\max}:\; \mu_t = \mu_{T_{\max}},\; \sigma_t = \sigma_{T_{\max}}$$

    Every `nnx.BatchStat` of the cell gets a leading axis of `max_steps`; parameters are shared
    over time. The step travels in the carry, so a sequence may be run in pieces, and may be
    shorter or longer than `max_steps`: past it the last statistics serve, and training leaves
    them alone. `train()` and `eval()` set the mode, as ever.

    Flax's RNN tells its cell nothing of `seq_lengths`. Padding stays out of the statistics of
    our norms where the start says how long sequences are,
    `initial_carry=cell.initialize_carry(shape, rngs, lengths=n)`, which `normjax.nnx.RNN` does
    by itself.

    Args:
        cell: the cell; its statistics are taken over, and it is no longer to be called by
            itself.
        max_steps: number of steps with statistics of their own.

    Raises:
        TypeError: the cell has statistics per step already.
        ValueError: `max_steps` is not a positive integer.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> class Cell(nnx.GRUCell):
        ...     def __init__(self, features, hidden, *, rngs):
        ...         super().__init__(features, hidden, rngs=rngs)
        ...         self.norm = nn.Normalize(nj.batch_norm(decay=0.0), features, rngs=rngs)
        ...     def __call__(self, carry, x):
        ...         return super().__call__(carry, self.norm(x))
        >>> cell = nn.PerStepCell(Cell(1, 4, rngs=nnx.Rngs(0)), max_steps=3)
        >>> rnn = nnx.RNN(cell, rngs=nnx.Rngs(0))
        >>> rnn.train()
        >>> y = rnn(jnp.arange(6.0).reshape(2, 3, 1))  # [batch, time, features]
        >>> cell.cell.norm.mean[...].ravel().tolist()
        [1.5, 2.5, 3.5]
        >>> rnn.eval()
        >>> rnn(jnp.ones((1, 7, 1))).shape
        (1, 7, 4)

    Reference:
        Cooijmans, Ballas, Laurent, Gulcehre, Courville, "Recurrent Batch Normalization", 2017.
    """

    def __init__(self, cell: Any, max_steps: int):
        _checks.positive_int("max_steps", max_steps)
        if isinstance(cell, PerStepCell):
            raise TypeError("this cell is a PerStepCell already: write PerStepCell(cell) once")
        self.cell = cell
        self.max_steps = max_steps
        for v in _kept(cell):
            v.set_value(
                jax.tree.map(lambda leaf: jnp.repeat(leaf[None], max_steps, axis=0), v.get_value())
            )

    def __call__(self, carry: Any, inputs: Array) -> tuple[StepCarry, Any]:
        """Run one step.

        Args:
            carry: `StepCarry`, as `initialize_carry` or the last step returned it.
            inputs: as for the cell.

        Returns:
            `(carry, output)`.

        Raises:
            TypeError: the carry is that of the cell alone.
        """
        if not isinstance(carry, StepCarry):
            raise TypeError(
                "the carry of a PerStepCell has the step in it: write "
                "initial_carry=cell.initialize_carry(shape, rngs)._replace(carry=…), or use "
                "normjax.nnx.RNN, which takes the carry of the cell alone"
            )
        step = jnp.max(carry.step, initial=0)
        at = jnp.minimum(step, self.max_steps - 1)
        held = _kept(self.cell)
        whole = [v.get_value() for v in held]
        here = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, at, keepdims=False), whole)
        try:
            for v, value in zip(held, here, strict=True):
                v.set_value(value)
            valid = None
            if carry.lengths is not None:
                # The step that is run, and not `carry.step`: Flax hands each sequence back the
                # carry of its own end, so that in the next piece those of `carry` differ.
                valid = jnp.asarray(step < carry.lengths)
            with _padding.step(valid):
                inner, y = self.cell(carry.carry, inputs)
            moved = [v.get_value() for v in held]
        finally:
            for v, value in zip(held, whole, strict=True):
                v.set_value(value)

        def put(whole: Array, old: Array, new: Array) -> Array:
            if new is old:  # evaluation writes nothing
                return whole
            new = jnp.where(step < self.max_steps, new.astype(old.dtype), old)
            return lax.dynamic_update_index_in_dim(whole, new, at, 0)

        for v, *values in zip(held, whole, here, moved, strict=True):
            v.set_value(jax.tree.map(put, *values))
        return StepCarry(carry.step + 1, carry.lengths, inner), y

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: Any = None,
        carry_init: Any = None,
        *,
        lengths: Array | None = None,
    ) -> StepCarry:
        """Make the carry of step 0.

        Args:
            input_shape: `[*batch, *features]`, that of one step.
            rngs: as for the cell.
            carry_init: as for the cell.
            lengths: `[*batch]`, number of steps of each sequence; the rest is padding.

        Returns:
            A `StepCarry`.
        """
        more = {} if carry_init is None else {"carry_init": carry_init}
        inner = self.cell.initialize_carry(input_shape, rngs, **more)
        return _start(inner, input_shape[: len(input_shape) - self.num_feature_axes], lengths)

    @property
    def num_feature_axes(self) -> int:
        """Number of feature axes of the cell."""
        return self.cell.num_feature_axes


class RNN(nnx.RNN):
    """Any NNX cell over a sequence, as `flax.nnx.RNN`, with statistics of each time step.

    Flax's RNN around a `PerStepCell`, which see; and `seq_lengths` keeps padding out of the
    statistics of our norms, without a word in the cell (Flax's own `BatchNorm` is not told of
    it). Carries are those of the cell alone; given a `StepCarry`, it returns one.

    Args:
        cell: the cell, or a `PerStepCell`.
        max_steps: number of steps with statistics of their own; not for a `PerStepCell`.
        beyond: sequences longer than `max_steps`: `"last"` uses the last statistics there,
            `"error"` refuses them, earlier pieces of them counted where their number can be seen
            (not traced). Further arguments: Flax's.

    Raises:
        TypeError: no `max_steps`.
        ValueError: one outside its range, or unknown `beyond`.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> class Cell(nnx.GRUCell):
        ...     def __init__(self, features, hidden, *, rngs):
        ...         super().__init__(features, hidden, rngs=rngs)
        ...         self.norm = nn.Normalize(nj.batch_norm(decay=0.0), features, rngs=rngs)
        ...     def __call__(self, carry, x):
        ...         return super().__call__(carry, self.norm(x))
        >>> rnn = nn.RNN(Cell(1, 4, rngs=nnx.Rngs(0)), max_steps=3)
        >>> rnn.train()
        >>> y = rnn(jnp.arange(6.0).reshape(2, 3, 1), seq_lengths=jnp.array([3, 2]))
        >>> rnn.cell.cell.norm.mean[...].ravel().tolist()
        [1.5, 2.5, 2.0]

    Reference:
        As `PerStepCell`.
    """

    cell: PerStepCell

    def __init__(
        self,
        cell: Any,
        *,
        max_steps: int | None = None,
        beyond: str = "last",
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        state_axes: Mapping[str, Any] | None = None,
        broadcast_rngs: Any = None,
        rngs: Any = True,
    ):
        _checks.one_of("beyond", beyond, ("last", "error"))
        if not isinstance(cell, PerStepCell):
            if max_steps is None:
                raise TypeError(
                    "RNN needs max_steps, the number of steps with statistics of their own: write "
                    "RNN(cell, max_steps=…), the longest training length"
                )
            cell = PerStepCell(cell, max_steps)
        elif max_steps not in (None, cell.max_steps):
            raise ValueError(
                f"the PerStepCell has max_steps={cell.max_steps} and RNN was given {max_steps}: "
                "give it in one place"
            )
        super().__init__(
            cell,
            time_major=time_major,
            return_carry=return_carry,
            reverse=reverse,
            keep_order=keep_order,
            unroll=unroll,
            state_axes=state_axes,
            broadcast_rngs=broadcast_rngs,
            rngs=rngs,
        )
        self.beyond = beyond

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: PyTree | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """Run the cell over a sequence.

        Args:
            inputs: `[*batch, time, *features]`, or `[time, *batch, *features]` if time-major.
            initial_carry: start of the carry, of the cell or a `StepCarry` to go on from; by
                default the cell's `initialize_carry`.
            seq_lengths: `[*batch]`, integer number of steps of each sequence of `inputs`.
                Outputs past it are not zeroed, as in Flax.
            return_carry: also return the carry after the last step of each sequence; that of a
                sequence of no steps is its start.
            time_major: as the argument, which it overrides; likewise the next two.
            reverse: run from the last step to the first; padding stays at the end.
            keep_order: return outputs of a reversed run in the order of the inputs.
            rngs: random keys of `initialize_carry`.

        Returns:
            Outputs of every step, or `(carry, outputs)` with `return_carry`.

        Raises:
            TypeError: `seq_lengths` that are no integers.
            ValueError: a sequence longer than `max_steps` where `beyond="error"`; `seq_lengths`
                of another shape than the batch, or that can be seen (not traced) outside 0 to
                the steps.
        """
        if return_carry is None:
            return_carry = self.return_carry
        time_major = self.time_major if time_major is None else time_major
        inputs = jnp.asarray(inputs)
        features = self.cell.num_feature_axes
        time = 0 if time_major else inputs.ndim - features - 1
        shape = inputs.shape[:time] + inputs.shape[time + 1 :]
        batch = shape[: len(shape) - features]
        if self.beyond == "error":
            before = _seen(initial_carry) if isinstance(initial_carry, StepCarry) else 0
            _checks.max_steps(before + inputs.shape[time], self.cell.max_steps, self.beyond)
        if seq_lengths is not None:
            seq_lengths = _checks.lengths("seq_lengths", seq_lengths, inputs.shape[time], batch)
            seq_lengths = seq_lengths.astype(jnp.result_type(int))
        if isinstance(initial_carry, StepCarry):
            start = initial_carry
            if seq_lengths is not None:
                done = jnp.max(start.step, initial=0)
                start = start._replace(lengths=done + seq_lengths.astype(jnp.int32))
        elif initial_carry is not None:
            start = _start(initial_carry, batch, seq_lengths)
        else:
            streams = self.rngs if rngs is None else rngs
            if isinstance(streams, nnx.Rngs):
                streams = streams.carry.fork()
            start = self.cell.initialize_carry(shape, streams, lengths=seq_lengths)
        found = super().__call__(
            inputs,
            initial_carry=start,
            seq_lengths=seq_lengths,
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
            rngs=rngs,
        )
        if not return_carry:
            return found
        last, outputs = found
        if seq_lengths is not None:
            last = jax.tree.map(functools.partial(_padding.final_carry, seq_lengths), last, start)
        if isinstance(initial_carry, StepCarry):
            return last._replace(
                lengths=initial_carry.lengths
            ), outputs  # the next piece has its own
        return last.carry, outputs


def _start(carry: PyTree, batch: tuple[int, ...], lengths: Array | None) -> StepCarry:
    if lengths is not None:
        lengths = _checks.lengths("lengths", lengths, None, batch).astype(jnp.int32)
    return StepCarry(jnp.zeros(batch, jnp.int32), lengths, carry)


def _seen(carry: StepCarry) -> int:
    """Steps of the pieces before, as far as they can be seen."""
    traced = isinstance(carry.step, jax.core.Tracer)
    return 0 if traced else int(np.max(carry.step, initial=0))


def _kept(cell: Any) -> list[nnx.BatchStat]:
    return [v for _, v in nnx.iter_graph(cell) if isinstance(v, nnx.BatchStat)]
