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


def input_schedule(layer: Any, x: jax.Array, calls: Mapping[str, Call]) -> InputSchedule:
    """Choose when the input term of x `[time, batch, features]` is made and measured.

    The layer may say it. If not, the choice depends on x and the call alone, so that a program is
    the same wherever it is traced. Where the batch is split over devices, statistics of all steps
    at once are one exchange. Elsewhere a step is best made in the loop, while it is in cache. A
    term made before the loop is written and read, and so is its gradient, `batch` rows a step; made
    in the loop it costs the gradient of the weights, `features` rows a step, to be added to.
    """
    if layer.input_schedule is not None:
        return layer.input_schedule
    _, batch, features = x.shape
    # By axes of a mesh that are explicit, or by `shard_map` and its like.
    split = jax.typeof(x).sharding.spec[1] is not None
    split |= any(call.axis_name is not None for call in calls.values())
    if split or not isinstance(batch, int):  # or a symbol of an exported program
        return "before_loop"
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
    schedule = "in_loop" if in_loop else input_schedule(layer, x, calls)
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
