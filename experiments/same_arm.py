"""Draw one arm's runs a thousand times as two arms, and count the verdicts that they differ.

    python -m experiments.same_arm [--times=1000]

Reads the records of `experiments.ledger.same_arm.POOLS` and writes results/aa.json, whose figures
stand on the ledger's page: the protocol may give at most 5 % false verdicts.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from experiments.config import command_line
from experiments.ledger import records, registry, same_arm
from experiments.runtime.workdir import write_json
from experiments.usage import UsageError, usage

_TIMES = flags.DEFINE_integer("times", 1000, "Pairs drawn from each pool.", allow_override=True)


def cases(times: int, results: pathlib.Path = records.RESULTS) -> list[dict[str, Any]]:
    """Return the shares of verdicts for every pool."""
    found = []
    for number, name, arm, metric in same_arm.POOLS:
        study = registry.module(number)
        scale = study.GROUP.scale(name)
        record = records.read(study, scale, results)
        if record is None:
            raise UsageError(
                f"there is no record of claim {number} at {name}; write "
                f"python -m experiments.claim {number} --run --scale={name}"
            )
        answers = records.read_answers(records.path_of(number, name, results))
        delta = min(c.delta for c in study.GROUP.claims if c.rule.terms[0].metric == metric)
        shares = same_arm.false_verdicts(record, answers, arm, metric, delta, times=times)
        case = {"claim": number, "scale": name, "arm": arm, "metric": metric, "delta": delta}
        found.append(
            {**case, "replicates": record["replicates"] // 2, "times": times, "shares": shares}
        )
    return found


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.same_arm``."""
    with usage():
        command_line.no_arguments(argv)
        if _TIMES.value < 1:
            raise UsageError(f"--times={_TIMES.value} must be at least 1.")
        found = cases(_TIMES.value)
        said = {
            "command": f"python -m experiments.same_arm --times={_TIMES.value}",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "cases": found,
        }
        write_json(pathlib.Path("results/aa.json"), said)
        for case in found:
            false = sum(case["shares"][verdict] for verdict in same_arm.FALSE)
            print(
                f"claim {case['claim']}, {case['scale']}, {case['arm']}, {case['metric']}: "
                f"{100 * false:.1f} % false verdicts, "
                f"0 outside {100 * case['shares']['excludes 0']:.1f} % of intervals"
            )


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
