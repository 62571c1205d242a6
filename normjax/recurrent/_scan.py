"""The scan of a recurrent layer: one step, what the loop reads and writes, what backward keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from normjax._internal._checkpoint_names import ACTIVATIONS, POOLED, STATISTICS
from normjax.base import Call
from normjax.recurrent._base import Gates
from normjax.recurrent._carry import hidden_of, with_hidden, with_noise
from normjax.recurrent._input_terms import input_term
from normjax.recurrent._joined import (
    Stacked,
    join_moments,
    join_vectors,
    split_moments,
)
from normjax.recurrent._newton import Newton
from normjax.recurrent._seq_norm import SeqNorm
from normjax.statistics._types import Array, PyTree

# Backward, a step's products, statistics and values of exp's kin are read back. Masks, differences
# and products of single values are computed again: as many numbers, and hardly any work. That
# halves the memory of a long sequence.
saved_in_step = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable,
    jax.checkpoint_policies.save_only_these_names(ACTIVATIONS, POOLED, STATISTICS),
)
saved_in_chunk = jax.checkpoint_policies.save_only_these_names(POOLED)


@dataclasses.dataclass(frozen=True)
class LayerCall(Call):
    """How a layer runs over one sequence: what `apply` was given, checked and time-major.

    `mask` is `[time, batch, 1]`, True on the steps that count.

    Attributes:
        resets: `[time, batch, 1]`, True where the carry starts again before the step.
        solver: what solves the recurrence in place of a scan.
        lengths: `[batch]`, where the mask is all that they say.
        hidden_perturbation: `[time, batch, hidden]`, added to the hidden state of every step.
        key: PRNG key.
        noise: whether zoneout and dropout draw from it.
        with_info: whether the gates' values of every step are returned.
    """

    hidden_perturbation: Array | None = None
    key: jax.Array | None = None
    noise: bool | None = None
    with_info: bool = False
    resets: jax.Array | None = None
    solver: Newton | None = None
    lengths: Array | None = None

    @property
    def needs_scan(self) -> bool:
        """Whether something is padded, reset, perturbed, reported or split over devices."""
        options = (self.mask, self.resets, self.hidden_perturbation, self.axis_name)
        return self.with_info or any(option is not None for option in options)

    def of_norms(self, norms: Mapping[str, SeqNorm]) -> dict[str, Call]:
        """Calls of the norms, by place: a number of `hyper` goes to the norms that take it."""
        hyper = self.hyper or {}
        return {
            place: Call(
                self.stats,
                self.mask,
                self.axis_name,
                {name: v for name, v in hyper.items() if name in norm.norm.hyper_names},
            )
            for place, norm in norms.items()
        }


class Run(NamedTuple):
    """What a layer makes of one sequence.

    Attributes:
        y: `[time, batch, hidden]`.
        carry: the carry after each sequence's last step.
        state: the next state.
        measured: by place, what each norm that keeps statistics measured.
        gates: by name, `[time, batch, hidden]`, where they are asked for.
    """

    y: jax.Array
    carry: PyTree
    state: dict[str, PyTree]
    measured: dict[str, Any]
    gates: Gates


class StepInputs(NamedTuple):
    """What the loop reads; in the loop of one step, outside of it with a leading axis of time.

    Attributes:
        x: `[batch, features]`, where the step projects it.
        terms: input terms `[batch, blocks * hidden]` by place; `None` where the step makes it.
        mask: `[batch, 1]`.
        hidden_perturbation: `[batch, hidden]`.
        key: PRNG key of zoneout.
        norms: by place, the norm's `per_step_inputs`.
        measured: by place, what was measured before the loop.
        reset: `[batch, 1]`, True where the carry starts again before this step.
        reset_key: PRNG key of the noise on carries that start again.
    """

    x: Any
    terms: dict[str, jax.Array | None]
    mask: Any
    hidden_perturbation: Any
    key: jax.Array | None
    norms: dict[str, PyTree]
    measured: dict[str, PyTree]
    reset: Any = None
    reset_key: jax.Array | None = None


class StepOutputs(NamedTuple):
    """What the loop writes.

    Attributes:
        y: `[batch, hidden]`.
        measured: by place, what was measured in the loop; in the loop it is `Stacked`.
        gates: by name, `[batch, hidden]`, where they are asked for.
    """

    y: jax.Array
    measured: dict[str, PyTree]
    gates: Gates


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """The body of the loop.

    Attributes:
        layer: the `Recurrent` whose cell this is.
        params: its parameters, weights in the dtype of the computation.
        state: its state.
        norms: by place, the norms that act in the loop.
        calls: by place, how they are called; the mask of a step comes with its inputs.
        weights: by place on the input, the columns of `w_x`.
        dropout: `[batch, hidden]`, factor of the hidden state on its way to the weights.
        with_info: whether the gates' values are returned.
        fresh: the cell's carry after a reset, before noise; `None` where nothing is reset.
        solver: what solves the recurrence in place of a scan.
    """

    layer: Any
    params: PyTree
    state: PyTree
    norms: dict[str, SeqNorm]
    calls: dict[str, Call]
    weights: dict[str, jax.Array]
    dropout: jax.Array | None
    with_info: bool
    fresh: PyTree = None
    solver: Newton | None = None

    def __call__(self, before: PyTree, inputs: StepInputs) -> tuple[PyTree, StepOutputs]:
        """Go one step from the cell's carry."""
        measured: dict[str, PyTree] = {}
        if inputs.reset is not None:
            fresh = self.fresh
            if inputs.reset_key is not None:
                fresh = with_noise(fresh, self.layer.h0_noise, inputs.reset_key)
            before = jax.tree.map(lambda new, old: jnp.where(inputs.reset, new, old), fresh, before)

        def norm(place: str, value: jax.Array) -> jax.Array:
            if place not in self.norms:
                return value
            norm, call = self.norms[place], self.calls[place]
            if inputs.mask is not None:
                call = dataclasses.replace(call, mask=inputs.mask)
            args = self.params[place], self.state[place], inputs.norms[place]
            if place in inputs.measured:
                y = norm.transform_step(*args, inputs.measured[place], value, call)
                return y.astype(self.params["w_x"].dtype)  # the term may be wider
            value, measured[place] = norm.normalize_step(*args, value, call)
            return value

        # The input term, each norm over its own blocks. [batch, gates * hidden]
        terms = [
            norm(place, input_term(inputs.x, self.weights[place]) if term is None else term)
            for place, term in inputs.terms.items()
        ]
        term = terms[0] if len(terms) == 1 else jnp.concatenate(terms, axis=-1)

        # The recurrence. [batch, hidden]
        h = hidden_of(before)
        h = h if self.dropout is None else h * self.dropout
        cell, gates = self.layer.cell(self.params, norm, term, h, before)
        cell = self.layer.zoneout(inputs.key, before, cell)
        if inputs.hidden_perturbation is not None:
            cell = with_hidden(cell, hidden_of(cell) + inputs.hidden_perturbation)

        # At a step that does not count the carry holds and the output is 0.
        y = hidden_of(cell)
        if inputs.mask is not None:
            cell = jax.tree.map(lambda new, old: jnp.where(inputs.mask, new, old), cell, before)
            y = jnp.where(inputs.mask, y, 0)

        return cell, StepOutputs(y, measured, gates if self.with_info else {})

    def over(
        self, start: PyTree, inputs: StepInputs, steps: int, chunk: int | None
    ) -> tuple[PyTree, StepOutputs]:
        """Go all steps; return the cell's carry and the outputs of every step."""
        if self.solver is not None:
            return self.solver.scan(self.__call__, start, inputs)
        read = {name: v for name, v in self.params.items() if name not in ("w_x", "carry")}
        weights, split = join_vectors((read, self.weights))
        inputs = inputs._replace(measured=join_moments(inputs.measured, axis=1))

        def go(cell: PyTree, inputs: StepInputs) -> tuple[PyTree, StepOutputs]:
            params, columns = split(weights)
            step = dataclasses.replace(self, params=self.params | params, weights=columns)
            cell, outputs = step(cell, inputs._replace(measured=split_moments(inputs.measured)))
            # A count of all values is a constant of the trace (see `value_counts`), and is not
            # written once a step.
            stacked = {place: Stacked.of(found) for place, found in outputs.measured.items()}
            return cell, outputs._replace(measured=stacked)

        body = jax.checkpoint(go, prevent_cse=False, policy=saved_in_step)
        end, outputs = chunked_scan(body, start, inputs, steps, chunk)
        measured = {place: stacked.of_steps(steps) for place, stacked in outputs.measured.items()}
        return end, outputs._replace(measured=measured)


def chunked_scan(
    step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    xs: PyTree,
    steps: int,
    chunk: int | None,
) -> tuple[PyTree, PyTree]:
    """Scan; with `chunk`, what backward needs of a step is kept for that many steps at a time.

    Backward, each chunk is run again from the carry that it began with. Memory goes as
    `steps / chunk + chunk` instead of `steps`, for one more pass forward.
    """
    if chunk is None or chunk >= steps:
        return lax.scan(step, carry, xs)

    def scan_chunk(carry: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        return lax.scan(step, carry, xs)

    scan_chunk = jax.checkpoint(scan_chunk, prevent_cse=False, policy=saved_in_chunk)
    whole = steps - steps % chunk
    # [time, ...] to [chunks, chunk, ...]; the steps that are left make a shorter chunk.
    chunks = jax.tree.map(lambda v: v[:whole].reshape(-1, chunk, *v.shape[1:]), xs)
    carry, ys = lax.scan(scan_chunk, carry, chunks)
    ys = jax.tree.map(lambda v: v.reshape(whole, *v.shape[2:]), ys)
    if whole < steps:
        carry, rest = scan_chunk(carry, jax.tree.map(lambda v: v[whole:], xs))
        ys = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, rest)
    return carry, ys
