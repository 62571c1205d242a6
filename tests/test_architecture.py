"""Rules of the house that no linter knows, read from the source of normjax and experiments."""

from __future__ import annotations

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("normjax", "experiments")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

# What takes a mean, a variance, a sum or a length of values, on one device or over several, as a
# function (`jnp.mean`, `lax.psum`) or as a method (`x.mean()`).
AVERAGES = {
    *("average", "mean", "median", "std", "sum", "var", "cov", "corrcoef", "norm"),
    *("nanmean", "nanmedian", "nanstd", "nansum", "nanvar", "logsumexp", "reduce_sum"),
    *("psum", "psum_scatter", "pmean", "segment_sum", "reduce_window"),
}
# Modules whose functions of these names are JAX's or NumPy's.
NUMERIC = ("jnp", "np", "lax", "jax", "jsp", "numpy", "linalg", "nn", "ops", "scipy", "special")
METHODS = {"mean", "std", "sum", "var"}  # of an array

# Folders that average: the statistics of all norms, and kernels, which make the same numbers.
HOMES = ("normjax/statistics/", "normjax/kernels/")
# What averages elsewhere, and why that is no statistic of a norm.
ALLOWED = {
    # Diagnostics of a finished computation: norms of gradients, histograms, inner products.
    "normjax/analysis/": None,
    # The Euclidean length of a weight vector: a reparametrization's formula, on no data.
    "normjax/weights/_direction.py": {"length", "unit"},
    # A diagnostic: the length of the hidden state, whose mean `statistics` then takes.
    "normjax/recurrent/_recurrent.py": {"Recurrent.apply_with_info"},
}


def averages(path: pathlib.Path):
    """Line, function and call of each average in a file."""
    tree = ast.parse(path.read_text())
    brought = {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    functions = {
        name
        for name, (module, origin) in brought.items()
        if module.split(".")[0] in ("jax", "numpy") and origin in AVERAGES
    }

    def averages_itself(node: ast.AST) -> bool:
        match node:
            case ast.Name(id=name):
                return name in functions
            # A use of the function is enough: it may be handed to `jax.tree.map`.
            case ast.Attribute(value=ast.Name(id=of) | ast.Attribute(attr=of), attr=name) if (
                of in NUMERIC
            ):
                return name in AVERAGES
            # `x.mean()`, but not `_moments.mean()` of a module.
            case ast.Call(func=ast.Attribute(value=value, attr=name)):
                of_module = isinstance(value, ast.Name) and value.id in {*brought, *NUMERIC}
                return name in METHODS and not of_module
        return False

    def walk(node: ast.AST, inside: str):
        for child in ast.iter_child_nodes(node):
            name = inside
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                name = f"{inside}.{child.name}".lstrip(".")
            if averages_itself(child):
                yield child.lineno, name, ast.unparse(child)
            yield from walk(child, name)

    yield from walk(tree, "")


def violations(path: pathlib.Path, where: str):
    """Averages of a file, but for those that are allowed at `where`."""
    if where.startswith(HOMES):
        return []
    homes = [functions for place, functions in ALLOWED.items() if where.startswith(place)]
    if None in homes:
        return []
    allowed = set().union(*homes)
    return [
        f"{where}:{line}: {call} in {function or 'the module'}"
        for line, function, call in averages(path)
        if function not in allowed
    ]


def test_only_statistics_and_kernels_average_anything():
    """One place to mend where a mean is inexact, and one that knows masks, weights and devices."""
    found = []
    for path in sorted((ROOT / "normjax").rglob("*.py")):
        found += violations(path, path.relative_to(ROOT).as_posix())
    assert not found, "take them from normjax.statistics:\n" + "\n".join(found)


def test_the_list_of_what_may_average_is_exact():
    for place, functions in ALLOWED.items():
        path = ROOT / place
        assert path.exists(), place
        if functions is not None:
            assert {function for _, function, _ in averages(path)} == functions, place


@pytest.mark.parametrize(
    "line",
    [
        "jnp.mean(x, 0)",
        "np.var(x)",
        "x.sum(axis=0)",
        "(x * x).mean()",
        "lax.psum(x, 'i')",
        "jax.lax.pmean(x, 'i')",
        "jnp.linalg.norm(x)",
        "jax.tree.map(jnp.sum, x)",
        "psum(x, 'i')",
    ],
)
def test_an_average_elsewhere_is_found(tmp_path, line):
    path = tmp_path / "_new.py"
    path.write_text(f"from jax.lax import psum\ndef moments(x):\n    return {line}\n")
    found = violations(path, "normjax/norms/_new.py")
    assert found[0].startswith("normjax/norms/_new.py:3: ") and found[0].endswith(" in moments")
    assert not violations(path, "normjax/statistics/_new.py")


@pytest.mark.parametrize("line", ["state.mean", "Running(mean=x)", "_moments.mean(x)", "sum(x)"])
def test_names_of_statistics_and_sums_of_python_are_no_averages(tmp_path, line):
    path = tmp_path / "_new.py"
    path.write_text(f"from normjax import _moments\ndef moments(x):\n    return {line}\n")
    assert not violations(path, "normjax/norms/_new.py")


def test_no_file_has_over_500_lines():
    long = {p.relative_to(ROOT).as_posix(): n for p in SOURCES if (n := _lines(p)) > 500}
    assert not long, "split them"


def _lines(path: pathlib.Path) -> int:
    return len(path.read_text().splitlines())


def test_no_file_is_called_utils():
    """A file is named after what it holds."""
    vague = {"utils", "util", "helpers", "misc", "common"}
    assert not [p for p in SOURCES if p.stem.strip("_") in vague]


def test_no_import_circle():
    """Imports inside of functions count too: they hide a circle, and do not open it."""

    def imports(path: pathlib.Path):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in modules else node.module

    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in SOURCES
    }
    graph = {name: {*imports(path)} & modules.keys() - {name} for name, path in modules.items()}
    assert sum(map(len, graph.values())) > len(modules) / 2
    order = [*graphlib.TopologicalSorter(graph).static_order()]  # raises and names a circle
    assert order.index("normjax.base") < order.index("normjax")
