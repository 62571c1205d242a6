"""The BN-LSTM with `impl="kernel"`: the recurrence is one program, all else is as in `Recurrent`.

Falls back to the scan for evaluation with running statistics, padding, a `hidden_perturbation`,
`info`, statistics over devices, other dtypes than float32, and sizes that no kernel takes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from normjax._internal import _single
from normjax.base import Call
from normjax.kernels import _registry
from normjax.norms._batch import BatchNorm
from normjax.recurrent._per_step import PerStep
from normjax.recurrent._scan import LayerCall
from normjax.recurrent._seq_norm import SeqNorm
from normjax.recurrent._shared import Shared
from normjax.statistics._types import Moments, PyTree

PLACES = ("norm_h", "norm_c")


def check(layer: Any) -> None:
    """Refuse a layer whose equations are not the kernel's."""
    wrong = [
        f"{place}={norm!r}"
        for place, norm in ((p, getattr(layer, p)) for p in PLACES)
        if not _one_affine(norm)
    ]
    wrong += [] if layer.norm_sum is None else [f"norm_sum={layer.norm_sum!r}"]
    for name in ("zoneout_h", "zoneout_c", "dropout_h", "carry_normalized"):
        if getattr(layer, name):
            wrong.append(f"{name}={getattr(layer, name)}")
    if wrong:
        raise ValueError(
            "impl='kernel' serves an LSTM with batch norms in norm_h and norm_c (per_step or "
            "shared, one affine for all steps), none on the sum, no zoneout, dropout or "
            f'carry_normalized, and this one has {", ".join(wrong)}: write impl="xla"'
        )


def _one_affine(norm: SeqNorm | None) -> bool:
    if not isinstance(norm, PerStep | Shared) or type(norm.norm) is not BatchNorm:
        return False
    whole = norm.norm.axes in (None, (0,), (-2,)) and norm.norm.axis_index_groups is None
    return whole and getattr(norm, "share_params", True)


def supports(x: jax.Array, call: LayerCall, hidden: int) -> bool:
    """Whether the kernel takes x, how the layer is called, and so many units."""
    if x.dtype != jnp.float32 or call.stats != "batch" or call.needs_scan:
        return False
    fits: bool = _registry.load("bn_lstm").fits(x.shape[1], hidden)
    return fits


def run(
    layer: Any,
    params: PyTree,
    state: PyTree,
    x: jax.Array,
    carry: Any,
    call: LayerCall,
) -> tuple[jax.Array, Any, PyTree, dict[str, Any], dict[str, Any]]:
    """Run over x `[time, batch, features]`; return the fields of `Run`, without gates."""
    norms, measured = layer.norms(), {}
    calls = call.of_norms(norms)
    term = x @ params["w_x"]
    if "norm_x" in norms:
        term, measured["norm_x"] = _input_term(
            norms["norm_x"], params["norm_x"], state["norm_x"], term, calls["norm_x"]
        )
    _, batch, width = term.shape
    affine_h, affine_c = params["norm_h"], params["norm_c"]
    hidden = layer.hidden
    for bias in (params["bias"], affine_h.bias):
        term = term if bias is None else term + bias[None, None]
    ones, zeros = jnp.ones((width,)), jnp.zeros((hidden,))
    h, c, stats_h, stats_c = _registry.load("bn_lstm").run(
        term,
        params["w_h"],
        ones if affine_h.scale is None else affine_h.scale.astype(term.dtype),
        ones[:hidden] if affine_c.scale is None else affine_c.scale.astype(term.dtype),
        zeros if affine_c.bias is None else affine_c.bias.astype(term.dtype),
        carry.c,
        carry.h,
        (norms["norm_h"].norm.eps, norms["norm_c"].norm.eps),
    )
    for place, (mean, var) in zip(PLACES, (stats_h, stats_c), strict=True):
        measured[place] = Moments(mean, var, jnp.full(mean.shape, batch, mean.dtype))
        if batch == 1:
            single = Moments(mean[0], var[0], jnp.ones_like(var[0]))
            _single.refuse(
                norms[place].norm, mean[0].shape, single, calls[place], " of each time step"
            )
    state = {
        place: norm.update_state(state[place], measured[place], calls[place])
        for place, norm in norms.items()
    }
    return h, type(carry)(c=c[-1], h=h[-1]), state, measured, {}


def _input_term(
    norm: SeqNorm, params: PyTree, state: PyTree, term: jax.Array, call: Call
) -> tuple[jax.Array, PyTree]:
    """Normalize the input term of all steps; return it and what its norm measured."""
    if not norm.stepwise:
        return norm.sequence(params, state, term, call)
    measured = norm.measure(params, state, term, call)

    def transform(step_inputs: PyTree, measured_t: PyTree, term_t: jax.Array) -> jax.Array:
        return norm.transform_step(params, state, step_inputs, measured_t, term_t, call)

    inputs = norm.per_step_inputs(params, state, term.shape[0])
    y = jax.vmap(transform)(inputs, measured, term)
    return y, measured if norm.norm.stateful else None
