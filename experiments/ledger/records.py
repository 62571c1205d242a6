"""Writes and reads the records of the claims: one JSON file for each group and scale.

`results/claims/24/mnist14.json` holds every number of every arm, rate and replicate, with the
registration, the hashes, the hardware and the time; `mnist14.npz` beside it holds which test
examples each run got right, a bit each. A record that was withdrawn stays, with the reason, in
`results/withdrawn/`.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from experiments.ledger import registry
from experiments.ledger.claims import Scale
from experiments.usage import UsageError

RESULTS = pathlib.Path("results/claims")
Answers = dict[str, np.ndarray]  # "arm/metric" -> [rates, replicates, examples], bool


def path_of(number: int, scale: str, results: pathlib.Path = RESULTS) -> pathlib.Path:
    """Return the path of a record."""
    return results / f"{number:02d}" / f"{scale}.json"


def read(study: ModuleType, scale: Scale, results: pathlib.Path = RESULTS) -> dict[str, Any] | None:
    """Read a record, if there is one; refuse it if what it answers was changed since.

    Raises:
        UsageError: if the configs, a claim's words or rule, or the list of claims differ from
            those that were run.
    """
    group = study.GROUP
    path = path_of(group.number, scale.name, results)
    if not path.exists():
        return None
    try:
        record = load(path)
        hashes, config, date = record["claims"], record["config_hash"], record["date"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); restore it from git.") from error
    again = (
        f"put it back, or withdraw the record: git mv {path} results/withdrawn/, with the reason "
        "in its README.md"
    )
    if config != registry.config_hash(study, scale):
        raise UsageError(f"the config of claim {group.number} was changed after {path}: {again}")
    now = {group.id(claim): registry.claim_hash(group, claim) for claim in group.claims}
    if late := sorted(now.keys() - hashes.keys()):
        # More replicates would otherwise enter it under a registration that does not know it.
        raise UsageError(
            f"claim {late[0]} was added after the runs of {path} ({date}): declare it in a group "
            "of its own, which shares the runs of equal configs"
        )
    for name, was in hashes.items():
        if now.get(name) != was:
            what = "was changed" if name in now else "was removed"
            raise UsageError(f"claim {name} {what} after its runs ({path}, {date}): {again}")
    return record


def load(path: pathlib.Path) -> dict[str, Any]:
    """Read a record's file as it is."""
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def read_answers(path: pathlib.Path) -> Answers:
    """Read which test examples the runs of a record got right."""
    packed = path.with_suffix(".npz")
    if not packed.exists():
        return {}
    with np.load(packed) as stored:
        return {
            name.removesuffix(".bits"): np.unpackbits(
                stored[name], axis=-1, count=int(stored[f"{name.removesuffix('.bits')}.count"])
            ).astype(bool)
            for name in stored.files
            if name.endswith(".bits")
        }


def write(path: pathlib.Path, record: Mapping[str, Any], answers: Answers) -> None:
    """Write a record and its answers, each whole or not at all; the record comes last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if answers:
        arrays: dict[str, Any] = {}
        for name, bits in answers.items():
            arrays[f"{name}.bits"] = np.packbits(bits, axis=-1)
            arrays[f"{name}.count"] = np.int64(bits.shape[-1])
        partial = path.with_suffix(".npz.partial")
        with open(partial, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(partial, path.with_suffix(".npz"))
    partial = path.with_suffix(".json.partial")
    partial.write_text(_text(record) + "\n")
    os.replace(partial, path)


def _text(value: Any, depth: int = 0) -> str:
    """Write JSON with a line for each entry, but lists of numbers on one line."""
    pad = " " * (depth + 1)
    if isinstance(value, Mapping) and value:
        rows = [f"{pad}{json.dumps(str(k))}: {_text(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + " " * depth + "}"
    return json.dumps(value)


def short(value: float) -> float | None:
    """Round to seven digits; `None` for what is not finite, which JSON cannot say."""
    return float(f"{float(value):.7g}") if math.isfinite(value) else None
