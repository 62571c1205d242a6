"""Every norm of `normjax.testing` through every battery."""

from __future__ import annotations

import pytest

import normjax as nj
from normjax import testing
from normjax.kernels import _pallas
from tests._support import check

# Close relatives of what `make test` runs in mode "batch", unmasked.
SLOW = ("transforms_running", "gradients_running", "gradients_masked")


def is_slow(sample, again, battery):
    """Whether `make test` leaves a battery to `make test-slow`.

    It runs the first of several samples of one factory (kernels have own tests), and what is
    costly for the representatives of `check`.
    """
    costly = battery in check.COSTLY and sample.norm.factory not in check.REPRESENTATIVES
    return again or battery in SLOW or costly


def cases():
    """Every sample with every battery."""
    for sample, again in check.with_repeats(testing.SAMPLES):
        for battery in check.batteries(sample):
            marks = [pytest.mark.slow] if is_slow(sample, again, battery) else []
            yield pytest.param(sample, battery, id=f"{sample.name}-{battery}", marks=marks)


@pytest.mark.parametrize("sample, battery", list(cases()))
def test_norm(sample, battery):
    with _pallas.interpreted():  # those of `impl="kernel"`
        check.ALL[battery](sample)


def test_every_factory_is_in_the_list():
    """A norm that is public and not in the list would be tested by nothing."""
    made = {s.norm.factory for s in testing.SAMPLES}
    public = {
        name
        for name in nj.__all__
        if getattr(getattr(nj, name), "__annotations__", {}).get("return") in ("Norm", nj.Norm)
    }
    assert public and public <= made


def test_names_are_unique():
    names = [s.name for s in testing.SAMPLES]
    assert len(set(names)) == len(names)


def test_every_norm_is_a_representative_or_has_one():
    factories = {s.norm.factory for s in testing.SAMPLES}
    assert check.REPRESENTATIVES.keys() | check.REPRESENTED_BY.keys() == factories, (
        "name a new norm in REPRESENTATIVES or REPRESENTED_BY of tests/_support/check.py"
    )
    assert check.REPRESENTATIVES.keys().isdisjoint(check.REPRESENTED_BY)
    assert {*check.REPRESENTED_BY.values()} <= check.REPRESENTATIVES.keys()


def test_nothing_is_dropped_from_the_batteries():
    """Each battery is run by `make test` or `make test-slow`, the costly ones by both."""
    collected = list(cases())
    fast = {(c.values[0].norm.factory, c.values[1]) for c in collected if not c.marks}
    both = {(c.values[0].norm.factory, c.values[1]) for c in collected}
    for factory in check.REPRESENTATIVES:
        assert check.ALL.keys() - {*SLOW} == {b for f, b in fast if f == factory}
    for factory in check.REPRESENTED_BY:
        assert check.ALL.keys() - {*SLOW} - check.COSTLY == {b for f, b in fast if f == factory}
    assert check.ALL.keys() - {*SLOW} > check.COSTLY
    for sample in testing.SAMPLES:
        doubled = set() if sample.norm.stateful else check.RUNNING
        assert check.ALL.keys() - doubled == {b for f, b in both if f == sample.norm.factory}
