"""Input terms `w_x x_t`: what of them is made and measured for all steps before the scan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax

from normjax.base import Call
from normjax.recurrent._seq_norm import SeqNorm
from normjax.statistics._shapes import widen_half
from normjax.statistics._types import PyTree

# When the input term of a step is projected and when its norm measures it:
# both for all steps before the loop, the projection alone, or both in the loop.
InputSchedule = Literal["before_loop", "measure_in_loop", "in_loop"]


def input_schedule(shape: tuple[int, ...], schedule: InputSchedule | None = None) -> InputSchedule:
    """Choose when the input term of x `[time, batch, features]` is made and measured.

    Several devices, or an accelerator, do at once for all steps what one CPU does better step by
    step: a step fits into its cache, and a sequence does not. A term made before the loop is
    written and read, and so is its gradient, `batch` rows a step; made in the loop it costs the
    gradient of the weights, `features` rows a step, to be added to.

    Args:
        shape: shape of x.
        schedule: the choice, where it is already made; `None` chooses by machine and shape.
    """
    if schedule is not None:
        return schedule
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return "before_loop"
    _, batch, features = shape
    return "in_loop" if features < batch else "measure_in_loop"


class InputTerms(NamedTuple):
    """The input terms of all steps, as far as they are made before the scan; all by place.

    Attributes:
        weights: `[features, blocks * hidden]`, the columns of `w_x`.
        terms: `[time, batch, blocks * hidden]`; `None` where the scan makes it.
        measured: statistics of what is measured before the scan.
    """

    weights: dict[str, jax.Array]
    terms: dict[str, jax.Array | None]
    measured: dict[str, Any]


def input_terms(
    layer: Any,
    params: PyTree,
    state: PyTree,
    x: jax.Array,
    norms: Mapping[str, SeqNorm],
    calls: Mapping[str, Call],
    in_loop: bool = False,
) -> InputTerms:
    """Project and measure the inputs of all steps, as far as that is done before the loop.

    The input term never needs the recurrence: it can be one product for all steps, and one
    set of statistics, in one exchange between devices.
    """
    schedule = "in_loop" if in_loop else input_schedule(x.shape)
    weights: dict[str, jax.Array] = {}
    terms: dict[str, jax.Array | None] = {}
    measured: dict[str, Any] = {}
    for place, (first, last) in layer.input_places.items():
        norm = norms.get(place)
        weight = params["w_x"][:, first * layer.hidden : last * layer.hidden]
        weights[place], terms[place] = weight, None
        if schedule == "in_loop" and (norm is None or norm.stepwise):
            continue
        term = x @ weight  # [time, batch, blocks * hidden]
        if norm is not None:
            args = (params[place], state[place])
            if not norm.stepwise:
                term, measured[place] = norm.sequence(*args, term, calls[place])
            elif schedule == "before_loop":
                # The loop normalizes the same wide term, so that one gradient is rounded.
                term = widen_half(term)
                measured[place] = norm.measure(*args, term, calls[place])
        terms[place] = term
    return InputTerms(weights, terms, measured)


def input_term(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x @ weight`; with one feature a multiplication, which backward computes again."""
    return x * weight if x.shape[-1] == 1 else x @ weight
