"""The examples of CONTRIBUTING.md are real: the norm passes every battery, the claim is run."""

from __future__ import annotations

import json
import pathlib
import re
import sys

import pytest

from experiments.config import validate
from experiments.ledger import registry, table
from tests._support import check, ledger

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(title, language="python"):
    """The code of a section, block by block."""
    section = re.search(rf"^## {title}\n(.*?)^## ", TEXT, re.S | re.M)[1]
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)


@pytest.fixture(scope="module")
def sample():
    """The sample that the text's code blocks make, run one after another."""
    # A module of its own, so that the value pickles as one of normjax does.
    import types

    module = types.ModuleType("contributed")
    sys.modules["contributed"] = module
    code = blocks("Add a norm in five steps")
    assert len(code) == 3
    exec("\n".join(code), module.__dict__)
    yield module.SAMPLE
    del sys.modules["contributed"]


# It keeps no statistics, so that both modes are one program: `modes` sees to that.
@pytest.mark.parametrize("battery", [b for b in check.ALL if b not in check.RUNNING])
def test_the_example_passes(sample, battery, monkeypatch):
    import normjax as nj

    # Steps 2 and 3 make it public.
    monkeypatch.setattr(nj, "peak_norm", sys.modules["contributed"].peak_norm, raising=False)
    monkeypatch.setattr(nj, "__all__", [*nj.__all__, "peak_norm"])
    check.ALL[battery](sample)


CLAIM = "\n\n".join(blocks("Add a claim in five steps"))


def test_the_claim_can_be_declared(tmp_path):
    study = tmp_path / "contributed"
    study.mkdir()
    (study / "__init__.py").write_text("")
    (study / "claim_37_rms.py").write_text(CLAIM)
    with ledger.declared(tmp_path):
        module = registry.module(37)
        words = " ".join(table.description(module).split())
        for scale in module.GROUP.scales:
            for arm in module.GROUP.arms:
                checked = validate.check(module.get_config(arm, scale.name))
                assert checked["data"]["train_size"] == scale.at
    assert words.startswith("Claim 37: RMS norm in place of layer norm")
    assert "rms − ln, test.population.accuracy (not worse)" in words
    assert 37 not in registry.files(), "give the example a number that is free"


@pytest.mark.slow
def test_a_stranger_can_add_the_claim(shell, tmp_path):
    """In a repository of its own, by the commands of the text; four replicates at one rate."""
    (tmp_path / "configs" / "mlp_cnn" / "claim_37_rms.py").write_text(
        CLAIM.replace("rates=(0.03, 0.1, 0.3)", "rates=(0.1,)")
    )
    read, draft = blocks("Add a claim in five steps", "sh")[0].splitlines()
    commit, run, _ = blocks("Add a claim in five steps", "sh")[1].splitlines()
    assert "not run" in shell(read)
    assert "a draft" in shell(draft)
    assert "is not committed as it is now" in shell(run, status=2)
    shell(commit)
    out = shell(f"{run} --replicates=4 --workdir=runs/draft")  # the draft's runs, trained once
    assert "4 replicates" in out and "37a" in out
    record = json.loads((tmp_path / "results/claims/37/digits300.json").read_text())
    assert record["registered"]["commit"] and record["replicates"] == 4
    shell("python -m experiments.report --results")
    assert "RMS norm tests no worse than layer norm" in (tmp_path / "RESULTS.md").read_text()
