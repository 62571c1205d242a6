"""A norm is a value that checks itself: factories, `dataclasses.replace`, pickle."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import normjax as nj
from normjax import testing

SAMPLES = {type(s.norm): s.norm for s in testing.SAMPLES}
SAMPLES |= {type(s.reparam): s.reparam for s in testing.REPARAMS}
VALUES = sorted(SAMPLES.values(), key=lambda value: value.factory)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.factory)
def test_a_factory_takes_the_fields_of_its_value(value):
    """`return Value(**locals())` is right only while names and defaults agree."""
    fields = {field.name: field.default for field in dataclasses.fields(value)}
    parameters = inspect.signature(getattr(nj, value.factory)).parameters
    required = {name for name, p in parameters.items() if p.default is p.empty}
    assert set(parameters) <= set(fields)
    for name, parameter in parameters.items():
        if name in required:
            assert fields[name] is dataclasses.MISSING
        else:
            # An axis is written -1 in a signature and (-1,) in its canonical form.
            assert parameter.default == fields[name] or (fields[name] == (parameter.default,))


WRONG = {
    "eps": -1.0,
    "decay": 1.5,
    "correction": 2,
    "axes": (0, 0),
    "size": 0,
    "groups": 0,
    "group_size": 0,
    "iterations": 0,
    "r_max": 0.5,
    "d_max": -1.0,
    "partial": 0.0,
    "impl": "fast",
    "over": "all",
    "train": "none",
    "k": 0.0,
    "eps_init": 0.0,
}


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.factory)
def test_replacing_a_field_is_checked(value):
    """Every way of making a value is checked, not only its factory."""
    names = {field.name for field in dataclasses.fields(value)} & set(WRONG)
    assert names or value.factory in ("identity", "dynamic_tanh", "dynamic_erf")
    for name in names:
        # The suite's type checker refuses some of these before the value does.
        with pytest.raises((ValueError, TypeError), match=name):
            dataclasses.replace(value, **{name: WRONG[name]})
    assert dataclasses.replace(value) == value
