"""Statistics per time step for any NNX cell, inside Flax's RNN or ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import spmd
from jax import lax

from normjax._flax import _padding, _sequences
from normjax._flax._variables import FILLED
from normjax._internal import _checks
from normjax._internal._exportable import exportable
from normjax.nnx._population import OURS
from normjax.nnx._wrap import FilledState, statistics
from normjax.recurrent import _per_step
from normjax.statistics._types import Array, PyTree


@exportable
class StepCarry(NamedTuple):
    """Carry of a `PerStepCell`: that of the cell, with the number of steps done.

    Attributes:
        step: `[*batch]`, int32, number of steps done.
        lengths: `[*batch]`, int32, number of steps of each sequence, counted from step 0; those
            past it are padding. `None` where nothing is padding.
        carry: carry of the cell.
    """

    step: Array
    lengths: Array | None
    carry: PyTree


class _Told(NamedTuple):
    """What our RNN tells its cell of each step, which Flax's scan hands it nothing of.

    Attributes:
        flags: of each step.
        fresh: carry of the cell after a reset.
        start: number of the first step.
    """

    flags: _sequences.StepFlags
    fresh: PyTree
    start: Array


_told: ContextVar[_Told | None] = ContextVar("told", default=None)


class PerStepCell(nnx.RNNCellBase):
    r"""A cell whose norms keep statistics of each time step, for `flax.nnx.RNN`.

    $$\hat x_t = \frac{x_t - \mu_t}{\sqrt{\sigma_t^2 + \epsilon}}, \qquad
      t > T_{\max}:\; \mu_t = \mu_{T_{\max}},\; \sigma_t = \sigma_{T_{\max}}$$

    Every `nnx.BatchStat` of the cell gets a leading axis of `max_steps`; parameters are shared
    over time. The step travels in the carry, so a sequence may be run in pieces, and may be
    shorter or longer than `max_steps`: past it the last statistics normalize, and training
    leaves them alone. `train()` and `eval()` set the mode as usual. In evaluation our norms
    normalize a step that has no data with the statistics of the last step before it that has some;
    Flax's own `BatchNorm` does so with mean 0 and variance 1.

    Flax's RNN does not pass `seq_lengths` to its cell, and has neither `resets` nor a `mask`:
    `normjax.nnx.RNN` takes all three. Inside Flax's, to exclude padding from the statistics of our
    norms, give the lengths with the initial carry,
    `initial_carry=cell.initialize_carry(shape, rngs, lengths=n)`.

    Args:
        cell: the cell; its statistics become per-step, so it must no longer be called directly.
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
        for variable in _statistics(cell):
            variable.set_value(
                jax.tree.map(
                    lambda leaf: jnp.repeat(leaf[None], max_steps, axis=0), variable.get_value()
                )
            )
            # Names of mesh axes in Flax's metadata move with the axes that they are of.
            spmd.add_axis(variable, 0, {nnx.PARTITION_NAME: None})

    def __call__(self, carry: Any, inputs: Array) -> tuple[StepCarry, Any]:
        """Run one step.

        Args:
            carry: `StepCarry`, as `initialize_carry` or the last step returned it.
            inputs: those of the cell, for one step.

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
        index = jnp.minimum(step, self.max_steps - 1)
        variables = _statistics(self.cell)
        all_steps = [v.get_value() for v in variables]  # [max_steps, ...] each
        before = jax.tree.map(
            lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), all_steps
        )
        valid = None
        if carry.lengths is not None:
            # The step that is run, and not `carry.step`: Flax gives each sequence the carry of
            # its own end back, so that in the next piece those of `carry` differ.
            valid = jnp.asarray(step < carry.lengths)
        told, old = _told.get(), carry.carry
        if told is not None:
            counts, reset = (
                None if f is None else lax.dynamic_index_in_dim(f, step - told.start, 0, False)
                for f in told.flags[:2]
            )
            if counts is not None:
                valid = counts if valid is None else counts & valid
            old = old if reset is None else _sequences.where(reset, told.fresh, old)
        outer = _told.set(None)  # an RNN inside the cell has steps of its own
        try:
            with _filled(self.cell, index), _padding.step(valid):
                _set_values(variables, before)
                inner, y = self.cell(old, inputs)
            after = [v.get_value() for v in variables]
        finally:
            _told.reset(outer)
            _set_values(variables, all_steps)
        if told is not None and told.flags.holds:
            assert valid is not None
            inner = _sequences.where(valid, inner, old)
            y = _sequences.where(valid, y, jax.tree.map(jnp.zeros_like, y))

        def write(all_steps: Array, before: Array, after: Array) -> Array:
            if after is before:  # evaluation writes nothing
                return all_steps
            after = jnp.where(step < self.max_steps, after.astype(before.dtype), before)
            return lax.dynamic_update_index_in_dim(all_steps, after, index, 0)

        _set_values(variables, jax.tree.map(write, all_steps, before, after))
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
            rngs: random keys, of the cell's `initialize_carry`.
            carry_init: initializer, of the cell's `initialize_carry`.
            lengths: `[*batch]`, number of steps of each sequence; the rest is padding.

        Returns:
            A `StepCarry`.
        """
        options = {} if carry_init is None else {"carry_init": carry_init}
        inner = self.cell.initialize_carry(input_shape, rngs, **options)
        return _first_carry(inner, input_shape[: len(input_shape) - self.num_feature_axes], lengths)

    @property
    def num_feature_axes(self) -> int:
        """Number of feature axes of the cell."""
        return self.cell.num_feature_axes


