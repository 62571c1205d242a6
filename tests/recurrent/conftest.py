"""Fixtures of the recurrent family."""

from __future__ import annotations

import functools

import pytest

from normjax.recurrent import _input_terms


@pytest.fixture
def force_schedule(monkeypatch):
    """Return a function that fixes when input terms are made, whatever machine runs the tests."""
    choose = _input_terms.input_schedule

    def force(schedule):
        fixed = functools.partial(choose, schedule=schedule)
        monkeypatch.setattr(_input_terms, "input_schedule", fixed)

    return force


@pytest.fixture(params=["before_loop", "measure_in_loop", "in_loop"])
def each_schedule(request, force_schedule):
    """Run a test once for each schedule."""
    force_schedule(request.param)
