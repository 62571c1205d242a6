"""The loop over the clock of segments, for statistics of each step since the last reset."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from normjax._internal import _single
from normjax.recurrent._carry import with_noise
from normjax.recurrent._scan import Step, StepInputs, StepOutputs
from normjax.recurrent._segments import Packing
from normjax.recurrent._seq_norm import SeqNorm
from normjax.statistics._types import PyTree


def goes_by_segments(norms: Iterable[SeqNorm]) -> bool:
    """Whether the loop goes by the clock of the segments; raise if norms disagree about it."""
    clocks = {getattr(norm, "clock", None) for norm in norms} - {None}
    if len(clocks) > 1:
        raise ValueError(
            "the norms of one layer go by one clock, and these by both: write "
            'per_step(..., clock="segment") in all places, or clock="row"'
        )
    return clocks == {"segment"}


def over_segments(
    step: Step, first: PyTree, xs: StepInputs, chunk: int | None, key: jax.Array | None
) -> tuple[PyTree, StepOutputs]:
    """Go all steps of all segments, each at its own clock; return as `Step.over`.

    Args:
        step: the body of the loop; its input terms are made in the loop.
        first: carry of the rows, `[batch, hidden]`.
        xs: inputs of the loop by time; those of zoneout and of the norms are taken by the clock.
        chunk: `remat_steps`.
        key: PRNG key of the noise on carries after a reset, or `None`.
    """
    y_like = xs.x if xs.x is not None else next(t for t in xs.terms.values() if t is not None)
    packing = Packing.of(xs.mask, xs.reset, y_like)
    fresh = first if step.fresh is None else step.fresh
    lanes = packing.stages[0].lanes
    fresh_lanes = packing.lanes_of_rows(fresh, lanes)
    if key is not None:
        fresh_lanes = with_noise(fresh_lanes, step.layer.h0_noise, key)
    cell = packing.start(packing.lanes_of_rows(first, lanes), fresh_lanes)
    batch = y_like.shape[1]
    ends, ys, gates, measured = [], [], [], []
    for stage in packing.stages:
        lanes = stage.lanes
        # Lanes that have ended leave. [batch * lanes, hidden]
        cell = jax.tree.map(
            lambda v, n=lanes: v.reshape(batch, -1, v.shape[-1])[:, :n].reshape(-1, v.shape[-1]),
            cell,
        )
        by_clock = jax.tree.map(lambda v, s=stage: v[s.start : s.stop], (xs.key, xs.norms))
        by_time = packing.pack((xs.x, xs.terms, xs.hidden_perturbation), stage)
        stage_xs = StepInputs(
            x=by_time[0],
            terms=by_time[1],
            mask=packing.mask(stage),
            hidden_perturbation=by_time[2],
            key=by_clock[0],
            norms=by_clock[1],
            measured={},
        )
        dropout = None if step.dropout is None else packing.lanes_of_rows(step.dropout, lanes)
        body = dataclasses.replace(step, dropout=dropout)
        # Late in the longest segment of a single row its value is alone, as in the row itself.
        alone = batch * lanes == 1 < packing.stages[0].lanes
        with _single.allowed() if alone else contextlib.nullcontext():
            cell, outputs = body.over(cell, stage_xs, stage.stop - stage.start, chunk)
        ends.append(cell)
        ys.append(outputs.y)
        gates.append(outputs.gates)
        measured.append(outputs.measured)
    fresh = jax.tree.map(lambda v: v.reshape(batch, -1, v.shape[-1])[:, 0], fresh_lanes)
    return packing.end(ends, first, fresh), StepOutputs(
        packing.unpack(ys),
        jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *measured),
        packing.unpack(gates),
    )
