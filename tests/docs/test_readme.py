"""The README's Python runs as written, one block after another."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

import normjax
from normjax import recurrent

TEXT = (pathlib.Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.standard_numerics
def test_the_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(blocks) >= 4
    names: dict = {}
    for block in blocks:
        assert len(block.strip().splitlines()) <= 6, "six lines each"
        exec(block, names)


def test_its_pictures_and_files_are_there():
    root = pathlib.Path(__file__).parents[2]
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", TEXT):
        assert (root / path).exists(), path


def test_each_layer_of_its_table_is_the_line_beside_it():
    names = {**vars(normjax), **vars(recurrent), "nj": normjax, "H": 3, "T": 4}
    table = TEXT[TEXT.index("## The recurrent family") : TEXT.index("## Experiments")]
    for name, value in re.findall(r"`(\w+) = ([^`]+)`", table):
        names[name] = eval(value, names)
    pairs = re.findall(r"`(\w+\([^`]*\))` = `([^`]+)`", table)
    assert len(pairs) >= 6
    for made, written in pairs:
        assert eval(made, names) == eval(written, names), made


def test_its_table_of_hard_inputs_is_that_of_the_record():
    from benchmarks.hard_inputs import markdown

    root = pathlib.Path(__file__).parents[2]
    record = json.loads((root / "results" / "hard_inputs.json").read_text())
    assert markdown(record["cells"]) in TEXT
