"""Converts the weights and statistics of whole models between Flax or normjax and PyTorch.

A rule says where a torch module's tensors stand in our variables. What they are is read from the
names there: `kernel` (dense layers and convolutions), `embedding`, `w_x` and `w_h` (the layers of
`normjax.recurrent`), Flax's cells, and norms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from normjax.state import _paths
from normjax.statistics._types import Array

Rules = Mapping[str, str | None] | Callable[[str], str | None]
Tensors = dict[str, np.ndarray]

_BLOCK = re.compile(r"(?:(?P<module>.*)\.)?(?P<name>(?:weight|bias)_[ih]h)_(?P<layer>l\d+\w*)")
_NORM = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
    "alpha": "alpha",
    "shift": "shift",
}
# Flax's cells: kernels of the input and of the hidden state, gates in torch's order.
_CELLS = {
    "lstm": (("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),
    "gru": (("ir", "iz", "in"), ("hr", "hz", "hn")),
    "rnn": (("i",), ("h",)),
}

# Parts of Flax's attention, in the order of the rows of torch's `in_proj_weight`.
_ATTENTION = ("query", "key", "value")
_PROJECTED = {"in_proj_weight": "kernel", "in_proj_bias": "bias"}


def from_torch_state_dict(
    state_dict: Mapping[str, Any], variables: Mapping[str, Any], rules: Rules
) -> dict[str, Any]:
    """Read the `state_dict()` of a torch module into the variables of a model, by path.

    Kernels are transposed to Flax's layout, gains become `scale`, statistics `mean` and `var`, the
    blocks of `torch.nn.LSTM`, `GRU` and `RNN` become `w_x`, `w_h` and one bias (or Flax's cells).
    A dense kernel of several axes, such as an attention's `[features, heads, size]`, is reshaped,
    and `in_proj_weight` of `torch.nn.MultiheadAttention` becomes `query`, `key` and `value`.

    Statistics are copied as they are: evaluation gives torch's outputs. To go on training as torch
    does, use `batch_norm(correction=1)`; `running_from_torch` converts one layer's.

    Args:
        state_dict: `module.state_dict()`, or arrays by its names. `num_batches_tracked` is left
            out.
        variables: the model's, for structure, shapes and dtypes: `{"params": …, "batch_stats": …}`,
            or one nested dictionary of both.
        rules: torch's module names to our paths, such as `{"layers.*.norm": "block_*/norm"}`: names
            are joined by `.` there and by `/` here, a `*` is one name or part of one, and `None`
            leaves a module out. The first rule that matches counts. One layer and direction of an
            LSTM is a module of its own, `lstm.l0`, `lstm.l0_reverse`. Or a function of the module's
            name, for other numberings.

    Returns:
        New nested dictionaries.

    Raises:
        ValueError: a module matches no rule, a path does not exist, a shape does not fit, or some
            of the variables got no tensor.

    Example:
        >>> import numpy as np, jax.numpy as jnp, normjax as nj
        >>> theirs = {"fc.weight": np.array([[1.0, 2.0]]), "fc.bias": np.zeros(1)}
        >>> ours = {"Dense_0": {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}}
        >>> nj.from_torch_state_dict(theirs, ours, {"fc": "Dense_0"})["Dense_0"]["kernel"].tolist()
        [[1.0], [2.0]]

    Reference:
        Paszke et al., "PyTorch: An Imperative Style, High-Performance Deep Learning Library", 2019.
    """
    tree = _paths.copied(_plain(variables))
    left = {path for part in _parts(tree) for path in _leaves(part)}
    for module, path, tensors in _matched(state_dict, rules):
        node = _node(tree, path, module)
        for name, value in _read(node, tensors, module).items():
            old = _paths.get(node, name)
            if old is None or np.shape(old) != value.shape:
                raise ValueError(
                    f"{module!r} gives {path}/{name} the shape {value.shape}, and the model has "
                    f"{'none' if old is None else np.shape(old)} there"
                )
            left.discard(f"{path}/{name}".lstrip("/"))
            _set(tree, f"{path}/{name}", jnp.asarray(value, old.dtype))
    if left:
        raise ValueError(f"nothing was read into {sorted(left)}: add rules for their modules")
    return tree


def to_torch_state_dict(
    variables: Mapping[str, Any], state_dict: Mapping[str, Any], rules: Rules
) -> Tensors:
    """Write the variables of a model as a torch module's state; inverts `from_torch_state_dict`.

    Args:
        variables: the model's, nested dictionaries.
        state_dict: `module.state_dict()` of the torch module, for names and shapes.
        rules: as for `from_torch_state_dict`.

    Returns:
        NumPy arrays by torch's names, of torch's dtypes, for
        `module.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})`. What we do
        not have, such as `num_batches_tracked` and modules of a rule `None`, is that of
        `state_dict`. Of torch's two biases a gate, ours is the first and the second is 0.

    Raises:
        ValueError: a module matches no rule, a path does not exist, or a shape does not fit.

    Example:
        >>> import numpy as np, jax.numpy as jnp, normjax as nj
        >>> theirs = {"fc.weight": np.zeros((1, 2)), "fc.bias": np.zeros(1)}
        >>> ours = {"Dense_0": {"kernel": jnp.array([[1.0], [2.0]]), "bias": jnp.zeros(1)}}
        >>> nj.to_torch_state_dict(ours, theirs, {"fc": "Dense_0"})["fc.weight"].tolist()
        [[1.0, 2.0]]

    Reference:
        Paszke et al., "PyTorch: An Imperative Style, High-Performance Deep Learning Library", 2019.
    """
    tree = _plain(variables)
    arrays = {name: np.asarray(v).copy() for name, v in state_dict.items()}
    for module, path, tensors in _matched(state_dict, rules):
        for key, (name, old) in tensors.items():
            value = _write(_node(tree, path, module), key, old)
            if value is None or value.size != old.size:
                raise ValueError(
                    f"{name!r} of shape {old.shape} has no counterpart of its size at {path!r}"
                )
            arrays[name] = np.ascontiguousarray(value.reshape(old.shape)).astype(old.dtype)
    return arrays


def _plain(tree: Any) -> Mapping[str, Any]:
    return tree.unfreeze() if hasattr(tree, "unfreeze") else tree


def _parts(tree: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the parameters and the statistics, which may be one tree."""
    if isinstance(tree.get("params"), Mapping):
        return [tree["params"], tree.get("batch_stats", {})]
    return [tree]


def _leaves(tree: Mapping[str, Any]) -> list[str]:
    own = [str(name) for name, v in tree.items() if not isinstance(v, Mapping)]
    return own + [
        f"{path}/{name}"
        for path, node in _paths.nodes(tree).items()
        for name, v in node.items()
        if not isinstance(v, Mapping)
    ]


def _matched(state_dict: Mapping[str, Any], rules: Rules) -> Any:
    """Yield `(module, path, {key: (full name, array)})` for each module that a rule names."""
    modules: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
    for name, tensor in state_dict.items():
        if found := _BLOCK.fullmatch(name):
            module = ".".join(v for v in (found["module"], found["layer"]) if v)
            key = found["name"]
        else:
            module, _, key = name.rpartition(".")
        if key != "num_batches_tracked":
            modules.setdefault(module, {})[key] = name, np.asarray(tensor)
    for module, tensors in modules.items():
        path = rules(module) if callable(rules) else _by_rules(module, rules)
        if path is not None:
            yield module, path, tensors


def _by_rules(module: str, rules: Mapping[str, str | None]) -> str | None:
    for pattern, template in rules.items():
        found = _paths.match(pattern, module)
        if found is not None:
            return None if template is None else _paths.fill(template, found, pattern)
    raise ValueError(
        f"no rule matches the torch module {module!r}: write {{{module!r}: 'our/path'}}, or None "
        "to leave it out"
    )


def _node(tree: Mapping[str, Any], path: str, module: str) -> dict[str, Any]:
    """Return what the model has at a path, parameters and statistics together."""
    node: dict[str, Any] = {}
    for part in _parts(tree):
        here = _paths.get(part, path)
        node |= here if isinstance(here, Mapping) else {}
    if not node:
        known = {p for part in _parts(tree) for p in _paths.nodes(part)}
        raise ValueError(f"{module!r} goes to {path!r}, which is not{_paths.near(path, known)}")
    return node


def _set(tree: dict[str, Any], path: str, value: Array) -> None:
    """Replace the leaf at a path, in the part that has it."""
    holder, _, name = path.lstrip("/").rpartition("/")
    for part in _parts(tree):
        node = _paths.get(part, holder)
        if isinstance(node, dict) and name in node:
            node[name] = value


def _read(node: Mapping[str, Any], tensors: Mapping[str, Any], module: str) -> Tensors:
    """Return our leaves of one module, by their path in the node."""
    get = {key: v for key, (_, v) in tensors.items()}
    cell = _cell(node)
    if cell is not None:
        return _read_blocks(node, get, cell)
    if "w_x" in node:
        return _read_blocks(node, get, None)
    out: Tensors = {}
    for key, v in get.items():
        if key == "weight" and "kernel" in node:
            kernel = _from_layout(v)
            same = v.ndim == 2 and kernel.size == np.size(node["kernel"])
            out["kernel"] = kernel.reshape(np.shape(node["kernel"])) if same else kernel
        elif key == "weight" and "embedding" in node:
            out["embedding"] = v
        elif key in _PROJECTED and set(_ATTENTION) <= set(node):
            leaf = _PROJECTED[key]
            for part, rows in zip(_ATTENTION, np.split(v, 3), strict=True):
                shape = np.shape(_paths.get(node, f"{part}/{leaf}"))
                fits = rows.size == np.prod(shape, dtype=int)
                out[f"{part}/{leaf}"] = rows.T.reshape(shape) if fits else rows.T
        elif key in _NORM:
            name = _NORM[key] if "kernel" not in node else key
            old = np.shape(node.get(name, v))
            out[name] = v.reshape(old) if v.size == np.prod(old, dtype=int) else v
        else:
            raise ValueError(f"{module}.{key} is of no kind that is known: leave {module!r} out")
    return out


def _write(node: Mapping[str, Any], key: str, old: np.ndarray) -> np.ndarray | None:
    """Return one tensor of a module, in torch's layout, or `None`."""
    cell = _cell(node)
    if cell is not None or "w_x" in node:
        return _write_block(node, key, cell)
    if key in _PROJECTED:
        if not set(_ATTENTION) <= set(node):
            return None
        parts = (np.asarray(node[part][_PROJECTED[key]]) for part in _ATTENTION)
        # [inputs, heads, size] to [heads * size, inputs], biases to one axis
        return np.concatenate([v.reshape(*old.shape[1:], -1).T for v in parts])
    if key == "weight" and "kernel" in node:
        kernel = np.asarray(node["kernel"])
        if old.ndim == 2:
            return kernel.reshape(old.shape[1], -1).T if kernel.size == old.size else None
        return kernel.transpose(_to_torch(kernel.ndim))
    name = key if "kernel" in node else _NORM.get(key, key)
    name = "embedding" if key == "weight" and "embedding" in node else name
    return np.asarray(node[name]) if name in node else None


def _from_layout(weight: np.ndarray) -> np.ndarray:
    """Transpose `[outputs, inputs, *window]` to `[*window, inputs, outputs]`."""
    return weight.transpose((*range(2, weight.ndim), 1, 0))


def _to_torch(ndim: int) -> tuple[int, ...]:
    return (ndim - 1, ndim - 2, *range(ndim - 2))


def _cell(node: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the names of a Flax cell's parts, or `None`."""
    for names in _CELLS.values():
        if set(names[0] + names[1]) == set(node):
            return names
    return None


def _read_blocks(node: Mapping[str, Any], get: Tensors, cell: Any) -> Tensors:
    """Return the weights of a recurrent layer, ours or a Flax cell's."""
    w_x, w_h = get["weight_ih"].T, get["weight_hh"].T
    zero = np.zeros(w_h.shape[1], w_h.dtype)
    b_x, b_h = get.get("bias_ih", zero), get.get("bias_hh", zero)
    hidden = len(w_h)
    apart = "bias_hn" in node if cell is None else cell == _CELLS["gru"]
    bias = b_x + b_h
    if apart:  # inside the reset gate, the candidate's recurrent bias is one of its own
        bias = np.concatenate([bias[:-hidden], b_x[-hidden:]])
    if cell is None:
        own = {"w_x": w_x, "w_h": w_h, "bias": bias}
        return {**own, "bias_hn": b_h[-hidden:]} if apart else own
    out: Tensors = {}
    for names, weight in zip(cell, (w_x, w_h), strict=True):
        blocks = np.split(weight, len(names), 1)
        out |= {f"{name}/kernel": w for name, w in zip(names, blocks, strict=True)}
    biased = cell[1] if cell == _CELLS["lstm"] else cell[0]
    blocks = np.split(bias, len(biased))
    out |= {f"{name}/bias": b for name, b in zip(biased, blocks, strict=True)}
    return {**out, "hn/bias": b_h[-hidden:]} if apart else out


def _write_block(node: Mapping[str, Any], key: str, cell: Any) -> np.ndarray | None:
    """Return one tensor of `torch.nn.LSTM`, `GRU` or `RNN`."""

    def blocks(names: Any, leaf: str) -> np.ndarray:
        return np.concatenate([np.asarray(node[name][leaf]) for name in names], -1)

    if key in ("weight_ih", "weight_hh"):
        side = key == "weight_hh"
        ours = "w_h" if side else "w_x"
        weight = np.asarray(node[ours]) if cell is None else blocks(cell[side], "kernel")
        return weight.T
    if cell is None:
        bias, last = np.asarray(node["bias"]), node.get("bias_hn")
    else:
        bias = blocks(cell[1] if cell == _CELLS["lstm"] else cell[0], "bias")
        last = node["hn"]["bias"] if cell == _CELLS["gru"] else None
    if key == "bias_ih":
        return bias
    if key != "bias_hh":
        return None
    second = np.zeros_like(bias)
    if last is not None:
        second[-np.size(last) :] = np.asarray(last)
    return second
