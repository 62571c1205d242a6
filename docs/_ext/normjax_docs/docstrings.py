"""Docstrings and signatures, as Sphinx wants them."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
import sys
from typing import Any

from normjax_docs.names import MODULES

LOG = logging.getLogger("sphinx.normjax_docs")


def markdown(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written as Markdown: `$$…$$` and `$…$` are formulas, backticks are code."""
    if not "".join(lines).strip():
        if what != "module":
            LOG.warning("%s has no docstring", name)
        return
    if what == "property":  # napoleon takes what stands before a colon there for a type
        lines[0] = lines[0].replace(": ", " – ")
    text = re.sub(r"^( *)\$\$(.+?)\$\$", _display, "\n".join(lines), flags=re.S | re.M)
    out, inside = [], 0  # inside: least indentation of the formula that we are in
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
    """Formulas of a line; `|`, and the stars of `*args`, mean nothing but themselves."""
    parts = re.split(r"\$([^$]+)\$", text)
    plain = [re.sub(r"([|]|(?<![\w*])\*+(?=args|kw))", r"\\\1", p) for p in parts[::2]]
    maths = [f":math:`{p}`" for p in parts[1::2]]
    return "".join(p for pair in zip(plain, [*maths, ""], strict=True) for p in pair)


def signature(app: Any, what: str, name: str, obj: Any, options: Any, sig: Any, ret: Any) -> Any:
    """Signatures as they are written: aliases not spelled out, fields of tuples without types."""
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
    """Arguments and result of a function, annotations as they are written."""
    sig = inspect.signature(function)
    parameters = list(sig.parameters.values())[1 if bound else 0 :]
    shown = []
    for p in parameters:
        if p.default is not p.empty:
            default = _Plain(getattr(p.default, "__name__", None) or repr(p.default))
            p = p.replace(default=default)
        # Of Flax's functions, whose types are no text, the names must do.
        text = isinstance(p.annotation, str)
        annotation = _Plain(_qualified(p.annotation, function)) if text else p.empty
        shown.append(p.replace(annotation=annotation))
    written = isinstance(sig.return_annotation, str) and function.__name__ != "__init__"
    result = _qualified(sig.return_annotation, function) if written else None
    return str(inspect.Signature(shown)), result


def _qualified(annotation: str, function: Any) -> str:
    """Our public types by full name, which Sphinx shortens: three modules have a `Recurrent`."""

    def full(match: re.Match) -> str:
        value = inspect.unwrap(function).__globals__.get(match[0])
        for module in MODULES:
            if value is not None and value is getattr(sys.modules[module], match[0], None):
                return f"~{module}.{match[0]}"
        return match[0]

    return re.sub(r"(?<![\w.'])[A-Z]\w*(?![\w'])", full, annotation)


class _Plain:
    """Prints as the text it holds, inside a signature."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _field(f: dataclasses.Field) -> str:
    if f.default is dataclasses.MISSING:
        return f.name
    value = getattr(f.default, "__name__", None) or " ".join(repr(f.default).split())
    return f"{f.name}={value}"
