"""Converts pytrees to nested dictionaries and back, for frameworks that store variables by name.

`Affine(scale, None)` becomes `{"scale": scale}`, `Running` becomes `{"mean": …, "var": …}`:
the names and shapes of Flax's own layers. Missing or empty parts have no entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from normjax.statistics import _merge, _running
from normjax.statistics._compensated import compensated_type, error_names
from normjax.statistics._debias import WEIGHT, Debiased, debiased_type
from normjax.statistics._types import Accumulator, BatchMeans, PyTree


def to_dict(tree: PyTree) -> dict[str, Any]:
    """Convert a tree of named tuples and dictionaries to nested dictionaries."""
    out = {}
    for name, value in _fields(tree).items():
        if jax.tree.leaves(value):
            out[name] = to_dict(value) if _is_node(value) else value
    return out


def from_dict(template: PyTree, values: Any) -> PyTree:
    """Convert nested dictionaries to the structure of `template`, what `init` returned or shapes.

    Args:
        template: tree of named tuples and dictionaries, of arrays or of their shapes.
        values: nested dictionaries with the same names.

    Returns:
        The values, in the structure of `template`.

    Raises:
        ValueError: names are missing or unknown.
    """
    if not _is_node(template):
        return values
    if _running.is_stats(template) and isinstance(stats := read_statistics(values), Accumulator):
        return stats  # accumulates for the time being; see `population_update`
    fields = {}
    expected = _fields(template)
    for name, value in expected.items():
        if not jax.tree.leaves(value):
            fields[name] = value
        elif name == WEIGHT and isinstance(template, Debiased) and name not in values:
            continue  # statistics from before `debias=True`, which are taken as data
        elif name not in values:
            raise ValueError(f"variable {name!r} is missing: found {sorted(values)}")
        else:
            fields[name] = from_dict(value, values[name])
    if unknown := set(values) - set(expected):
        hint = ""
        if unknown == {WEIGHT} and _running.is_stats(template):
            hint = ": they are of a norm or layer with debias=True, so write debias=True"
        raise ValueError(
            f"variables {sorted(unknown)} are unknown: expected {sorted(expected)}{hint}"
        )
    return fields if isinstance(template, dict) else _rebuild(template, fields)


def named(made: Any, values: PyTree, *required: str) -> Any:
    """Make a named tuple of a mapping of its names; anything else stays as it is.

    Args:
        made: type of the named tuple.
        values: its fields by name, as a checkpoint that was restored without a target gives them.
            A field that is absent is `None`.
        required: names that may not be absent.

    Raises:
        ValueError: a name is unknown, or a required one is absent.

    Example:
        >>> from normjax.base import Affine
        >>> named(Affine, {"scale": 2.0})
        Affine(scale=2.0, bias=None)
    """
    if not isinstance(values, Mapping):
        return values
    unknown = sorted(set(values) - set(made._fields))
    absent = sorted(set(required) - set(values))
    if unknown or absent:
        raise ValueError(
            f"{made.__name__} has the names {list(made._fields)} and was given {sorted(values)}: "
            f"pass what init returned, or a dictionary of these names"
        )
    return made(**{name: values.get(name) for name in made._fields})


def read_statistics(values: Mapping[str, Any]) -> PyTree | None:
    """Convert a dictionary of names to one norm's statistics; return `None` for any other.

    Args:
        values: dictionary, such as the entry of one layer in `batch_stats`.

    Returns:
        Running statistics, an `Accumulator`, or `None`.

    Example:
        >>> read_statistics({"mean": 0.0, "var": 1.0})
        Running(mean=0.0, var=1.0)
        >>> read_statistics({"kernel": 0.0}) is None
        True
    """
    names = set(values)
    if {"running", "measured"} <= names <= set(Accumulator._fields):
        measured = values["measured"]
        running = read_statistics(values["running"])
        if running is None:
            return None
        if set(measured) == set(BatchMeans._fields):
            biased, unbiased = (read_statistics(measured[name]) for name in ("biased", "unbiased"))
            means = BatchMeans(biased, unbiased, measured["batches"], measured["pairs"])
            return Accumulator(running, means, values.get("warmup"))
        kind = _merge.kind_of(running)
        assert kind is not None
        plain = set(measured) == set(kind.measured._fields)  # type: ignore[attr-defined]
        made = kind.measured if plain else compensated_type(kind.measured)
        return Accumulator(running, made(**measured), values.get("warmup"))
    if any(isinstance(value, Mapping) for value in values.values()):
        return None
    for kind in _merge.kinds():
        # Compensated ones have errors of the fields too, and debiased ones a weight.
        for made in (kind.running, compensated_type(kind.running)):
            own = {*kind.names, *(error_names(made) if made is not kind.running else ())}
            if names == own:
                return made(**values)
            if names == {*own, WEIGHT}:
                return debiased_type(made)(**values)
    return None


def _rebuild(template: Any, fields: dict[str, Any]) -> Any:
    """Make a named tuple of the type of `template`; an empty tuple stays as it is."""
    return type(template)(**fields) if hasattr(template, "_fields") else template


def _is_node(tree: PyTree) -> bool:
    """Whether `tree` has parts with names, or is an empty tuple."""
    return isinstance(tree, Mapping) or hasattr(tree, "_fields") or isinstance(tree, tuple)


def _fields(tree: PyTree) -> dict[str, Any]:
    """Return the parts of a dictionary or named tuple by name."""
    if isinstance(tree, Mapping):
        return dict(tree)
    return tree._asdict() if hasattr(tree, "_fields") else {}
