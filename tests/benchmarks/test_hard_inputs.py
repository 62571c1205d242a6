"""normjax passes every row of the table of hard inputs; what peers do there is theirs."""

from __future__ import annotations

import pytest

from benchmarks import hard_inputs, peers
from tests._support.few import few

# The others are run, with the rules of accelerators, by tests/statistics/test_large_accelerator.py.
FAST = (
    "layer norm, mean 1e4, std 1",
    "batch norm, constant channels",
    "batch norm, NaN under the mask, gradient too",
    "group norm, mask that only broadcasts",
    "batch norm, devices with 4 and 1 valid rows",
    "batch norm, bf16, mean 10: std of output",
)


@pytest.mark.parametrize("case", few({c.name: (c,) for c in hard_inputs.CASES}, *FAST))
def test_ours(case):
    assert hard_inputs.cell(case, peers.Normjax())["passes"]


@pytest.mark.standard_numerics
def test_every_installed_peer_gets_a_cell():
    found = peers.libraries()
    cell = hard_inputs.cell(hard_inputs.CASES[0], found[1])
    assert cell["text"] and cell["passes"] in (True, False)
