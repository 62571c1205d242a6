"""Reports users' mistakes: one paragraph that says what to write instead, and exit status 2."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
        hint = nearest(value, known)
        raise UsageError(f"{what}={short(value)} is unknown; known: {names}.{hint}")


def check_number(
    key: str,
    value: Any,
    low: float,
    high: float = float("inf"),
    *,
    open_low: bool = False,
    open_high: bool = False,
    integer: bool = False,
) -> None:
    """Require a number within bounds."""
    kinds = int if integer else int | float
    bad = isinstance(value, bool) or not isinstance(value, kinds)
    low_is_kept = not bad and (low < value if open_low else low <= value)
    if not low_is_kept or not (value < high if open_high else value <= high):
        kind = "an integer" if integer else "a number"
        relation = "greater than" if open_low else "at least"
        below = "less than" if open_high else "at most"
        upper = "" if high == float("inf") else f" and {below} {_plain(high)}"
        raise UsageError(
            f"config.{key}={short(value)} must be {kind} {relation} {_plain(low)}{upper}."
        )


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def short(value: Any, limit: int = 80) -> str:
    """Return a value's repr, cut to a length that fits in a message."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= limit else f"{text[:limit]}..."


def literal(text: str) -> Any:
    """Read a value of a command line: a number, True, False, None, a list, and else a word."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def told(error: Exception, path: str = "") -> str:
    """Say in a line what a user's code raised, and where: in `path`, if it is given."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if path in ("", f.filename)]
    file, line = (frames[-1].filename, frames[-1].lineno) if frames else (None, None)
    text = str(error)
    if isinstance(error, SyntaxError):
        file, line, text = error.filename, error.lineno, error.msg
    at = f", {os.path.basename(file or '')} line {line}" if line else ""
    return f"{type(error).__name__}: {' '.join(text.split())[:300]}{at}"


def imported(key: str, name: Any, kind: str, fits: Callable[[Any], bool]) -> Any:
    """Import what a key of the config names as "package.module:name", a class or a function."""
    where = f"{key}={short(name)}"
    module, _, attribute = str(name).partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise UsageError(f"{where} names no {kind} of a module; write 'package.module:{kind}'.")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise UsageError(f"{where} imports {error.name!r}, which is not installed.") from error
        raise UsageError(
            f"{where}: there is no module {module!r} in {os.getcwd()} or on PYTHONPATH; write "
            "PYTHONPATH=FOLDER before the command."
        ) from error
    except Exception as error:  # whatever the file raises
        raise UsageError(f"{where} cannot be imported: {told(error)}.") from error
    value = getattr(found, attribute, None)
    if not fits(value):
        names = [k for k, v in vars(found).items() if fits(v)]
        hint = nearest(attribute, names)
        raise UsageError(f"{where}: {module} has no {kind} {attribute!r}.{hint}")
    return value


def check_like(where: str, values: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Require known keys, and values of the types that the usual ones have."""
    kinds: dict[type, tuple[Any, str]] = {
        bool: (bool, "True or False"),
        int: (int, "an integer"),
        float: (int | float, "a number"),
        str: (str, "a word"),
        tuple: (list | tuple, "a list"),
        dict: (Mapping, "a group with a name"),
    }
    for key, value in values.items():
        if key not in usual:
            raise UsageError(f"{where}.{key} is no key.{nearest(key, usual)}")
        kind, words = kinds[type(usual[key])]
        truth = isinstance(value, bool) and kind is not bool
        if truth or not isinstance(value, kind):
            raise UsageError(f"{where}.{key}={short(value)} must be {words}, as {usual[key]!r} is.")
