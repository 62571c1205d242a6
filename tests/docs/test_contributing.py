"""The example of CONTRIBUTING.md is real: its code passes every battery."""

from __future__ import annotations

import pathlib
import re

import pytest

from tests._support import check

TEXT = (pathlib.Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


@pytest.fixture(scope="module")
def sample():
    """The sample that the text's code blocks make, run one after another."""
    # A module of its own, so that the value pickles as one of normjax does.
    import sys
    import types

    module = types.ModuleType("contributed")
    sys.modules["contributed"] = module
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(blocks) == 3
    exec("\n".join(blocks), module.__dict__)
    yield module.SAMPLE
    del sys.modules["contributed"]


@pytest.mark.parametrize("battery", check.ALL)
def test_the_example_passes(sample, battery, monkeypatch):
    import sys

    import normjax as nj

    # Steps 2 and 3 make it public.
    monkeypatch.setattr(nj, "peak_norm", sys.modules["contributed"].peak_norm, raising=False)
    monkeypatch.setattr(nj, "__all__", [*nj.__all__, "peak_norm"])
    check.ALL[battery](sample)
