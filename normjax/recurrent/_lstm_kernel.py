"""The BN-LSTM with `impl="kernel"`: the recurrence is one program, all else is as in `_layer`.

Not served, and gone the plain way: evaluation with running statistics, padding, a
hidden_perturbation, `look`, statistics over devices, other dtypes than float32, and sizes that a
chip does not hold.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from normjax.norms._batch import BatchNorm
from normjax.recurrent._per_step import PerStep
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


def supports(x: jax.Array, hidden: int) -> bool:
    """Whether the kernel takes x, of an LSTM with so many units."""
    from normjax.kernels import _bn_lstm

    return x.dtype == jnp.float32 and _bn_lstm.fits(x.shape[1], hidden)


def run(
    layer: Any, params: PyTree, state: PyTree, x: jax.Array, carry: Any, how: dict[str, Any]
) -> tuple[jax.Array, Any, PyTree, tuple[dict[str, Any], dict[str, Any]]]:
    """Run over x `[time, batch, features]`; returns what `Recurrent._run` does."""
    from normjax.kernels import _bn_lstm

    norms, measured = layer.norms(), {}
    term = x @ params["w_x"]
    if "norm_x" in norms:
        term, measured["norm_x"] = _input(
            norms["norm_x"], params["norm_x"], state["norm_x"], term, how["norm_x"]
        )
    _, batch, width = term.shape
    at_h, at_c = params["norm_h"], params["norm_c"]
    hidden = layer.hidden
    for bias in (params["bias"], at_h.bias):
        term = term if bias is None else term + bias[None, None]
    ones, zeros = jnp.ones((width,)), jnp.zeros((hidden,))
    h, c, of_h, of_c = _bn_lstm.run(
        term,
        params["w_h"],
        ones if at_h.scale is None else at_h.scale.astype(term.dtype),
        ones[:hidden] if at_c.scale is None else at_c.scale.astype(term.dtype),
        zeros if at_c.bias is None else at_c.bias.astype(term.dtype),
        carry.c,
        carry.h,
        (norms["norm_h"].norm.eps, norms["norm_c"].norm.eps),
    )
    for place, (mean, var) in zip(PLACES, (of_h, of_c), strict=True):
        measured[place] = Moments(mean, var, jnp.full(mean.shape, batch, mean.dtype))
    state = {
        place: norm.update_state(
            state[place], measured[place], stats="batch", hyper=how[place]["hyper"]
        )
        for place, norm in norms.items()
    }
    return h, type(carry)(c=c[-1], h=h[-1]), state, (measured, {})


def _input(
    norm: SeqNorm, params: PyTree, state: PyTree, term: jax.Array, how: dict[str, Any]
) -> tuple[jax.Array, PyTree]:
    """The input term of all steps normalized, and what its norm saw."""
    if not norm.stepwise:
        return norm.sequence(params, state, term, **how)
    measured = norm.measure(params, state, term, **how)

    def one(at: PyTree, moments_t: PyTree, value: jax.Array) -> jax.Array:
        return norm.transform_step(params, state, at, moments_t, value, **how)

    y = jax.vmap(one)(norm.per_step_inputs(params, state, term.shape[0]), measured, term)
    return y, measured if norm.norm.stateful else None
