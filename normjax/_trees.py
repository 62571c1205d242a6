"""Our pytrees as nested dictionaries and back, for frameworks that store variables by name.

`Affine(scale, None)` becomes `{"scale": scale}`, `Running` becomes `{"mean": …, "var": …}`:
the names and shapes of Flax's own layers. What is absent or empty has no entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from normjax.base import PyTree


def to_dict(tree: PyTree) -> dict[str, Any]:
    """Return a tree of named tuples and dictionaries as nested dictionaries."""
    out = {}
    for name, value in _fields(tree).items():
        if jax.tree.leaves(value):
            out[name] = to_dict(value) if _is_node(value) else value
    return out


def from_dict(template: PyTree, values: Mapping[str, Any]) -> PyTree:
    """Return `values` in the structure of `template`, a tree (or shapes) that `init` made.

    Raises:
        ValueError: names are missing or unknown.
    """
    if not _is_node(template):
        return values
    fields = {}
    expected = _fields(template)
    for name, value in expected.items():
        if not jax.tree.leaves(value):
            fields[name] = value
        elif name not in values:
            raise ValueError(f"variable {name!r} is missing: found {sorted(values)}")
        else:
            fields[name] = from_dict(value, values[name])
    if unknown := set(values) - set(expected):
        raise ValueError(f"variables {sorted(unknown)} are unknown: expected {sorted(expected)}")
    return fields if isinstance(template, dict) else _rebuild(template, fields)


def _rebuild(template: Any, fields: dict[str, Any]) -> Any:
    return type(template)(**fields) if hasattr(template, "_fields") else template


def _is_node(tree: PyTree) -> bool:
    return isinstance(tree, Mapping) or hasattr(tree, "_fields") or isinstance(tree, tuple)


def _fields(tree: PyTree) -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return dict(tree)
    return tree._asdict() if hasattr(tree, "_fields") else {}
