"""Checks of what a recurrent layer is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax

from normjax._internal import _hints
from normjax.recurrent._base import Layer
from normjax.statistics._types import PyTree


def check_layer(layer: Any, who: str) -> None:
    """Refuse what is no `Layer`."""
    if not isinstance(layer, Layer):
        raise TypeError(f"{who} takes layers such as lstm(100) and got {layer!r}")


def draws_noise(layer: Layer, stats: str, noise: bool | None, key: Any) -> bool:
    """Whether zoneout and dropout draw in a call; raise if they do and there is no key."""
    if noise is not None and not isinstance(noise, bool):
        raise TypeError(
            f"noise={noise!r} must be True, False, or None, which draws in mode 'batch'"
        )
    draws = layer.has_dropout and (stats == "batch" if noise is None else bool(noise))
    if draws and key is None:
        raise ValueError(
            "the layer has zoneout or dropout, which draw "
            + ('in mode "batch"' if noise is None else "with noise=True")
            + ": write apply(…, key=key), or noise=False for their expectation"
        )
    return draws


def check_single(layer: Any, who: str) -> None:
    """Refuse a stack or a bidirectional pair where one layer's hidden state is needed."""
    check_layer(layer, who)
    if not hasattr(layer, "hidden"):
        raise TypeError(
            f"{who} takes one layer such as lstm(100) and got {layer!r}: give it one of these "
            "layers, with its own entries of params and state, and its own input"
        )


def check_made(
    who: str, params: Any, state: Any, both: Collection[str], weights: Collection[str] = ()
) -> None:
    """Refuse what `init` of another layer returned: `both` are the entries of params and state."""
    _hints.refuse_flax_variables(params, who)
    in_params, in_state = (
        set(tree) if isinstance(tree, Mapping) else set() for tree in (params, state)
    )
    norms = {name for name in in_params if name.startswith("norm_")}
    if not {*both, *weights} <= in_params or not norms <= {*both} or in_state != {*both}:
        raise ValueError(
            f"params have {sorted(in_params)}, the state has {sorted(in_state)}, and {who} needs "
            f"{sorted([*both, *weights])} in params and {sorted(both)} in the state: pass the "
            "(params, state) that init of this layer returned"
        )


def check_call(layer: Any, params: PyTree, state: PyTree, x: jax.Array) -> None:
    """Refuse params, state or x that are not those of a recurrent `layer`, saying what is."""
    order = "[time, batch, features]" if layer.time_major else "[batch, time, features]"
    if x.ndim != 3:
        raise ValueError(f"{layer.factory} takes x as {order} and got shape {x.shape}")
    norms = layer.norms()
    if not isinstance(params, Mapping) or not {"w_x", "w_h"} <= set(params):
        check_made(layer.factory, params, state, norms, ("w_x", "w_h"))
    for name in ("w_x", "w_h"):
        if not hasattr(params[name], "shape"):
            raise ValueError(
                f"{name} is a {type(params[name]).__name__} and this {layer.factory} takes an "
                "array: params of a reparametrized layer (wn_lstm(…), nj.reparam(layer, rules)) "
                "are applied by that layer"
            )
    shape, width = params["w_h"].shape, layer.gates * layer.hidden
    if shape[0] != layer.hidden:
        raise ValueError(
            f"params are those of {shape[0]} units and this {layer.factory} has {layer.hidden}: "
            "pass the (params, state) that init of this layer returned"
        )
    if shape[1:] != (width,):
        # Without norms two cells' params may have the same names.
        cells = {1: "an rnn", 3: "a gru", 4: "an lstm"}
        cell = cells.get(shape[-1] / shape[0], "another cell")
        raise ValueError(
            f"params look like those of {cell}, with w_h of shape {shape}, and that of this "
            f"{layer.factory} is {(layer.hidden, width)}: pass the (params, state) that init of "
            "this layer returned"
        )
    biases = jax.eval_shape(lambda: layer.start_bias(x.dtype))
    weights = ("w_x", "w_h", *biases, *(("carry",) if layer.learn_carry else ()))
    check_made(layer.factory, params, state, norms, weights)
    for place, norm in norms.items():
        if bool(jax.tree.leaves(state[place])) != norm.norm.stateful:
            keeps = "keeps statistics" if norm.norm.stateful else "keeps none"
            raise ValueError(
                f"{place}={norm!r} {keeps} and was given {type(state[place]).__name__}: pass "
                "the (params, state) that init of this layer returned"
            )
    if x.shape[-1] != params["w_x"].shape[0]:
        raise ValueError(
            f"x has {x.shape[-1]} features and the layer was made for "
            f"{params['w_x'].shape[0]}: x is {order}, of shape {x.shape}"
        )
    if 0 in x.shape:
        raise ValueError(f"x of shape {x.shape} is empty: {order} need at least 1 each")
