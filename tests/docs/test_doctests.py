"""The examples in docstrings, run as a user's session: under JAX's default numerics."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import io
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROMPT = ">>> "


def documented(path: pathlib.Path) -> list[str]:
    """Names of what has an example in its docstring, found without importing anything."""

    def walk(node: ast.AST, name: str):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                inner = f"{name}.{child.name}"
                if PROMPT in (ast.get_docstring(child) or ""):
                    yield inner
                yield from walk(child, inner)

    tree = ast.parse(path.read_text())
    first = [""] if PROMPT in (ast.get_docstring(tree) or "") else []
    return [*first, *walk(tree, "")]


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


EXAMPLES = {
    module_of(path): names
    for folder in ("normjax", "experiments")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if (names := documented(path))
}


def examples(name: str) -> list[doctest.DocTest]:
    """Tests of one module, its session starting with the module's names."""
    module = importlib.import_module(name)
    return [t for t in doctest.DocTestFinder().find(module, name) if t.examples]


@pytest.mark.standard_numerics
@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring_examples(name):
    tests = examples(name)
    # None is missed: a decorator that hides a function from doctest would hide it for good.
    assert sorted(t.name for t in tests) == sorted(name + what for what in EXAMPLES[name])
    said = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        runner.run(test, out=said.write)
    assert runner.failures == 0, said.getvalue()


def test_a_wrong_docstring_example_fails():
    """Of this very machinery: a sum that is not its answer is reported."""
    wrong = inspect.cleandoc(
        """
        >>> 1 + 1
        3
        """
    )
    test = doctest.DocTestParser().get_doctest(wrong, {}, "wrong", None, None)
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, out=lambda text: None)
    assert runner.failures == 1


def test_docstring_examples_are_found():
    assert sum(map(len, EXAMPLES.values())) > 100
