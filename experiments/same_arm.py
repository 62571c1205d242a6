"""Draw one arm's runs a thousand times as two arms, and count the verdicts that they differ.

    python -m experiments.same_arm [--times=1000] [--workers=2] [--workdir=runs/claims]

Trains a pool of 64 replicates of an arm, at every rate of its group, unless they are finished;
writes their numbers to results/aa/pool.json and the shares of verdicts to results/aa.json. They
stand on the ledger's page: the protocol may give at most 5 % false verdicts.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags, logging
from etils import epath

from experiments.config import command_line
from experiments.ledger import records, replicates, self_test
from experiments.runtime import exits
from experiments.runtime.workdir import write_json
from experiments.usage import UsageError

RESULTS = pathlib.Path("results")
SIZES = (8, 16, 32)  # replicates of each of the two arms

_TIMES = flags.DEFINE_integer("times", 1000, "Pairs drawn of each size.", allow_override=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/claims", "Folder of the pool's runs.", allow_override=True
)
_WORKERS = flags.DEFINE_integer("workers", 1, "Processes that train at once.", allow_override=True)


def train(workdir: pathlib.Path, workers: int = 1, results: pathlib.Path = RESULTS) -> None:
    """Train the pool, unless results have it."""
    path = results / "aa" / "pool.json"
    if path.exists():
        return
    study, scale = self_test.pool()
    records.write(
        path, *replicates.run(study, scale, self_test.REPLICATES, workdir, workers=workers)
    )


def cases(
    record: Mapping[str, Any],
    answers: records.Answers,
    times: int,
    sizes: Sequence[int] = SIZES,
    metrics: Mapping[str, float] = self_test.METRICS,
) -> list[dict[str, Any]]:
    """Return the shares of verdicts for every metric and size."""
    where = {
        "claim": self_test.GROUP,
        "scale": self_test.SCALE,
        "arm": self_test.ARM,
        "times": times,
    }
    found = []
    for metric, delta in metrics.items():
        for size in sizes:
            shares = self_test.false_verdicts(
                record, answers, self_test.ARM, metric, delta, replicates=size, times=times
            )
            case = {"metric": metric, "delta": delta, "replicates": size, "shares": shares}
            found.append({**where, **case})
    return found


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.same_arm``."""
    logging.set_verbosity(logging.WARNING)
    with exits.statuses():
        command_line.no_arguments(argv)
        if _TIMES.value < 1:
            raise UsageError(f"--times={_TIMES.value} must be at least 1.")
        train(epath.Path(_WORKDIR.value).expanduser(), _WORKERS.value)
        path = RESULTS / "aa" / "pool.json"
        found = cases(records.load(path), records.read_answers(path), _TIMES.value)
        said = {
            "command": f"python -m experiments.same_arm --times={_TIMES.value}",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "cases": found,
        }
        write_json(RESULTS / "aa.json", said)
        for case in found:
            shares = case["shares"]
            print(
                f"{case['metric']}, {case['replicates']} replicates: "
                f"{100 * sum(shares[v] for v in self_test.FALSE):.1f} % false verdicts, "
                f"0 outside {100 * shares['excludes 0']:.1f} % of intervals"
            )


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
