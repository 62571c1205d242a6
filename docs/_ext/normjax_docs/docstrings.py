"""Converts docstrings and signatures to the form that Sphinx expects."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
import sys
import typing
from typing import Any

from normjax import base
from normjax_docs.names import MODULES

LOG = logging.getLogger("sphinx.normjax_docs")


def markdown(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert Markdown to reStructuredText: `$$…$$` and `$…$` are formulas, backticks are code."""
    if not "".join(lines).strip():
        if what != "module":
            LOG.warning("%s has no docstring", name)
        return
    if what == "property":  # napoleon would read the text before a colon as a type
        lines[0] = lines[0].replace(": ", " – ")
    text = re.sub(r"^( *)\$\$(.+?)\$\$", _display, "\n".join(lines), flags=re.S | re.M)
    out, inside = [], 0  # inside: least indentation of the current formula
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith(".. math::"):
            inside = indent + 3
        elif line.strip() and indent < inside:
            inside = 0
        if not inside and not re.match(r"\s*(>>>|\.\.\.)", line):
            line = re.sub(r"(?<![`\w])`([^`]+)`(?!`)", r"``\1``", line)
            parts = re.split(r"(``.*?``)", line)
            line = "".join(p if p.startswith("``") else _prose(p) for p in parts)
        out.append(line)
    lines[:] = out


def _display(match: re.Match) -> str:
    pad, body = match[1], " ".join(match[2].split())
    return f"\n{pad}.. math::\n\n{pad}   {body}\n\n{pad}"


def _prose(text: str) -> str:
    """Convert the formulas of a line, and escape `|` and the stars of `*args`."""
    parts = re.split(r"\$([^$]+)\$", text)
    plain = [re.sub(r"([|]|(?<![\w*])\*+(?=args|kw))", r"\\\1", p) for p in parts[::2]]
    maths = [f":math:`{p}`" for p in parts[1::2]]
    return "".join(p for pair in zip(plain, [*maths, ""], strict=True) for p in pair)


def signature(app: Any, what: str, name: str, obj: Any, options: Any, sig: Any, ret: Any) -> Any:
    """Write signatures as in the source: with public aliases, and tuples without field types."""
    if what in ("function", "method"):
        return _written(obj, bound=what == "method")
    if what != "class":
        return None
    if issubclass(obj, tuple):
        return f"({', '.join(obj._fields)})", None
    if inspect.isabstract(obj):
        return "", None
    if ".nnx." in name:  # NNX's metaclass hides the arguments
        return _written(obj.__init__, bound=True)
    if ".linen." in name and dataclasses.is_dataclass(obj):
        fields = [f for f in dataclasses.fields(obj) if f.init and f.name not in ("parent", "name")]
        return f"({', '.join(map(_field, fields))})", None
    return None


def _written(function: Any, *, bound: bool) -> tuple[str, str | None]:
    """Arguments and result of a function, with the annotations of the source."""
    sig = inspect.signature(function)
    parameters = list(sig.parameters.values())[1 if bound else 0 :]
    shown = []
    for p in parameters:
        if p.default is not p.empty:
            default = _Plain(getattr(p.default, "__name__", None) or repr(p.default))
            p = p.replace(default=default)
        # Flax's functions have no text annotations: only their names are shown.
        text = isinstance(p.annotation, str)
        annotation = _Plain(_qualified(p.annotation, function)) if text else p.empty
        shown.append(p.replace(annotation=annotation))
    written = isinstance(sig.return_annotation, str) and function.__name__ != "__init__"
    result = _qualified(sig.return_annotation, function) if written else None
    return str(inspect.Signature(shown)), result


def _qualified(annotation: str, function: Any) -> str:
    """Link public types by full name, and write out what a reader cannot import.

    Full names, because three modules have a `Recurrent`; Sphinx shortens them. The aliases of
    `normjax.base` stay, private ones are replaced by what they abbreviate.
    """
    names = inspect.unwrap(function).__globals__

    def full(match: re.Match) -> str:
        module, name = match[1], match[2]
        value = getattr(names.get(module), name, None) if module else names.get(name)
        return name if value is None else _public(name, value)

    return re.sub(r"(?<![\w.'])(?:(_\w+)\.)?([A-Z]\w*)(?![\w'])", full, annotation)


def _public(name: str, value: Any) -> str:
    """Text of a type that uses public names only."""
    for module in MODULES:
        if value is getattr(sys.modules[module], name, None):
            return f"~{module}.{name}"
    if value is getattr(base, name, None):
        return name
    if isinstance(value, typing.TypeVar):
        return getattr(value.__bound__, "__name__", "Any")
    if typing.get_origin(value) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(value)))
    if isinstance(value, type) and value.__module__.startswith("normjax"):
        named = (_public(c.__name__, c) for c in value.__mro__[1:])
        return next((text for text in named if text.startswith("~")), "Any")
    if typing.get_origin(value) is None:
        return name
    text = re.sub(r"\b(?:collections\.abc|typing)\.", "", str(value))
    text = re.sub(r"(?:jax\.)?\bjaxlib\.[\w.]*\bArray\b", "jax.Array", text)
    return re.sub(r"\bnormjax\.(?:\w+\.)*([A-Z]\w*)", lambda m: _by_name(m[1]), text)


def _by_name(name: str) -> str:
    homes = [m for m in MODULES if hasattr(sys.modules[m], name)]
    return f"~{homes[0]}.{name}" if homes else name


class _Plain:
    """Prints as plain text inside a signature."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _field(f: dataclasses.Field) -> str:
    if f.default is dataclasses.MISSING:
        return f.name
    value = getattr(f.default, "__name__", None) or " ".join(repr(f.default).split())
    return f"{f.name}={value}"
