"""Fixtures of the recurrent family."""

from __future__ import annotations

import pytest

from normjax.recurrent import _input_terms


@pytest.fixture
def force_schedule(monkeypatch):
    """Return a function that fixes when input terms are made, in layers of any kind."""

    def force(schedule):
        monkeypatch.setattr(_input_terms, "input_schedule", lambda *call: schedule)

    return force


@pytest.fixture(params=["before_loop", "measure_in_loop", "in_loop"])
def each_schedule(request, force_schedule):
    """Run a test once for each schedule."""
    force_schedule(request.param)
