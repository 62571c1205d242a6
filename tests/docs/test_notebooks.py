"""Notebooks run from top to bottom, and each `.ipynb` says what its `.py` says."""

from __future__ import annotations

import pathlib

import jupytext
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
PAIRS = sorted(FOLDER.glob("*.py"))
# Eight to seventy seconds of one core each, most of it compilation.
SLOW = (
    "01_five_sets",
    "02_batch_norm_from_the_equations",
    "03_why_gamma",
    "04_statistics_through_time",
    "05_vertical_by_depth",
    "06_small_batches",
    "07_weight_space",
    "08_whitening",
    "09_bring_your_own_norm",
)
RUNS = [
    pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in SLOW else []) for p in PAIRS
]


def test_there_are_some_and_the_slow_ones_are_among_them():
    assert PAIRS and set(SLOW) < {p.stem for p in PAIRS}


@pytest.mark.parametrize("path", PAIRS, ids=lambda p: p.stem)
def test_the_pair_is_in_step(path):
    text, notebook = jupytext.read(path), jupytext.read(path.with_suffix(".ipynb"))
    cells = [[(c.cell_type, c.source) for c in n.cells] for n in (text, notebook)]
    assert cells[0] == cells[1], "make notebooks brings the pair into step"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count, "make notebooks runs what was not run"
            assert not any(o.output_type == "error" for o in cell.outputs)


@pytest.mark.filterwarnings("default")  # Jupyter's own
@pytest.mark.parametrize("path", RUNS)
def test_it_runs(path):
    import nbclient

    notebook = jupytext.read(path)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
