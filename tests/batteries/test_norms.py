"""Every norm of `normjax.testing` through every battery."""

from __future__ import annotations

import pytest

import normjax as nj
from normjax import testing
from tests._support import check

# Seconds each, and close relatives of what `make test` runs in mode "batch", unmasked.
SLOW = ("transforms_running", "gradients_running", "gradients_masked")


def cases():
    """Of several samples of one factory `make test` runs the first; kernels have own tests."""
    for sample, again in check.with_repeats(testing.SAMPLES):
        for battery in check.ALL:
            marks = [pytest.mark.slow] if again or battery in SLOW else []
            yield pytest.param(sample, battery, id=f"{sample.name}-{battery}", marks=marks)


@pytest.mark.parametrize("sample, battery", list(cases()))
def test_norm(sample, battery):
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
