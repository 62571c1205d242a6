"""Reads split expressions of TFDS, such as "train[:90%]", as intervals of the splits of a set."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.usage import UsageError, nearest

VALIDATION = ("validation", "valid", "val")  # what sets call it
Part = tuple[str, int, int]  # a split of the set, from, to


def _intervals(name: str, key: str, spec: str, sizes: Mapping[str, int]) -> list[Part]:
    """Read a split expression such as "train[:90%]+test"."""
    import tensorflow_datasets as tfds

    infos = {split: types.SimpleNamespace(num_examples=n) for split, n in sizes.items()}
    try:
        read = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except Exception as error:  # whatever TFDS raises
        known = ", ".join(f"{split} ({size:,})" for split, size in sizes.items())
        raise UsageError(
            f"config.data.{key}={spec!r} is no split of {name}, which has {known}; write for "
            f"instance --config.data.{key}='{next(iter(sizes))}[:90%]'."
            f"{nearest(spec.partition('[')[0], sizes)}"
        ) from error
    whole = [(one.splitname, one.from_ or 0, one.to) for one in read]
    parts = [(split, a, sizes[split] if b is None else b) for split, a, b in whole]
    return [(split, a, b) for split, a, b in parts if b > a]


def count(parts: Sequence[Part]) -> int:
    """Count the examples of some intervals."""
    return sum(b - a for _, a, b in parts)


def without(parts: Sequence[Part], taken: Sequence[Part]) -> list[Part]:
    """Leave out of some intervals what others have."""
    left = list(parts)
    for split, a, b in taken:
        cut: list[Part] = []
        for other, x, y in left:
            if other != split or b <= x or y <= a:
                cut.append((other, x, y))
                continue
            cut += [(other, x, a)] if x < a else []
            cut += [(other, b, y)] if b < y else []
        left = cut
    return left


def last(parts: Sequence[Part], examples: int) -> list[Part]:
    """Return the last so many examples of some intervals."""
    found: list[Part] = []
    for split, a, b in reversed(parts):
        start = max(a, b - examples)
        if start < b:
            found.insert(0, (split, start, b))
        examples -= b - start
    return found


def _number(valid: str) -> float | None:
    try:
        return float(valid)
    except ValueError:
        return None


def parts(name: str, sizes: Mapping[str, int], options: Mapping[str, Any]) -> dict[str, list[Part]]:
    """Return the intervals of train, valid and test, by the keys of `config.data`.

    Args:
        name: of the set, for messages.
        sizes: examples of each of its splits.
        options: `config.data`; "train", "valid" and "test" are expressions, or empty.
    """
    asked = {key: options.get(key, "") for key in ("train", "valid", "test")}
    found: dict[str, list[Part]] = {}
    for key in ("train", "test"):
        if not asked[key] and key not in sizes:
            known = ", ".join(sizes)
            raise UsageError(
                f"data set {name!r} has no split {key!r}, but {known}; write for instance "
                f"--config.data.train='{next(iter(sizes))}[:80%]' "
                f"--config.data.test='{next(iter(sizes))}[80%:]'."
            )
        found[key] = _intervals(name, key, asked[key] or key, sizes)
    if not asked["train"]:
        found["train"] = without(found["train"], found["test"])
    own = next((split for split in VALIDATION if split in sizes), "")
    number = _number(asked["valid"] or ("" if own else "0.1"))
    if number is None:
        found["valid"] = _intervals(name, "valid", asked["valid"] or own, sizes)
        if not asked["train"]:
            found["train"] = without(found["train"], found["valid"])
    else:
        whole = count(found["train"])
        held = round(number * whole) if 0 < number < 1 else int(number)
        if whole and (not 0 < held < whole or (number >= 1 and held != number)):
            raise UsageError(
                f"config.data.valid={asked['valid'] or '0.1'!r} of {whole:,} training examples of "
                f"{name} leaves one of both empty; write a number from 1 to {max(1, whole - 1)}, a "
                "share such as 0.1, or a split expression."
            )
        found["valid"] = last(found["train"], held)
        found["train"] = without(found["train"], found["valid"])
    for key, intervals in found.items():
        if not count(intervals):
            raise UsageError(
                f"the {key} split of {name} is empty (config.data.{key}={asked[key]!r}; the set "
                f"has {', '.join(f'{k} {n:,}' for k, n in sizes.items())})."
            )
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        shared = count(found[one]) - count(without(found[one], found[other]))
        if shared:
            raise UsageError(
                f"config.data.{one} and config.data.{other} share {shared:,} examples of {name}; "
                "write split expressions that share none."
            )
    return found
