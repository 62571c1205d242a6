"""Defines the directives of the pages: `{api}`, `{methods}`, `{hard-inputs}`."""

from __future__ import annotations

import importlib
import inspect
import json
import pathlib
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from normjax_docs import methods
from normjax_docs.names import MODULES, public


class Api(SphinxDirective):
    """`{api} module` and names, one per line: a summary table and the entry of each name.

    Without names, it lists all public names of the module; if the module is absent, nothing.
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return a summary table and the entries."""
        module = self.arguments[0]
        if module not in MODULES:
            return []
        home = importlib.import_module(module)
        names = [line.strip() for line in self.content if line.strip()]
        if not names:  # functions before the tuples they return
            names = sorted(public(module), key=lambda n: not inspect.isfunction(getattr(home, n)))
        lines = ["```{eval-rst}", f".. currentmodule:: {module}", "", ".. autosummary::", ""]
        lines += [*(f"   {name}" for name in names), ""]
        for name in names:
            lines += [*_entry(name, getattr(home, name)), ""]
        return _parse(self, "\n".join([*lines, "```"]))


def _entry(name: str, value: Any) -> list[str]:
    if inspect.isfunction(value):
        return [f".. autofunction:: {name}"]
    if not inspect.isclass(value):
        return [f".. autodata:: {name}"]
    lines = [f".. autoclass:: {name}"]
    if issubclass(value, tuple):
        return lines
    if any(base.__name__ in public("normjax.recurrent") for base in value.__bases__):
        lines.append("   :show-inheritance:")
    if members := [n for n, v in vars(value).items() if _documented(n, v)]:
        lines.append(f"   :members: {', '.join(members)}")
    if getattr(vars(value).get("__call__"), "__doc__", None):
        lines.append("   :special-members: __call__")
    return lines


def _documented(name: str, value: Any) -> bool:
    value = getattr(value, "__func__", value)
    kinds = inspect.isfunction(value) or isinstance(value, property)
    return kinds and not name.startswith("_") and bool(value.__doc__)


class Methods(SphinxDirective):
    """`{methods} batch`, `sample`, `nothing` or `weights`: the table, generated from the code."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        return _parse(self, methods.table(self.arguments[0]))


class HardInputs(SphinxDirective):
    """`{hard-inputs}`: the table of the record `results/hard_inputs.json`."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        from benchmarks.hard_inputs import markdown

        path = pathlib.Path(self.env.srcdir).parent / "results" / "hard_inputs.json"
        return _parse(self, markdown(json.loads(path.read_text())["cells"]))


def _parse(directive: SphinxDirective, text: str) -> list[nodes.Node]:
    """Parse Markdown at the position of the directive."""
    node = nodes.Element()
    lines = StringList(text.splitlines(), source=directive.env.docname)
    directive.state.nested_parse(lines, directive.content_offset, node)
    return node.children
