"""Spend some minutes of a lent accelerator on the ledger's most valuable missing runs.

    python -m experiments.device --minutes=10 --out=results/h100
    python -m experiments.device --minutes=10 --out=results/h100 --jobs=1:pmnist784,2:pmnist784
    python -m experiments.device --minutes=10 --out=results/h100 --jobs=1:pmnist49 --together=24

For each job, a group of claims at a scale, it measures a training step with more and more runs
side by side, takes as many as pay, and trains them until they are done or the time is over. Arms
that differ in the initial scale of their norms alone are one program, and a run that several jobs
have is trained once: name the job with more such arms first. All runs save once a minute and at the
end; the same command continues them. With --together it measures nothing, and runs save as often as
their config says and at the end. `device.json` in --out says what each call measured, which runs
were one program, and how far each job came. At home

    python -m experiments.claim 1 --run --scale=pmnist784 --workdir=results/h100/runs

trains what is left and writes the record, under the registration that is checked there.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath

from experiments.config import command_line, defaults, validate
from experiments.ledger import judge, records, registry, replicates
from experiments.ledger.claims import Scale
from experiments.runtime import exits, parallel, together
from experiments.runtime.group import Group, has_checkpoint
from experiments.runtime.members import DIVERGED
from experiments.runtime.workdir import group_of, hardware, read_json, versions, write_json
from experiments.usage import UsageError

# Groups of claims by value, what the sources dispute; all others come after them.
PROGRAM = (1, 2, 3, 6, 8, 4, 5, 17, 9, 12, 11, 10, 7, 25)
GROWTH = 4  # between two numbers of runs side by side that are measured
PAYS = 1.25  # the runs' steps in a second must grow by this
STEPS = 5  # measured, after one that compiles
SHARE = 0.2  # of the minutes, at most, for measuring

_MINUTES = flags.DEFINE_float("minutes", 10.0, "Time in all, from the command's start.")
_OUT = flags.DEFINE_string("out", "", "Folder of the runs and of device.json.")
_JOBS = flags.DEFINE_string("jobs", "", "GROUP:SCALE with commas; empty: those that are missing.")
_COUNT = flags.DEFINE_integer("count", 8, "Replicates of each arm at each rate.")
_TOGETHER = flags.DEFINE_integer(
    "together",
    0,
    "So many runs side by side, not measured; 0: as many as pay.",
    allow_override=True,
)


def missing(results: Any = records.RESULTS) -> list[tuple[ModuleType, Scale]]:
    """Return what has no finished record: scales for accelerators first, groups by value."""
    found = []
    order = dict.fromkeys((*PROGRAM, *sorted(registry.files())))
    for kind, number in itertools.product(("gpu", "cpu"), order):
        study = registry.module(number)
        for scale in study.GROUP.scales:
            if scale.device != kind or not registry.trains(study):
                continue
            record = records.read(study, scale, results)
            answers = records.read_answers(records.path_of(number, scale.name, results))
            if record is None or not judge.enough(study.GROUP, record, answers):
                found.append((study, scale))
    return found


def named(jobs: str) -> list[tuple[ModuleType, Scale]]:
    """Return the jobs of `--jobs`."""
    found = []
    for job in jobs.split(","):
        number, colon, scale = job.strip().partition(":")
        if not (colon and number.isdigit()):
            raise UsageError(f"--jobs={job!r} is no GROUP:SCALE; write for instance 1:pmnist784.")
        study = registry.module(int(number))
        if not registry.trains(study):
            raise UsageError(f"group {number} trains nothing: python -m experiments.claim {number}")
        found.append((study, study.GROUP.scale(scale)))
    return found


def seconds_a_step(configs: Sequence[Any]) -> float:
    """Measure a training step of runs that are trained together."""
    plain = [validate.check(config) for config in configs]
    layout = parallel.DeviceLayout(plain[0]["parallel"], 1)
    with tempfile.TemporaryDirectory() as folder:
        members = together.load_members(
            plain[0],
            epath.Path(folder),
            together.listed(plain, [str(i) for i in range(len(plain))]),
        )
        for member in members:
            member.writes = False
        group = Group(members, epath.Path(folder) / "group", layout)
        try:
            began = 0.0
            for step in range(STEPS + 1):
                if step == 1:
                    began = time.perf_counter()
                group.advance(1)
                jax.block_until_ready(group.state["now"])
            return (time.perf_counter() - began) / STEPS
        finally:
            group.close()


def measure(
    runs: Sequence[replicates.Run], until: float
) -> tuple[int, float, list[dict[str, Any]]]:
    """Return how many runs to train together, their seconds a step, and all that was measured.

    The largest group stands for all, of equal ones the last. It stops where more runs do not pay,
    where the memory ends, or at the time `until`.
    """
    groups = replicates.groups_of(runs, len(runs))
    largest = max(reversed(groups), key=len)
    arm, configs = replicates.arms_in(largest), [run.config for run in largest]
    scan = defaults.timesteps(configs[0].to_dict()) if configs[0].task == "sequence" else 1
    best, taken, rows, n = 0, math.inf, [], 1
    while True:
        try:
            seconds = seconds_a_step(configs[:n])
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if not best:
                raise UsageError(
                    f"one run of {arm} does not fit in this device's memory; write --jobs= with "
                    "another scale."
                ) from error
            rows.append({"arm": arm, "together": n, "out_of_memory": True})
            break
        rows.append({"arm": arm, "together": n, "seconds_a_step": seconds})
        if scan > 1:
            rows[-1]["microseconds_a_scan_step"] = 1e6 * seconds / scan
        print(f"  {n} together: {1e3 * seconds:.2f} ms a step", flush=True)
        if best and n / seconds < PAYS * best / taken:
            break
        best, taken = n, seconds
        if n == len(configs) or time.monotonic() > until:
            break
        n = min(GROWTH * n, len(configs))
    return best, taken, rows


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Stop what trains after some seconds, as a TERM does: it saves, and raises `Interrupted`."""

    def stop(number: int, frame: Any) -> None:
        raise exits.Interrupted("the time is over", number)

    before = signal.signal(signal.SIGTERM, stop)
    timer = threading.Timer(max(seconds, 0.0), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def progress(study: ModuleType, scale: Scale, count: int, runs: epath.Path) -> dict[str, Any]:
    """Return how many runs of a job are finished, and the last saved step of what is not."""
    all_runs = replicates.runs_of(study, scale, count, runs)
    folders = [run.folder for run in all_runs]
    ends = [f for f in folders if (f / "final.json").exists() or (f / DIVERGED).exists()]
    groups = {group for f in folders if (group := group_of(f)) is not None}
    begun = {
        os.fspath(folder.relative_to(runs)): max(
            int(step.name) for step in (folder / "checkpoints").iterdir() if step.name.isdigit()
        )
        for folder in sorted((*groups, *folders), key=os.fspath)
        if folder not in ends and has_checkpoint(folder)
    }
    steps = all_runs[0].config.steps
    return {"finished": len(ends), "runs": len(folders), "steps": steps, "begun": begun}


def planned(
    groups: Sequence[Sequence[replicates.Run]], measured: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return what is trained: the arms of each group, its members, and its minutes if measured.

    A step of a number of members that was not measured is interpolated between those that were.
    The minutes are those of the steps alone, all of them, at the speed of the largest group.
    """
    known = [row for row in measured if "seconds_a_step" in row]
    plan = []
    for group in groups:
        plan.append({"arms": replicates.arms_in(group), "members": len(group)})
        if known:
            at, seconds = zip(*((r["together"], r["seconds_a_step"]) for r in known), strict=True)
            step = float(np.interp(len(group), at, seconds))
            plan[-1]["minutes"] = round(group[0].config.steps * step / 60, 1)
    return plan


def spend(
    jobs: Sequence[tuple[ModuleType, Scale]],
    out: epath.Path,
    minutes: float,
    count: int,
    side_by_side: int = 0,
) -> dict[str, Any]:
    """Measure and train the jobs in turn until the time is over; return what device.json says.

    With `side_by_side` so many runs are trained together, and nothing is measured.
    """
    began, total = time.monotonic(), 60 * minutes
    runs = out / "runs"
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "hardware": hardware(1),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "minutes": minutes,
        "jobs": [],
    }
    try:
        with deadline(total):
            for study, scale in jobs:
                print(f"{study.GROUP.number} {scale.name}: {study.GROUP.title}", flush=True)
                job: dict[str, Any] = {"group": study.GROUP.number, "scale": scale.name}
                report["jobs"].append(job)
                free, job["together"] = {}, side_by_side
                wanted = replicates.runs_of(study, scale, count, runs)
                if not side_by_side and replicates.groups_of(wanted, 1):
                    until = began + SHARE * total
                    job["together"], seconds, job["measured"] = measure(wanted, until)
                    call = wanted[-1].config.steps_per_call
                    free["checkpoint_every"] = call * max(1, int(60 / seconds) // call)
                groups = replicates.groups_of(wanted, max(1, job["together"]))
                job["groups"] = planned(groups, job.get("measured", ()))
                for group in job["groups"]:
                    time_of = f", {group['minutes']} minutes" if "minutes" in group else ""
                    print(f"  {group['members']} runs of {group['arms']}{time_of}", flush=True)
                replicates.train(
                    study, scale, count, runs, together=max(1, job["together"]), free=free
                )
        report["ended"] = "all jobs are trained"
    except exits.Interrupted:
        report["ended"] = "the time is over; the same command continues"
    finally:
        for (study, scale), job in zip(jobs, report["jobs"], strict=False):
            job |= progress(study, scale, count, runs)
        report["seconds"] = round(time.monotonic() - began, 1)
        path = out / "device.json"
        before = read_json(path, "calls")["calls"] if path.exists() else []
        write_json(path, {"calls": [*before, report]})
    return report


def main(argv: Sequence[str]) -> None:
    """Run ``python -m experiments.device``."""
    logging.set_verbosity(logging.WARNING)
    with exits.statuses(), replicates.float32_products():
        command_line.no_arguments(argv)
        if not _OUT.value:
            raise UsageError("write --out=FOLDER, where the runs and device.json go.")
        if not _MINUTES.value > 0 or _COUNT.value < 4:
            raise UsageError("--minutes must be above 0, and --count at least 4.")
        if _TOGETHER.value < 0:
            raise UsageError("--together must be a number of runs, or 0 to measure how many pay.")
        jobs = named(_JOBS.value) if _JOBS.value else missing()
        out = epath.Path(_OUT.value).expanduser()
        report = spend(jobs, out, _MINUTES.value, _COUNT.value, _TOGETHER.value)
        for job in report["jobs"]:
            print(
                f"{job['group']} {job['scale']}: {job['finished']} of {job['runs']} runs finished"
                + "".join(f"; {g} at step {s}" for g, s in job["begun"].items())
            )
        print(f"{report['ended']}: {out / 'device.json'}")


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
