"""Reports users' mistakes: one paragraph that says what to write instead, and exit status 2."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class UsageError(ValueError):
    """A mistake in a command, a config or the data; its message says what to write instead."""


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Turn a usage error into its message and exit status 2 instead of a traceback."""
    try:
        yield
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ' Did you mean …?' with the known name nearest to a word, or nothing."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_of(what: str, value: Any, known: Sequence[str]) -> None:
    """Require one of the known values."""
    if value not in known:
        names = ", ".join(known)
        raise UsageError(f"{what}={value!r} is unknown; known: {names}.{nearest(value, known)}")


def check_number(
    key: str, value: Any, low: float, high: float = float("inf"), *, open_low=False
) -> None:
    """Require a number within bounds."""
    bad = isinstance(value, bool) or not isinstance(value, int | float)
    if bad or not (low < value if open_low else low <= value) or not value <= high:
        relation = "greater than" if open_low else "at least"
        upper = "" if high == float("inf") else f" and at most {high:g}"
        raise UsageError(f"config.{key}={value!r} must be a number {relation} {low:g}{upper}.")
