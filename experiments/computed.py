"""Compute what needs no training, check it, and write results/computed.json and its page.

    python -m experiments.computed
    python -m experiments.computed --data_dir=/data/tfds

Identities and numbers at initialization, in float64. One of them reads MNIST.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from experiments.ledger import computed_facts
from experiments.runtime import exits
from experiments.runtime.workdir import hardware, versions
from experiments.usage import UsageError

RESULTS = pathlib.Path("results/computed.json")

HEADER = """\
# Computed, not trained

Identities of normalization, and what it does at initialization. These statements were in the ledger
of claims, or could have been; they need no training, no replicates and no verdict. Each is computed
in float64 by `python -m experiments.computed` from a file in `configs/computed/`, and a test checks
it. Numbers of claims, where given, are those of the ledger's first edition.
"""


def compute() -> dict[str, Any]:
    """Compute and check every fact.

    Returns:
        The record: the facts in order, date, versions and hardware.
    """
    entries = []
    for fact in computed_facts.facts().values():
        began = time.perf_counter()
        numbers = fact.numbers()
        entries.append(
            {
                "name": fact.name,
                "number": fact.number,
                "title": fact.title,
                "statement": fact.statement,
                "source": fact.source,
                "expect": fact.expect,
                "note": fact.note,
                "holds": bool(fact.holds(numbers)),
                "numbers": {name: float(f"{value:.6g}") for name, value in numbers.items()},
                "seconds": round(time.perf_counter() - began, 2),
            }
        )
    return {
        "command": "python -m experiments.computed",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": versions(),
        "hardware": hardware(),
        "facts": entries,
    }


def page(record: Mapping[str, Any]) -> str:
    """Return the documentation's page of a record, in Markdown."""
    held = sum(entry["holds"] for entry in record["facts"])
    code = record["versions"]
    lines = [
        HEADER,
        f"{held} of {len(record['facts'])} hold; computed on {record['date']} with jax "
        f"{code['jax']} on {record['hardware']['device']}, normjax {code['normjax']} "
        f"({code['code']}).",
    ]
    for entry in record["facts"]:
        before = f" (claim {entry['number']})" if entry["number"] else ""
        lines += ["", f"({entry['name']})=", f"## {entry['title']}{before}", ""]
        lines += [entry["statement"] + ".", ""]
        lines += [f"* Source: {entry['source']}.", f"* Expected: {entry['expect']}."]
        lines += [f"* It {'holds' if entry['holds'] else '**does not hold**'}."]
        lines += [f"* {entry['note']}"] if entry["note"] else []
        lines += ["", "| computed | |", "| --- | ---: |"]
        for name, value in entry["numbers"].items():
            escaped = name.replace("|", "\\|")  # of |v|: a pipe ends a cell
            lines.append(f"| {escaped} | {value:.4g} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.computed``."""
    logging.set_verbosity(logging.WARNING)
    with exits.statuses():
        if len(argv) > 1:
            raise UsageError("write: python -m experiments.computed, with no further words.")
        if flags.FLAGS.data_dir:
            os.environ["NORMJAX_DATA_DIR"] = flags.FLAGS.data_dir
        record = compute()
        out = pathlib.Path(flags.FLAGS.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")
        pathlib.Path(flags.FLAGS.page).write_text(page(record))
        for entry in record["facts"]:
            print(f"{'holds' if entry['holds'] else 'DOES NOT HOLD'}: {entry['title']}")
        print(f"numbers: {out}; page: {flags.FLAGS.page}")
        if not all(entry["holds"] for entry in record["facts"]):
            raise SystemExit(1)


if __name__ == "__main__":
    flags.DEFINE_string("out", str(RESULTS), "File of the record.")
    flags.DEFINE_string("page", "docs/computed.md", "File of the documentation's page.")
    flags.DEFINE_string("data_dir", "", "A TFDS folder; empty: see experiments.data.locate.")
    app.run(main)
