"""Flax's RNN with statistics per time step, for any cell that holds norms."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import in_filter
from flax.linen.recurrent import flip_sequences

from normjax._flax import _padding, _semantics
from normjax._internal import _checks
from normjax.linen._wrap import COLLECTION
from normjax.recurrent import _per_step
from normjax.statistics._types import Array, PyTree


class RNN(nn.RNN):
    r"""Any Flax cell over a sequence, as `flax.linen.RNN`, with statistics of each time step.

    $$\hat x_t = \frac{x_t - \mu_t}{\sqrt{\sigma_t^2 + \epsilon}}, \qquad
      t > T_{\max}:\; \mu_t = \mu_{T_{\max}},\; \sigma_t = \sigma_{T_{\max}}$$

    The cell may hold `normjax.linen.Normalize`, the drop-in `BatchNorm`, or anything else that
    keeps `batch_stats`: these get a leading axis of `max_steps`, parameters are shared over
    time. Padding (`seq_lengths`) enters no statistic of our norms, without a word in the cell;
    Flax's own `BatchNorm` is not told of it. A cell without `batch_stats` gives the numbers of
    Flax's RNN, from the same parameters.

    Init makes the statistics, training moves them with `mutable=["batch_stats"]`, evaluation
    needs no `mutable`. The mode is given to the norms inside the cell, as ever: by its fields,
    or by attributes of the cell.

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
        """Refuse fields that cannot be meant."""
        if self.max_steps is not None:
            _checks.positive_int("max_steps", self.max_steps)
        _checks.one_of("beyond", self.beyond, ("last", "error"))
        filters = (*self.variable_axes, self.variable_broadcast, self.variable_carry)
        if any(in_filter(f, COLLECTION) for f in filters):
            raise ValueError(
                f"normjax.linen.RNN keeps {COLLECTION!r} for each step by itself: leave it out of "
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
    ) -> Any:
        """Run the cell over a sequence.

        Args:
            inputs: `[*batch, time, *features]`, or `[time, *batch, *features]` if time-major.
            initial_carry: start of the carry; by default the cell's `initialize_carry`.
            init_key: key of `initialize_carry`, by default `jax.random.key(0)`.
            seq_lengths: `[*batch]`, integer number of steps of each sequence. Outputs past it
                are not zeroed, as in Flax.
            return_carry: also return the carry after the last step of each sequence.
            time_major: as the attribute, which it overrides; likewise the others.
            reverse: run from the last step to the first; padding stays at the end. The first
                statistics are then those of the last step.
            keep_order: return outputs of a reversed run in the order of the inputs.

        Returns:
            Outputs of every step, or `(carry, outputs)` with `return_carry`.

        Raises:
            TypeError: `seq_lengths` that are no integers.
            ValueError: a sequence longer than `max_steps` where `beyond="error"`; statistics
                of another number of steps than the module's; or `seq_lengths` of another shape
                than the batch, or that can be seen (not traced) outside 0 to the steps.
        """
        if return_carry is None:
            return_carry = self.return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order

        inputs = jnp.asarray(inputs)
        features = self.cell.num_feature_axes
        time = 0 if time_major else inputs.ndim - features - 1
        shape = inputs.shape[:time] + inputs.shape[time + 1 :]
        steps, batch = inputs.shape[time], shape[: len(shape) - features]
        valid = None
        if seq_lengths is not None:
            seq_lengths = _checks.lengths("seq_lengths", seq_lengths, steps, batch)
            seq_lengths = seq_lengths.astype(jnp.result_type(int))
            at = jnp.arange(steps).reshape((steps,) + (1,) * len(batch))
            valid = at < seq_lengths[None]
        flip = functools.partial(
            flip_sequences,
            seq_lengths=seq_lengths,
            num_batch_dims=len(batch),
            time_major=time_major,
        )
        if reverse:
            inputs = flip(inputs)
        if initial_carry is None:
            key = jax.random.key(0) if init_key is None else init_key
            initial_carry = self.cell.initialize_carry(key, shape)

        every = seq_lengths is not None and return_carry

        def step(cell: nn.Module, carry: PyTree, x: Array, valid: jax.Array | None) -> Any:
            with _padding.step(valid):
                carry, y = cell(carry, x)
            return carry, ((carry, y) if every else y)

        def run(cell: nn.Module, carry: PyTree, x: Array, valid: jax.Array | None) -> Any:
            scan = nn.scan(
                step,
                in_axes=(time, 0),
                out_axes=(0, time) if every else time,
                unroll=self.unroll,
                variable_axes={**self.variable_axes, COLLECTION: 0},
                variable_broadcast=self.variable_broadcast,
                variable_carry=self.variable_carry,
                split_rngs=self.split_rngs,
            )
            return scan(cell, carry, x, valid)

        kept: dict[str, PyTree] = {}

        def unroll(variables: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
            kept.update(variables)
            self._check(kept, steps)
            return _per_step.resize(variables, steps)

        def commit(variables: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
            shape: Any = jax.tree.structure(kept)
            if jax.tree.structure(dict(variables)) == shape:
                return jax.tree.map(_overwrite, kept, dict(variables))
            return _per_step.resize(variables, self.max_steps or steps)

        lifted = nn.map_variables(run, COLLECTION, unroll, commit, mutable=True)
        carry, outputs = lifted(self.cell, initial_carry, inputs, valid)
        if every:
            assert seq_lengths is not None
            lengths, (carries, outputs) = seq_lengths, outputs
            carry = jax.tree.map(
                lambda every, first: _last(every, first, lengths), carries, initial_carry
            )
        if reverse and keep_order:
            outputs = jax.tree.map(flip, outputs)
        return (carry, outputs) if return_carry else outputs

    def _check(self, kept: PyTree, steps: int) -> None:
        for leaf in jax.tree.leaves(kept):
            own = jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0
            if self.max_steps is not None and own != self.max_steps:
                raise ValueError(
                    f"the variables have statistics of {own} steps and this RNN keeps "
                    f"{self.max_steps}: write max_steps={own}"
                )
            _checks.max_steps(steps, own, self.beyond)


def _overwrite(kept: Array, moved: Array) -> jax.Array:
    """`kept` with those of its steps that ran replaced; those past its end change nothing."""
    n = min(kept.shape[0], moved.shape[0])
    wide = _semantics.promoted(kept, moved)  # Flax lets a float64 batch widen what is kept
    return jnp.concatenate([jnp.asarray(moved[:n], wide), jnp.asarray(kept[n:], wide)])


def _last(carries: Array, first: Array, lengths: Array) -> jax.Array:
    """The carry after the last step of each sequence, `carries` being `[time, *batch, ...]`."""
    beyond = (1,) * (carries.ndim - 1 - lengths.ndim)
    at = jnp.maximum(lengths - 1, 0).reshape((1, *lengths.shape, *beyond))
    return _padding.final_carry(lengths, jnp.take_along_axis(carries, at, axis=0)[0], first)
