"""Killed runs, sweeps and processes go on as if nothing had been."""

from __future__ import annotations

import json
import random
import socket
import time

import pytest

from experiments.runtime import exits
from tests._support.processes import begin, command, compare, killed, result, rows, until

KILLED = {"steps": 150, "log_every": 5, "eval_every": 25, "checkpoint_every": 5}


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path):
    """SIGKILL after the first row, during saves, at a random moment; equal to the bit."""
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    straight = begin(command(whole, **KILLED))
    half_written = 0

    def reached():
        return max((row["step"] for row in rows(folder)), default=0)

    def unfinished():
        return {path.name for path in (folder / "checkpoints").glob("*tmp*")}

    for mark, in_a_save in ((1, False), (25, True), (50, True), (75, True), (100, False)):
        before = unfinished()
        killed(
            begin(command(folder, **KILLED)),
            lambda m=mark, wanted=in_a_save, old=before: (
                reached() >= m and (not wanted or bool(unfinished() - old))
            ),
            wait=0 if in_a_save else random.Random(mark).uniform(0, 0.1),
        )
        half_written += bool(unfinished() - before)
    last = begin(command(folder, **KILLED))
    for child in (last, straight):
        _, errors = child.communicate(timeout=500)
        assert child.returncode == 0, errors
    assert half_written >= 2  # of the three that wait for a save
    compare(folder, whole)


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_trace(tmp_path):
    """SIGKILL within its first run and within a later one; equal to the bit, table and all."""
    folder, whole, steps = tmp_path / "killed", tmp_path / "whole", 40
    keys = {**KILLED, "steps": steps, "eval_every": 20}
    grid = ["--seeds=2", "--grid=optim.learning_rate=0.01,0.001"]

    def sweep(where):
        words = command(where, *grid, **keys)
        return begin(["experiments.sweep" if w == "experiments.train" else w for w in words])

    def reached():
        return sum(max((r["step"] for r in rows(p)), default=0) for p in folder.glob("*=*"))

    straight, draw, at = sweep(whole), random.Random(1), []
    for kill in (0, 2):
        mark = (kill + draw.uniform(0.1, 0.8)) * steps
        killed(sweep(folder), lambda m=mark: reached() >= m, wait=draw.uniform(0, 0.05))
        at.append(reached())
    assert at == sorted(set(at))
    for child in (sweep(folder), straight):
        _, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors
    results = [json.loads((where / "sweep.json").read_text()) for where in (folder, whole)]
    assert [{**m, "seconds": 0} for m in results[0]] == [{**m, "seconds": 0} for m in results[1]]
    members = sorted(p.name for p in whole.glob("*=*"))
    assert len(members) == len(results[0]) == 4
    for member in members:
        compare(folder / member, whole / member)


@pytest.mark.slow
def test_losing_one_of_two_processes_ends_the_other_and_leaves_no_trace(tmp_path):
    """Whichever is killed, the other says so within a minute; both then go on to the bit."""
    folder, whole = tmp_path / "killed", tmp_path / "whole"

    def pair(where):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"
        keys = {**KILLED, "steps": 60, "eval_every": 30, "devices": 0}
        common = ["--distributed", address, "--processes=2"]
        return [begin(command(where, *common, f"--process={i}", **keys), 2) for i in (0, 1)]

    unharmed = []
    try:
        for victim in (1, 0):
            both = pair(folder)
            try:
                before = len(rows(folder))
                until(lambda b=before: len(rows(folder)) > b)
                both[victim].kill()
                began = time.monotonic()
                unharmed = unharmed or pair(whole)  # meanwhile: the other only waits for its peer
                _, errors = both[1 - victim].communicate(timeout=120)
                assert time.monotonic() - began < 60
                assert both[1 - victim].returncode == exits.BROKEN
                assert "another process of this run ended" in errors or "lost the others" in errors
            finally:
                for child in both:
                    child.kill()
                    child.communicate()
        for child in (*pair(folder), *unharmed):
            _, errors = child.communicate(timeout=300)
            assert child.returncode == 0, errors[-2000:]
    finally:
        for child in unharmed:
            child.kill()
    assert rows(folder) == rows(whole) and result(folder) == result(whole)
