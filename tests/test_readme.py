"""The README's Python runs as written, one block after another."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

TEXT = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.standard_numerics
def test_the_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(blocks) >= 4
    names: dict = {}
    for block in blocks:
        assert len(block.strip().splitlines()) <= 6, "six lines each"
        exec(block, names)


def test_its_pictures_and_files_are_there():
    root = pathlib.Path(__file__).parent.parent
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", TEXT):
        assert (root / path).exists(), path


def test_its_table_of_hard_inputs_is_that_of_the_record():
    from benchmarks.hard_inputs import markdown

    root = pathlib.Path(__file__).parent.parent
    record = json.loads((root / "results" / "hard_inputs.json").read_text())
    assert markdown(record["cells"]) in TEXT
