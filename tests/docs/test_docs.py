"""The site's code runs, its pages name everything public, and it builds without a warning."""

from __future__ import annotations

import importlib
import json
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = ("index", "choose", "recipes", "porting", "recurrent")
# Seconds of compilation each; what these sections say has tests of its own, too.
SLOW = (
    *("Packed sequences", "Segments: graphs and packed sequences", "Resets and skipped steps"),
    *("CrossQ: batch norm in a critic without target network", "Masks", "Long sequences"),
    *("Recurrent actor-critic over rollouts", "Parallel in time", "I have …, I write …"),
    *("Fold for serving", "Statistics for evaluation"),
)
MODULES = ("normjax", "normjax.recurrent", "normjax.linen", "normjax.nnx", "normjax.analysis")


def sections():
    """Each section of each page that has code: `(page, title, its blocks after the page's first)`.

    A page's blocks before its first section are what every section starts with.
    """
    found = []
    for page in PAGES:
        parts = re.split(r"^## ", (DOCS / f"{page}.md").read_text(), flags=re.M)
        head = re.findall(r"```python\n(.*?)```", parts[0], re.S)
        for part in parts[1:]:
            blocks = re.findall(r"```python\n(.*?)```", part, re.S)
            if blocks:
                found.append((page, part.splitlines()[0], [*head, *blocks]))
    return found


def test_there_are_many():
    assert len(sections()) >= 20
    assert set(SLOW) < {title for _, title, _ in sections()}


@pytest.mark.standard_numerics
@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param(blocks, id=f"{page}: {title}", marks=pytest.mark.slow if title in SLOW else ())
        for page, title, blocks in sections()
    ],
)
def test_a_sections_code_runs(blocks):
    for peer in ("torch", "haiku", "equinox"):
        if any(re.search(rf"^import {peer}\b", block, re.M) for block in blocks):
            pytest.importorskip(peer, reason=f"{peer} is absent: make peers")
    if any(".serialize(" in block for block in blocks):
        pytest.importorskip("flatbuffers", reason="Exported.serialize needs flatbuffers")
    # A module of its own, as dataclasses such as Flax's look theirs up by name.
    module = types.ModuleType("docs_page")
    sys.modules["docs_page"] = module
    try:
        for block in blocks:
            exec(compile(block, "docs", "exec"), module.__dict__)
    finally:
        del sys.modules["docs_page"]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_entry(module):
    """`{api} module` without names is all of them; else each is in one list."""
    text = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    listed: list[str] = []
    for name, body in re.findall(r"```\{api\} (\S+)\n(.*?)```", text, re.S):
        if name == module:
            listed += body.split() or public(module)
    assert sorted(listed) == sorted(public(module)), "add new names to a page of docs/api/"


def public(module: str) -> list[str]:
    return [n for n in importlib.import_module(module).__all__ if not n.startswith("__")]


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda p: p.stem)
def test_names_in_the_text_exist(path):
    from normjax import linen, recurrent

    for alias, home in (("nj", importlib.import_module("normjax")), ("recurrent", recurrent)):
        for name in re.findall(rf"`{alias}\.([A-Za-z_]\w*)", path.read_text()):
            assert hasattr(home, name), f"{alias}.{name}"
    for name in re.findall(r"`(?:normjax\.)?linen\.([A-Z]\w*)", path.read_text()):
        assert hasattr(linen, name), name


def test_measured_numbers_are_in_the_records():
    """Percentages of the recurrent guide are those of the README and of `results/`."""
    run = ROOT / "results" / "pmnist_1500_steps"
    records = "".join(
        path.read_text() for path in (ROOT / "README.md", run / "README.md", run / "table.md")
    )
    final = json.loads((run / "bn_lstm" / "final.json").read_text())
    records += "".join(f" {100 * of['accuracy']:.2f} %" for of in final["test"].values())
    claims = ("claims/45/pmnist49.json", "withdrawn/population_batches/01_pmnist49.json")
    for name in claims:
        metrics = json.loads((ROOT / "results" / name).read_text())["arms"]["bn_lstm"]["metrics"]
        for rates in (v for k, v in metrics.items() if "accuracy" in k):
            records += "".join(f" {100 * value:.1f} %" for rate in rates for value in rate)
    shared = json.loads((ROOT / "results" / "claims" / "04" / "pmnist49.json").read_text())
    for name, rates in shared["arms"]["bn_lstm"]["metrics"].items():
        if name.startswith("accuracy."):
            records += "".join(f" {100 * np.mean(rate):.1f} %" for rate in rates)
    numbers = re.findall(r"\d+\.\d+ %", (DOCS / "recurrent.md").read_text())
    assert len(numbers) > 2
    for number in numbers:
        assert number in records, number


@pytest.fixture(scope="module")
def site():
    """The site's own extension, of which the tables and the coverage need no Sphinx."""
    sys.path.insert(0, str(DOCS / "_ext"))
    from normjax_docs import methods, names

    yield types.SimpleNamespace(methods=methods, names=names)
    sys.path.remove(str(DOCS / "_ext"))
    for name in [n for n in sys.modules if n.split(".")[0] == "normjax_docs"]:
        del sys.modules[name]


def test_the_tables_have_every_method(site):
    import normjax as nj

    rows = site.methods.norms()
    shown = {r.name for of_group in site.methods.GROUPS.values() for r in rows if of_group(r)}
    shown |= {r.name for r in site.methods.reparams()}
    for name in nj.__all__:
        hint = getattr(getattr(nj, name), "__annotations__", {}).get("return")
        assert hint not in ("Norm", "Reparam") or name in shown, name


def test_a_row_says_what_the_code_does(site):
    row = site.methods.norm("batch_norm")
    assert (row.params, row.state) == ("`scale`, `bias`", "`mean`, `var`")
    assert (row.eps, row.mask) == ("1e-5", "yes")
    assert row.paper.startswith("Ioffe, Szegedy") and row.formula.startswith("y = \\gamma")


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("batch_norm", "N, H, W"),
        ("layer_norm", "C"),
        ("instance_norm", "H, W"),
        ("group_norm", "H, W, part of C"),
        ("local_response_norm", "part of C"),
        ("evo_norm_b0", "N, H, W"),
        ("iterative_norm", "N, H, W, C"),
        ("identity", ""),
    ],
)
def test_the_set_of_a_method_is_found(site, name, axes):
    assert site.methods.norm(name).axes == axes


def test_a_name_without_a_page_is_reported(site):
    documented = {f"{m}.{n}" for m in site.names.MODULES for n in public(m)}
    assert site.names.missing(documented) == []
    short = documented - {"normjax.linen.BatchNorm"}
    assert site.names.missing(short) == ["normjax.linen.BatchNorm"]


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="sphinx is absent: pip install --group docs")
    command = [sys.executable, "-m", "sphinx", "-E", "-W", "--keep-going", "-q", "-b", "html"]
    ran = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stderr
    assert "batch_norm" in (tmp_path / "html" / "methods.html").read_text()
