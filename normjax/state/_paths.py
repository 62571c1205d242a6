"""Reads nested dictionaries by path, and matches paths with `*` for one name or part of one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any


def nodes(tree: Mapping[str, Any], at: str = "", separator: str = "/") -> dict[str, Mapping]:
    """Return all dictionaries inside of a nested one by path.

    Example:
        >>> list(nodes({"a": {"b": {"kernel": 1}}}))
        ['a', 'a/b']
    """
    found: dict[str, Mapping] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            path = f"{at}{separator}{name}" if at else str(name)
            found |= {path: value, **nodes(value, path, separator)}
    return found


def copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries with the same leaves, to be changed in place."""
    return {k: copied(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def get(tree: Mapping[str, Any], path: str) -> Any:
    """Return what is at a path, or `None`."""
    node: Any = tree
    for name in path.split("/") if path else ():
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def drop(tree: dict[str, Any], path: str) -> None:
    """Remove what is at a path, and the dictionaries that are then empty."""
    parent, _, name = path.rpartition("/")
    holder = get(tree, parent)
    if isinstance(holder, dict) and name in holder:
        del holder[name]
        if not holder and parent:
            drop(tree, parent)


def match(pattern: str, path: str) -> tuple[str, ...] | None:
    """Return what each `*` of a pattern stands for in a path, or `None` if they do not match.

    Example:
        >>> match("block_*/norm", "block_3/norm"), match("block_*/norm", "block_3/a/norm")
        (('3',), None)
    """
    expression = "([^/.]+)".join(re.escape(part) for part in pattern.split("*"))
    found = re.fullmatch(expression, path)
    return None if found is None else found.groups()


def fill(template: str, found: tuple[str, ...], pattern: str) -> str:
    """Write what was found in place of each `*` of a template, in order.

    Example:
        >>> fill("layers.*.norm", ("3",), "block_*/norm")
        'layers.3.norm'
    """
    first, *rest = template.split("*")
    if len(rest) > len(found):
        raise ValueError(f"{template!r} has more * than {pattern!r}, which it is filled from")
    return first + "".join(value + part for value, part in zip(found, rest, strict=False))


def near(path: str, known: Iterable[str]) -> str:
    """Return " (did you mean …?)" for the closest paths, or a list of all if there are few."""
    known = sorted(known)
    close = difflib.get_close_matches(path, known, n=3)
    if close:
        return f" (did you mean {', '.join(map(repr, close))}?)"
    return f": there are {known[:20]}" + (" and more" if len(known) > 20 else "")
