"""Weights between normjax, Flax and torch: names, gate order and biases, not numbers.

Ours are `w_x` [features, gates * hidden], `w_h` [hidden, gates * hidden] and one `bias`, with
the gates in the order i, f, g, o (LSTM) and r, z, n (GRU), which is torch's order too. Norms
have no counterpart there: their params and the learned carry are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax.recurrent._recurrent import Recurrent
from normjax.statistics._types import Array

Params = dict[str, Any]

# Flax's names: input kernels, recurrent kernels, and which of them carry the biases.
_FLAX: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "lstm": (("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho"), "h"),
    "gru": (("ir", "iz", "in"), ("hr", "hz", "hn"), "i"),
    "rnn": (("i",), ("h",), "i"),
}


def to_flax(layer: Recurrent, params: Mapping[str, Any]) -> Params:
    """Write weights as those of Flax's `LSTMCell`/`OptimizedLSTMCell`, `GRUCell`, `SimpleCell`.

    Args:
        layer: an `lstm`, `gru` or `rnn`.
        params: its parameters; those of norms are left out.

    Returns:
        The parameters of the cell.

    Raises:
        TypeError: another kind of layer.

    Example:
        >>> import jax
        >>> from normjax import recurrent
        >>> layer = recurrent.lstm(4)
        >>> params, _ = layer.init(jax.random.key(0), features=3)
        >>> cell = recurrent.to_flax(layer, params)
        >>> sorted(cell), cell["ii"]["kernel"].shape
        (['hf', 'hg', 'hi', 'ho', 'if', 'ig', 'ii', 'io'], (3, 4))
    """
    names_x, names_h, with_bias = _FLAX[_kind(layer)]
    cell: Params = {}
    for names, weight in ((names_x, "w_x"), (names_h, "w_h")):
        for name, w in zip(names, _blocks(layer, params[weight], 1), strict=True):
            cell[name] = {"kernel": w}
    names = names_x if with_bias == "i" else names_h
    for name, b in zip(names, _blocks(layer, params["bias"], 0), strict=True):
        cell[name]["bias"] = b
    if "bias_hn" in params:
        cell["hn"]["bias"] = jnp.asarray(params["bias_hn"])
    return cell


def from_flax(layer: Recurrent, cell: Mapping[str, Any], params: Mapping[str, Any]) -> Params:
    """Read the weights of a Flax cell into our parameters.

    Args:
        layer: an `lstm`, `gru` or `rnn`.
        cell: parameters of the Flax cell.
        params: our parameters, for what Flax does not have (norms, learned carry).

    Returns:
        New parameters.

    Raises:
        TypeError: another kind of layer.
        ValueError: a shape that does not fit.

    Example:
        >>> import jax
        >>> from normjax import recurrent
        >>> layer = recurrent.gru(4)
        >>> params, _ = layer.init(jax.random.key(0), features=3)
        >>> back = recurrent.from_flax(layer, recurrent.to_flax(layer, params), params)
        >>> bool((back["w_h"] == params["w_h"]).all())
        True
    """
    names_x, names_h, with_bias = _FLAX[_kind(layer)]
    names = names_x if with_bias == "i" else names_h
    new = {
        "w_x": jnp.concatenate([jnp.asarray(cell[n]["kernel"]) for n in names_x], 1),
        "w_h": jnp.concatenate([jnp.asarray(cell[n]["kernel"]) for n in names_h], 1),
        "bias": jnp.concatenate([jnp.asarray(cell[n]["bias"]) for n in names]),
    }
    if "bias_hn" in params:
        new["bias_hn"] = jnp.asarray(cell["hn"]["bias"])
    return _replace(params, new)


def to_torch(
    layer: Recurrent, params: Mapping[str, Any], suffix: str = "_l0"
) -> dict[str, np.ndarray]:
    """Write weights as those of `torch.nn.LSTM`, `GRU` or `RNN`.

    Args:
        layer: an `lstm`, `gru` or `rnn`.
        params: its parameters; those of norms are left out.
        suffix: of torch's names: `"_l0"`, `"_l1_reverse"`, ….

    Returns:
        NumPy arrays by torch's names, for `torch.from_numpy` and `load_state_dict`. Torch has
        two biases a gate where one would do: ours goes into the first, the second is 0.

    Raises:
        TypeError: another kind of layer.

    Example:
        >>> import jax
        >>> from normjax import recurrent
        >>> layer = recurrent.lstm(4)
        >>> params, _ = layer.init(jax.random.key(0), features=3)
        >>> recurrent.to_torch(layer, params)["weight_ih_l0"].shape
        (16, 3)
    """
    _kind(layer)
    bias_h = np.zeros_like(np.asarray(params["bias"]))
    if "bias_hn" in params:
        bias_h[-layer.hidden :] = np.asarray(params["bias_hn"])
    return {
        f"weight_ih{suffix}": np.ascontiguousarray(np.asarray(params["w_x"]).T),
        f"weight_hh{suffix}": np.ascontiguousarray(np.asarray(params["w_h"]).T),
        f"bias_ih{suffix}": np.array(params["bias"]),
        f"bias_hh{suffix}": bias_h,
    }


def from_torch(
    layer: Recurrent, tensors: Mapping[str, Any], params: Mapping[str, Any], suffix: str = "_l0"
) -> Params:
    """Read the weights of a torch module into our parameters.

    Args:
        layer: an `lstm`, `gru` or `rnn`.
        tensors: `module.state_dict()`, or arrays by its names.
        params: our parameters, for what torch does not have (norms, learned carry).
        suffix: of torch's names: `"_l0"`, `"_l1_reverse"`, ….

    Returns:
        New parameters; torch's two biases are added up where the equations do so, and are 0 if
        the module has none (`bias=False`).

    Raises:
        TypeError: another kind of layer.
        ValueError: a shape that does not fit, or a weight that is missing.

    Example:
        >>> import jax
        >>> from normjax import recurrent
        >>> layer = recurrent.gru(4)
        >>> params, _ = layer.init(jax.random.key(0), features=3)
        >>> back = recurrent.from_torch(layer, recurrent.to_torch(layer, params), params)
        >>> bool((back["bias_hn"] == params["bias_hn"]).all())
        True
    """
    _kind(layer)
    get = {
        name: np.asarray(tensors[f"{name}{suffix}"])
        for name in _TORCH
        if f"{name}{suffix}" in tensors
    }
    if missing := {"weight_ih", "weight_hh"} - set(get):
        raise ValueError(
            f"the tensors lack {sorted(f'{name}{suffix}' for name in missing)} and have "
            f"{sorted(tensors)}: pass module.state_dict(), and the suffix of one layer"
        )
    for name in ("bias_ih", "bias_hh"):
        get.setdefault(name, np.zeros(len(get["weight_hh"]), get["weight_hh"].dtype))
    bias = get["bias_ih"] + get["bias_hh"]
    new = {"w_x": get["weight_ih"].T, "w_h": get["weight_hh"].T, "bias": bias}
    if "bias_hn" in params:
        # Inside the reset gate the recurrent bias of the candidate is one of its own.
        bias[-layer.hidden :] = get["bias_ih"][-layer.hidden :]
        new["bias_hn"] = get["bias_hh"][-layer.hidden :]
    return _replace(params, {name: jnp.asarray(v) for name, v in new.items()})


_TORCH = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _kind(layer: Any) -> str:
    if not isinstance(layer, Recurrent) or layer.factory not in _FLAX:
        raise TypeError(
            f"weights are converted for one layer, lstm, gru or rnn, and {layer!r} is none: "
            "convert the layers of a stack one by one"
        )
    return layer.factory


def _blocks(layer: Recurrent, weight: Array, axis: int) -> list[jax.Array]:
    return jnp.split(jnp.asarray(weight), layer.gates, axis)


def _replace(params: Mapping[str, Any], new: Mapping[str, jax.Array]) -> Params:
    for name, value in new.items():
        if value.shape != params[name].shape:
            raise ValueError(
                f"{name} is {value.shape} there and {params[name].shape} here: the layers have "
                "different sizes"
            )
    return {**params, **new}
