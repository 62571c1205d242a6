"""Flax's RNN with statistics per time step, for any cell that holds norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import DenyList

from normjax._flax import _padding, _semantics, _sequences
from normjax._flax._variables import FILLED, separate
from normjax._internal import _checks
from normjax.linen._lifted import StaticArguments
from normjax.linen._wrap import COLLECTION, renew
from normjax.recurrent import _per_step
from normjax.state import _names
from normjax.statistics._types import Array, PyTree, is_accumulator


class RNN(StaticArguments, nn.RNN):
    r"""Any Flax cell over a sequence, as `flax.linen.RNN`, with statistics of each time step.

    $$\hat x_t = \frac{x_t - \mu_t}{\sqrt{\sigma_t^2 + \epsilon}}, \qquad
      t > T_{\max}:\; \mu_t = \mu_{T_{\max}},\; \sigma_t = \sigma_{T_{\max}}$$

    The cell may hold `normjax.linen.Normalize`, the drop-in `BatchNorm`, or anything else that
    keeps `batch_stats`: these get a leading axis of `max_steps`, parameters are shared over
    time. Padding (`seq_lengths`) is excluded from the statistics of our norms with no change to
    the cell; Flax's own `BatchNorm` includes it. A cell without `batch_stats` gives the numbers
    of Flax's RNN, from the same parameters.

    Init makes the statistics, training moves them with `mutable=["batch_stats"]`, evaluation
    needs no `mutable`, and normalizes a step that has no data with the statistics of the last
    step before it that has some. (Flax's own `BatchNorm` does so only without `mutable`.) The
    norms inside the cell get their mode as usual: from their fields, or from attributes of the
    cell.

    Attributes:
        max_steps: number of steps with statistics of their own; by default the length of the
            sequence at init. Sequences may be shorter or longer.
        beyond: steps past `max_steps`: `"last"` normalizes them with the last statistics where
            these normalize, and in training leaves them alone; `"error"` refuses longer
            sequences. Further attributes: Flax's. `variable_axes`, `variable_broadcast` and
            `variable_carry` are for collections other than `batch_stats`.

    Example:
        >>> import flax.linen, jax, jax.numpy as jnp, normjax as nj
        >>> from normjax import linen
        >>> class Cell(flax.linen.GRUCell):
        ...     stats: str = "running"
        ...     @flax.linen.compact
        ...     def __call__(self, carry, x):
        ...         x = linen.Normalize(nj.batch_norm(decay=0.0), stats=self.stats)(x)
        ...         return flax.linen.GRUCell(self.features)(carry, x)
        >>> x = jnp.arange(6.0).reshape(2, 3, 1)  # [batch, time, features]
        >>> variables = linen.RNN(Cell(4)).init(jax.random.key(0), x)
        >>> train = linen.RNN(Cell(4, stats="batch"))
        >>> y, new = train.apply(
        ...     variables, x, seq_lengths=jnp.array([3, 2]), mutable=["batch_stats"])
        >>> new["batch_stats"]["cell"]["Normalize_0"]["mean"].ravel().tolist()
        [1.5, 2.5, 2.0]
        >>> linen.RNN(Cell(4)).apply({**variables, **new}, jnp.ones((1, 7, 1))).shape
        (1, 7, 4)

    Reference:
        Cooijmans, Ballas, Laurent, Gulcehre, Courville, "Recurrent Batch Normalization", 2017.
    """

    max_steps: int | None = None
    beyond: str = "last"

    def __post_init__(self) -> None:
        """Refuse fields outside their ranges, and filters that take `batch_stats`."""
        if self.max_steps is not None:
            _checks.positive_int("max_steps", self.max_steps)
        _checks.one_of("beyond", self.beyond, ("last", "error"))
        filters = (*self.variable_axes, self.variable_broadcast, self.variable_carry)
        if any(_selects(f, COLLECTION) for f in filters):
            raise ValueError(
                f"normjax.linen.RNN keeps {COLLECTION!r} for each step itself: leave it out of "
                "variable_axes, variable_broadcast and variable_carry"
            )
        super().__post_init__()

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: PyTree | None = None,
        init_key: jax.Array | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        resets: Array | None = None,
        mask: Array | None = None,
    ) -> Any:
        """Run the cell over a sequence.

        Args:
            inputs: `[*batch, time, *features]`, or `[time, *batch, *features]` if time-major.
            initial_carry: start of the carry; by default the cell's `initialize_carry`.
            init_key: key of `initialize_carry`, by default `jax.random.key(0)`.
            seq_lengths: `[*batch]`, integer number of steps of each sequence. Outputs past it
                are not zeroed, as in Flax.
            return_carry: also return the carry after the last step of each sequence.
            time_major: overrides the attribute, as do `return_carry` and the next two.
            reverse: run from the last step to the first; padding stays at the end. The first
                statistics are then those of the last step.
            keep_order: return outputs of a reversed run in the order of the inputs.
            resets: `[*batch, time]` in the layout of the inputs, boolean: True where the carry
                starts again before the step, from the cell's `initialize_carry`. A step's number
                still is that in the row.
            mask: `[*batch, time]`, boolean: the other steps are skipped. They enter no statistic,
                hold the carry and put out 0, as does the padding then.

        Returns:
            Outputs of every step, or `(carry, outputs)` with `return_carry`.

        Raises:
            TypeError: `seq_lengths` that are no integers, `resets` or `mask` not boolean.
            ValueError: a sequence longer than `max_steps` where `beyond="error"`; statistics
                of another number of steps than the module's; or `seq_lengths` of another shape
                than the batch, or known (not traced) to lie outside 0 to the steps.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order

        inputs = jnp.asarray(inputs)
        layout = _sequences.layout(inputs.shape, self.cell.num_feature_axes, time_major)
        lengths = None if seq_lengths is None else layout.check_lengths(seq_lengths)
        flags = layout.flags(lengths, mask, resets, reverse)
        fresh = None
        if initial_carry is None or resets is not None:
            key = jax.random.key(0) if init_key is None else init_key
            fresh = self.cell.initialize_carry(key, layout.step_shape)
        initial_carry = fresh if initial_carry is None else initial_carry

        if reverse:
            inputs = layout.reverse(inputs, lengths)
        # The last carry of a shorter sequence is found among those of all steps.
        all_carries = return_carry and lengths is not None and not flags.holds
        carry, outputs = self._scan(layout, (initial_carry, fresh), inputs, flags, all_carries)
        if all_carries:
            assert lengths is not None
            carry = _sequences.last_carry(carry, initial_carry, lengths)
        if reverse and keep_order:
            outputs = jax.tree.map(lambda y: layout.reverse(y, lengths), outputs)
        return (carry, outputs) if return_carry else outputs

    def _scan(
        self,
        layout: _sequences.Layout,
        carries: tuple[PyTree, PyTree],
        inputs: Array,
        flags: _sequences.StepFlags,
        all_carries: bool,
    ) -> tuple[PyTree, PyTree]:
        """Return `(carry, outputs)`: the last carry, or with `all_carries` that of every step.

        `carries` are the first one, and that of a reset.
        """
        time_axis = layout.time_axis
        start, fresh = carries

        def step(cell: nn.Module, carry: PyTree, x: Array, counts: Any, reset: Any) -> Any:
            if reset is not None:
                carry = _sequences.where(reset, fresh, carry)
            with _padding.step(counts):
                after, y = cell(carry, x)
            if flags.holds:
                after = _sequences.where(counts, after, carry)
                y = _sequences.where(counts, y, jax.tree.map(jnp.zeros_like, y))
            return after, ((after, y) if all_carries else y)

        def run(cell: nn.Module, carry: PyTree, x: Array, counts: Any, resets: Any) -> Any:
            scan = nn.scan(
                step,
                in_axes=(time_axis, 0, 0),
                out_axes=(0, time_axis) if all_carries else time_axis,
                unroll=self.unroll,
                variable_axes={**self.variable_axes, COLLECTION: 0},
                variable_broadcast=self.variable_broadcast,
                variable_carry=self.variable_carry,
                split_rngs=self.split_rngs,
            )
            return scan(cell, carry, x, counts, resets)

        statistics = _StepStatistics(
            self.max_steps, self.beyond, layout.steps, not self.is_mutable_collection(COLLECTION)
        )
        mapped = nn.map_variables(run, COLLECTION, statistics.read, statistics.write, mutable=True)
        last, outputs = mapped(self.cell, start, inputs, flags.counts, flags.resets)
        return outputs if all_carries else (last, outputs)


class _StepStatistics:
    """Gives a scan of `steps` the statistics of each of its steps, and stores them again."""

    def __init__(self, max_steps: int | None, beyond: str, steps: int, evaluating: bool):
        self.max_steps = max_steps
        self.evaluating = evaluating
        self.beyond = beyond
        self.steps = steps
        self.stored: dict[str, PyTree] = {}
        self.given: dict[str, PyTree] = {}

    def read(self, variables: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
        """Statistics `[max_steps, ...]` as `[steps, ...]`, the last ones repeated past the end."""
        # A scan would refuse Flax's metadata, such as names of axes, or add an axis to it.
        self.given = dict(variables)
        self.stored = variables = nn.meta.unbox(self.given)
        for leaf in jax.tree.leaves(self.stored):
            stored_steps = jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0
            if self.max_steps not in (None, stored_steps):
                raise ValueError(
                    f"the variables have statistics of {stored_steps} steps and this RNN keeps "
                    f"{self.max_steps}: write max_steps={stored_steps}"
                )
            _checks.max_steps(self.steps, stored_steps, self.beyond)
        # Where nothing can be written every norm is in mode "running", Flax's own among them.
        fill = _per_step.fill_steps if self.evaluating else _beside
        return _per_step.resize(fill(variables), self.steps)

    def write(self, variables: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
        """Statistics `[steps, ...]` as `[max_steps, ...]`; a step that did not run is unchanged."""
        new, stored = separate(variables)[0], separate(self.stored)[0]
        structure: Any = jax.tree.structure(stored)
        if jax.tree.structure(new) == structure:
            return renew(self.given, jax.tree.map(_write_steps, stored, new))
        return _per_step.resize(new, self.max_steps or self.steps)  # init made them


def _beside(variables: Mapping[str, PyTree]) -> PyTree:
    """Put what mode `"running"` reads beside each norm's statistics, which training moves."""
    own, read = separate(variables)  # `read` is that of a loop around this one
    filled = _per_step.fill_steps(own if read is None else read)

    def add(node: PyTree, filled: PyTree) -> PyTree:
        if not isinstance(node, Mapping):
            return node
        stats = _names.read_statistics(node)
        if stats is None:
            return {name: add(value, filled[name]) for name, value in node.items()}
        # Those of a loop around this one are running statistics already.
        running = filled["running"] if is_accumulator(stats) and "running" in filled else filled
        return {**node, FILLED: running}

    return add(own, filled)


def _write_steps(stored: Array, new: Array) -> jax.Array:
    """Replace the first steps of `stored`; those of `new` past its end change nothing."""
    n = min(stored.shape[0], new.shape[0])
    wide = _semantics.promote(stored, new)  # Flax lets a float64 batch widen the statistics
    return jnp.concatenate([jnp.asarray(new[:n], wide), jnp.asarray(stored[n:], wide)])


def _selects(collections: Any, name: str) -> bool:
    """Whether one of Flax's filters of collections takes the collection `name`."""
    if isinstance(collections, DenyList):
        return not _selects(collections.deny, name)
    if isinstance(collections, bool):
        return collections
    return name == collections if isinstance(collections, str) else name in collections