class RNN(nnx.RNN):
    """Any NNX cell over a sequence, as `flax.nnx.RNN`, with statistics of each time step.

    Flax's RNN around a `PerStepCell`: every `nnx.BatchStat` of the cell gets a leading axis of
    `max_steps`, and parameters are shared over time. Padding (`seq_lengths`) is excluded from the
    statistics of our norms with no change to the cell; Flax's own `BatchNorm` includes it.
    Carries are those of the cell alone; given a `StepCarry`, it returns one.

    Args:
        cell: the cell, or a `PerStepCell`.
        max_steps: number of steps with statistics of their own; not for a `PerStepCell`.
        beyond: sequences longer than `max_steps`: `"last"` uses the last statistics there,
            `"error"` refuses them, with the steps of earlier pieces added where these are known
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
        Cooijmans, Ballas, Laurent, Gulcehre, Courville, "Recurrent Batch Normalization", 2017.
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
        resets: Array | None = None,
        mask: Array | None = None,
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
            time_major: overrides that of the constructor, as do `return_carry` and the next two.
            reverse: run from the last step to the first; padding stays at the end.
            keep_order: return outputs of a reversed run in the order of the inputs.
            rngs: random keys of `initialize_carry`.
            resets: `[*batch, time]` in the layout of the inputs, boolean: True where the carry
                starts again before the step, from the cell's `initialize_carry`. A step's number
                still is that in the row.
            mask: `[*batch, time]`, boolean: the other steps are skipped. They enter no statistic,
                hold the carry and put out 0, as does the padding then.

        Returns:
            Outputs of every step, or `(carry, outputs)` with `return_carry`.

        Raises:
            TypeError: `seq_lengths` that are no integers, `resets` or `mask` not boolean.
            ValueError: a sequence longer than `max_steps` where `beyond="error"`; `seq_lengths`
                of another shape than the batch, or known (not traced) to lie outside 0 to the
                steps.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        inputs = jnp.asarray(inputs)
        layout = _sequences.layout(inputs.shape, self.cell.num_feature_axes, time_major)
        if self.beyond == "error":
            done = _known_steps(initial_carry) if isinstance(initial_carry, StepCarry) else 0
            _checks.max_steps(done + layout.steps, self.cell.max_steps, self.beyond)
        lengths = None if seq_lengths is None else layout.check_lengths(seq_lengths)
        initial = self._initial_carry(initial_carry, layout, lengths, rngs)
        told = None
        if resets is not None or mask is not None:
            turned = self.reverse if reverse is None else reverse
            flags = layout.flags(lengths, mask, resets, turned)
            fresh = initial.carry
            if initial_carry is not None:
                fresh = self._initial_carry(None, layout, None, rngs).carry
            told = _Told(flags, fresh, jnp.max(initial.step, initial=0))
        outer = _told.set(told)
        try:
            result = super().__call__(
                inputs,
                initial_carry=initial,
                seq_lengths=lengths,
                return_carry=return_carry,
                time_major=time_major,
                reverse=reverse,
                keep_order=keep_order,
                rngs=rngs,
            )
        finally:
            _told.reset(outer)
        if not return_carry:
            return result
        last, outputs = result
        if lengths is not None:
            last = _sequences.final_carry(last, initial, lengths)
        if isinstance(initial_carry, StepCarry):
            # The lengths of this piece are not those of the next.
            return last._replace(lengths=initial_carry.lengths), outputs
        return last.carry, outputs

    def _initial_carry(
        self, carry: PyTree | None, layout: _sequences.Layout, lengths: Array | None, rngs: Any
    ) -> StepCarry:
        """The first carry of the scan: one to go on from, the cell's, or a new one."""
        if isinstance(carry, StepCarry):
            if lengths is None:
                return carry
            done = jnp.max(carry.step, initial=0)
            return carry._replace(lengths=done + lengths.astype(jnp.int32))
        if carry is not None:
            return _first_carry(carry, layout.batch_shape, lengths)
        streams = self.rngs if rngs is None else rngs
        if isinstance(streams, nnx.Rngs):
            streams = streams.carry.fork()
        return self.cell.initialize_carry(layout.step_shape, streams, lengths=lengths)


def _first_carry(carry: PyTree, batch: tuple[int, ...], lengths: Array | None) -> StepCarry:
    if lengths is not None:
        lengths = _checks.lengths("lengths", lengths, None, batch).astype(jnp.int32)
    return StepCarry(jnp.zeros(batch, jnp.int32), lengths, carry)


def _known_steps(carry: StepCarry) -> int:
    """Steps of the pieces before, where their number is not traced."""
    traced = isinstance(carry.step, jax.core.Tracer)
    return 0 if traced else int(np.max(carry.step, initial=0))


@contextlib.contextmanager
def _filled(cell: Any, step: Array) -> Iterator[None]:
    """Give each norm of ours what mode `"running"` reads at a step, beside its statistics."""
    before = []
    for _, node in nnx.iter_graph(cell):
        if isinstance(node, OURS):
            outer = getattr(node, FILLED, None)  # that of a cell around this one
            state = statistics(node) if outer is None else outer.get_value()
            if jax.tree.leaves(state):
                before.append((node, outer, _per_step.filled_step(state, step)))
    try:
        for node, _, state in before:
            setattr(node, FILLED, FilledState(state))
        yield
    finally:
        for node, outer, _ in before:
            if outer is not None:
                setattr(node, FILLED, outer)
            elif hasattr(node, FILLED):
                delattr(node, FILLED)


def _statistics(cell: Any) -> list[nnx.BatchStat]:
    return [v for _, v in nnx.iter_graph(cell) if isinstance(v, nnx.BatchStat)]


def _set_values(variables: list[nnx.BatchStat], values: list[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.set_value(value)
