"""Show a claim's verdicts, or run its group of claims at a scale and write the record.

    python -m experiments.claim 24                        # what it says, and its verdicts so far
    python -m experiments.claim 24 --run                  # at its first scale
    python -m experiments.claim 24 --run --scale=mnist28
    python -m experiments.claim 24 --run --replicates=64  # more, until so many at most

Every arm is trained at every rate, eight replicates at a time, until the intervals of all claims
are as narrow as half the smallest effect that matters, or the budget is spent. A stopped run
continues; a record that has enough replicates is shown. The claim's file must be committed first:
the commit is its registration. With --together=160, for a GPU, arms that differ in the initial
scale of their norms alone are one program.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from absl import app, flags, logging
from etils import epath

from experiments.config import command_line
from experiments.ledger import judge, records, registry, replicates, table
from experiments.ledger.claims import Scale
from experiments.runtime import exits
from experiments.usage import UsageError

AT_ONCE = 8  # replicates between two looks at the widths of the intervals

_RUN = flags.DEFINE_bool("run", False, "Run it, or continue its record.", allow_override=True)
_SCALE = flags.DEFINE_string("scale", "", "Name of a scale; empty: the first.", allow_override=True)
_REPLICATES = flags.DEFINE_integer(
    "replicates", 0, "At most so many; 0: the scale's budget.", allow_override=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/claims", "Folder of the claims' runs.", allow_override=True
)
_RECORDS = flags.DEFINE_string("records", str(records.RESULTS), "Folder of the records.")
_DRAFT = flags.DEFINE_bool(
    "draft", False, "Run what is not committed; such a record enters no ledger."
)
_TOGETHER = flags.DEFINE_integer(
    "together", 1, "Runs that are trained as one program; for a GPU.", allow_override=True
)
_WORKERS = flags.DEFINE_integer("workers", 1, "Processes that train at once.", allow_override=True)


def run(
    study: ModuleType,
    scale: Scale,
    workdir: pathlib.Path = pathlib.Path("runs/claims"),
    results: pathlib.Path = records.RESULTS,
    *,
    limit: int = 0,
    draft: bool = False,
    together: int = 1,
    workers: int = 1,
) -> dict[str, Any]:
    """Run a group of claims at a scale, or add replicates to its record, and return the record."""
    group = study.GROUP
    path = records.path_of(group.number, scale.name, results)
    record = records.read(study, scale, results)
    budget = limit or scale.replicates
    registered = record["registered"] if record else None if draft else registry.register(study)
    count = record["replicates"] if record else 0
    while not record or (
        record["replicates"] < budget
        and not judge.enough(group, record, records.read_answers(path))
    ):
        count = min(count + AT_ONCE, budget)
        began = time.perf_counter()
        ran, answers = replicates.run(
            study, scale, count, workdir, together=together, workers=workers
        )
        codes = [*(record["codes"] if record else ()), *ran.pop("codes")]
        record = {
            "group": group.number,
            "scale": scale.name,
            "config": registry.config_path(group.number),
            "registered": registered,
            "claims": {group.id(c): registry.claim_hash(group, c) for c in group.claims},
            "config_hash": registry.config_hash(study, scale),
            "command": f"python -m experiments.claim {group.number} --run --scale={scale.name} "
            f"--replicates={count}",
            "wall_seconds": round(time.perf_counter() - began, 1),
            "codes": list(dict.fromkeys(codes)),  # of the runs, and of what measured them
            **_older(ran.pop("began", []), registered),
            **ran,
        }
        records.write(path, record, answers)
    return record


def _older(began: Sequence[str], registered: Mapping[str, Any] | None) -> dict[str, int]:
    """Count the runs, and those that do not say that they began after the registration.

    A group may use runs of an earlier group with the same configs.
    """
    if not began or not registered or "date" not in registered:
        return {}
    return {"runs": len(began), "older_runs": sum(at < registered["date"] for at in began)}


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.claim``."""
    logging.set_verbosity(logging.WARNING)
    with exits.statuses():
        number = argv[1].rstrip("abcdefghijklmnopqrstuvwxyz") if len(argv) == 2 else ""
        if not number.isdigit():
            raise UsageError("write: python -m experiments.claim NUMBER, for instance 24 or 24b.")
        study, results = registry.module(int(number)), pathlib.Path(_RECORDS.value)
        letter = argv[1].removeprefix(number)
        letters = [claim.letter for claim in study.GROUP.claims]
        if letter and letter not in letters:
            raise UsageError(
                f"group {number} has no claim {letter!r}; it has {', '.join(letters)}."
            )
        group = study.GROUP
        if _REPLICATES.value and not 4 <= _REPLICATES.value <= 1000:
            raise UsageError(f"--replicates={_REPLICATES.value} must be from 4 to 1000.")
        print(table.description(study, letter), flush=True)
        if _RUN.value:
            scale = group.scale(_SCALE.value) if _SCALE.value else group.scales[0]
            workdir = epath.Path(_WORKDIR.value).expanduser()
            run(
                study,
                scale,
                workdir,
                results,
                limit=_REPLICATES.value,
                draft=_DRAFT.value,
                together=_TOGETHER.value,
                workers=_WORKERS.value,
            )
        print(table.outcome(study, letter, results))


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
