"""Chooses the cases that `make test` runs; `make test-slow` runs their close relatives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest


def few(cases: Mapping[str, Any] | Iterable[str], *fast: str) -> list[Any]:
    """Return the parameters of a test, of which all but the named ones are slow.

    Args:
        cases: by name; a tuple is several arguments. Names alone stand for themselves.
        fast: names of the cases that `make test` runs.
    """
    table = cases if isinstance(cases, Mapping) else {name: name for name in cases}
    unknown = set(fast) - table.keys()
    assert fast and not unknown, f"no cases named {sorted(unknown)}; cases: {', '.join(table)}"
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            id=name,
            marks=() if name in fast else pytest.mark.slow,
        )
        for name, case in table.items()
    ]
