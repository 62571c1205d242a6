"""Finds what is computed and not trained: identities and numbers at initialization, with checks.

A file `configs/computed/NAME.py` declares `FACTS`. Their numbers have no noise of training in them,
so they need no replicates and no verdicts: they hold or they do not.
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Mapping

import jax

import configs.computed as folder

Numbers = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Fact:
    """A statement of the literature that is decided by computing it.

    Attributes:
        name: of its entry, unique.
        title: the statement in at most 70 characters.
        statement: the statement, whole.
        source: where it is made.
        expect: what `holds` checks, in words, with the tolerance.
        compute: returns numbers by name, in float64.
        holds: whether they are as expected.
        number: of the group of claims that it was before it moved here; 0 for none.
        note: what a reader should know besides.
        needs_data: whether MNIST must be at hand.
    """

    name: str
    title: str
    statement: str
    source: str
    expect: str
    compute: Callable[[], Mapping[str, float]]
    holds: Callable[[Mapping[str, float]], bool]
    number: int = 0
    note: str = ""
    needs_data: bool = False

    def numbers(self) -> Numbers:
        """Compute the numbers in float64, as plain floats."""
        with jax.enable_x64(True):
            return {name: float(value) for name, value in self.compute().items()}


def facts() -> dict[str, Fact]:
    """Return all facts by name: those with a number first, then in the order of the files."""
    root = pathlib.Path(next(iter(folder.__path__)))
    found: list[Fact] = []
    for path in sorted(root.glob("*.py")):
        if path.stem != "__init__":
            module = importlib.import_module(f"configs.computed.{path.stem}")
            found += module.FACTS
    found.sort(key=lambda fact: fact.number or 1000)
    named = {fact.name: fact for fact in found}
    if len(named) < len(found):
        raise ValueError(f"facts share a name: {sorted(fact.name for fact in found)}")
    return named
