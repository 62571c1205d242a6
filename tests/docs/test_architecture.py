"""The folders' imports: no module needs itself, however far around."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def modules(package):
    """Map the name of each module of a package to its file."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def top_level(body):
    """Yield the imports that run when a module is imported: not those in functions or for types."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "handlers", "finalbody"):
                yield from top_level(getattr(node, field, []))


def imports(tree, known):
    """Yield the modules of a package that a module's code imports itself.

    `from package import name` needs the package's `__init__` where `name` is not a module of it.
    """
    for node in top_level(tree.body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            full = f"{node.module}.{alias.name}"
            if full in known or node.module in known:
                yield full if full in known else node.module


def cycle(graph):
    """Find a path from some module back to itself, or return None."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        path.append(name)
        for other in sorted(graph[name]):
            if around := visit(other):
                return around
        done.add(path.pop())
        return None

    return next((around for name in sorted(graph) if (around := visit(name))), None)


@pytest.mark.parametrize("package", ["normjax", "experiments"])
def test_no_import_goes_in_a_circle(package):
    known = modules(package)
    graph = {
        name: set(imports(ast.parse(path.read_text()), known)) - {name}
        for name, path in known.items()
    }
    assert sum(map(len, graph.values())) > len(graph)  # it reads them
    around = cycle(graph)
    assert around is None, " -> ".join(around)


def test_a_circle_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
