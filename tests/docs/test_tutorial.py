"""docs/tutorial.md is run as it stands, in a clone: files, commands, figure, verdict."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

from experiments.ledger import inference

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "tutorial.md").read_text()


def files():
    """The files of the tutorial: each is named before its code."""
    return dict(re.findall(r"Write `([\w/]+\.py)`[^\n]*:\n\n```python\n(.*?)```", TEXT, re.S))


def commands(title):
    """The commands of a section."""
    section = re.search(rf"^## {title}[^\n]*\n(.*?)(^## |\Z)", TEXT, re.S | re.M)[1]
    return [
        line
        for block in re.findall(r"```sh\n(.*?)```", section, re.S)
        for line in block.splitlines()
    ]


def test_every_block_is_a_file_or_commands():
    assert list(files()) == ["mine/make.py", "mine/model.py", "configs/mine/claim_99_stripes.py"]
    for text in files().values():
        compile(text, "tutorial", "exec")
    sections = ("Data", "One run", "Five seeds", "The verdict")
    assert sum(len(commands(title)) for title in sections) == TEXT.count("\npython") + 2
    assert TEXT.count("```python") == len(files())


@pytest.mark.slow
def test_the_tutorial_runs(shell, tmp_path):
    """Two seeds and four replicates in place of five; the model's own module is NNX."""
    for name, text in files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "configs" / "mine" / "__init__.py").write_text("")
    for title in ("Data", "One run"):
        for command in commands(title):
            out = shell(command)
    assert "runs/renorm" in out and "population" in out
    for command in commands("Five seeds"):
        shell(command.replace("--seeds=5", "--seeds=2"))
    assert (tmp_path / "runs/stripes/curves.png").stat().st_size > 10_000
    table = (tmp_path / "runs/stripes/table.md").read_text()
    assert "bn" in table and "gn" in table
    *commit, run = commands("The verdict")
    for command in commit:
        shell(command)
    out = shell(f"{run} --replicates=4")
    assert any(f"99a {verdict}" in out for verdict in inference.VERDICTS[:4])
    assert "4 replicates" in out and "99a" in out
    record = json.loads((tmp_path / "results/claims/99/stripes.json").read_text())
    assert record["registered"]["commit"] and record["replicates"] == 4
    assert set(record["arms"]) == {"bn", "gn"}
