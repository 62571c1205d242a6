"""Pytrees of params and state as variables with names, and the modes of a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from normjax.base import Stats
from normjax.state import _names
from normjax.statistics._types import PyTree, is_accumulator

Path = tuple[str, ...]
# What a norm keeps beside its statistics while a loop of ours traces the cell around it: those
# that mode `"running"` reads. At a step without data they are those of the last step with some,
# and the statistics themselves still show that there are none. As a variable of the same
# collection they pass through every transformation that the statistics pass through.
FILLED = "filled"


def named_leaves(tree: PyTree) -> dict[Path, Any]:
    """Return the leaves by the names that lead to them; what is absent has no entry.

    Example:
        >>> from normjax.base import Affine
        >>> named_leaves({"norm_x": Affine(scale=1.0, bias=None)})
        {('norm_x', 'scale'): 1.0}
    """
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def nest(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Return named leaves as nested dictionaries.

    Example:
        >>> nest({("norm_x", "scale"): 1.0, ("bias",): 2.0})
        {'norm_x': {'scale': 1.0}, 'bias': 2.0}
    """
    out: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = out
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return out


def rebuild(template: PyTree, values: Mapping[str, Any]) -> PyTree:
    """Return nested dictionaries of variables in the structure of `template`.

    Raises:
        ValueError: names are missing or unknown.
    """
    leaves, paths = named_leaves(values), list(named_leaves(template))
    if set(leaves) == set(paths):
        return jax.tree.unflatten(jax.tree.structure(template), [leaves[path] for path in paths])
    # The statistics of `population_update`, or an error that says what is missing.
    return _names.from_dict(template, values)


def accumulates(state: PyTree) -> bool:
    """Whether a state, or part of it, is that of `population_update`, which moves in both modes."""
    return any(map(is_accumulator, jax.tree.leaves(state, is_leaf=is_accumulator)))


def with_running(state: PyTree, filled: PyTree) -> PyTree:
    """Return a state with other running statistics; what accumulates stays.

    Args:
        state: state of a norm or layer.
        filled: the same, with running statistics in place of each `Accumulator`.
    """
    return jax.tree.map(
        lambda node, new: node._replace(running=new) if is_accumulator(node) else new,
        state,
        filled,
        is_leaf=is_accumulator,
    )


def keep_running(state: PyTree, before: PyTree) -> PyTree:
    """Return a state that accumulates with the running statistics that it had before."""
    return jax.tree.map(
        lambda node, old: node._replace(running=old.running) if is_accumulator(node) else node,
        state,
        before,
        is_leaf=is_accumulator,
    )


def separate(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return variables without their `FILLED`, and with it in place of the statistics.

    The second is `None` where no norm has any.
    """
    own: dict[str, Any] = {}
    read: dict[str, Any] = {}
    found = FILLED in values
    for name, value in values.items():
        if name != FILLED:
            own[name] = read[name] = value
            if isinstance(value, Mapping):
                own[name], inner = separate(value)
                read[name] = own[name] if inner is None else inner
                found = found or inner is not None
    read = dict(values[FILLED]) if FILLED in values else read
    return own, read if found else None


def draws_noise(layer: Any, mode: Stats, noise: bool | None, has_key: bool, write: str) -> bool:
    """Whether zoneout and dropout draw in a call; raise if they do without random keys."""
    draws = layer.has_dropout and (mode == "batch" if noise is None else noise)
    if draws and not has_key:
        when = 'in mode "batch"' if noise is None else "with noise=True"
        raise ValueError(
            f"Recurrent has zoneout or dropout, which draw {when}: {write}; or give noise=False "
            "at the call"
        )
    return draws
