"""What is computed and not trained: every fact in float64, its check, its record and its page."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from configs.computed import through_time
from experiments import computed
from experiments.ledger import computed_facts, registry

ROOT = pathlib.Path(__file__).parents[2]
FACTS = computed_facts.facts()
RECORD = json.loads((ROOT / "results" / "computed.json").read_text())
QUICK = ("tanh_derivative", "rms_is_layer_of_centred")
# Through many steps of batch norm rounding grows without bound, and with it in Newton's sweeps.
ROUGH = ("gradient_by_gamma", "newton_by_gamma")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in FACTS]
)
def test_a_fact_holds_and_is_what_was_recorded(name, request):
    fact = FACTS[name]
    if fact.needs_data:
        request.getfixturevalue("data_dir")
    numbers = fact.numbers()
    assert fact.holds(numbers)
    stored = next(entry["numbers"] for entry in RECORD["facts"] if entry["name"] == name)
    assert list(stored) == list(numbers)
    if name not in ROUGH:
        ours, theirs = list(numbers.values()), list(stored.values())
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", FACTS)
def test_a_check_refuses_other_numbers(name):
    (numbers,) = (entry["numbers"] for entry in RECORD["facts"] if entry["name"] == name)
    assert FACTS[name].holds(numbers)
    assert not FACTS[name].holds(dict.fromkeys(numbers, 1.0))
    assert not FACTS[name].holds(dict.fromkeys(numbers, float("nan")))


def test_the_derivative_of_tanh_is_its_integral():
    from scipy import integrate, stats

    for name, value in through_time.derivatives().items():
        deviation = float(name.split()[1])

        def integrand(z, s=deviation):
            return stats.norm.pdf(z) * (1 - np.tanh(s * z) ** 2)

        np.testing.assert_allclose(value, integrate.quad(integrand, -12, 12)[0], atol=1e-8)


def test_numbers_of_claims_that_moved_are_used_once():
    moved = [fact.number for fact in FACTS.values() if fact.number]
    assert sorted(moved) == [21, 26, 27, 29, 36]
    assert not set(moved) & set(registry.files())
    for fact in FACTS.values():
        assert len(fact.title) <= 70 and fact.statement and fact.source and fact.expect


def test_the_record_is_of_these_facts_and_the_page_is_made_of_it():
    said = ("title", "statement", "source", "expect", "note", "number")
    entries = {entry["name"]: entry for entry in RECORD["facts"]}
    assert list(entries) == list(FACTS), "run: python -m experiments.computed"
    for name, fact in FACTS.items():
        assert {key: entries[name][key] for key in said} == {k: getattr(fact, k) for k in said}
        assert entries[name]["holds"]
    page = (ROOT / "docs" / "computed.md").read_text()
    assert page == computed.page(RECORD), "run: python -m experiments.computed"
    assert "rewritten after its first run" in page  # claim 26 says so


def test_a_fact_that_does_not_hold_says_so_on_the_page():
    entry = {**RECORD["facts"][0], "holds": False}
    page = computed.page({**RECORD, "facts": [entry]})
    assert "0 of 1 hold" in page and "**does not hold**" in page
