"""normjax passes every row of the table of hard inputs; what peers do there is theirs."""

from __future__ import annotations

import pytest

from benchmarks import hard_inputs, peers


@pytest.mark.parametrize("case", hard_inputs.CASES, ids=lambda c: c.name)
def test_ours(case):
    assert hard_inputs.cell(case, peers.Normjax())["passes"]


@pytest.mark.standard_numerics
def test_every_installed_peer_gets_a_cell():
    found = peers.libraries()
    cell = hard_inputs.cell(hard_inputs.CASES[0], found[1])
    assert cell["text"] and cell["passes"] in (True, False)
