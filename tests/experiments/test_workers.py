"""Processes that train at once: failures by name, signals passed on, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
from etils import epath

from experiments import sweep
from experiments.ledger import replicates
from experiments.runtime import exits, members, pool
from experiments.usage import UsageError
from tests._support.processes import begin, command, compare, killed, rows, until

# A worker without JAX: its jobs' configs say what it does.
FAKE = """
import json, os, signal, sys, time
answers = os.fdopen(int(sys.argv[1]), "w")
for line in sys.stdin:
    job = json.loads(line)
    do, where = job["configs"][0]["do"], job["workdirs"][0]
    precision = os.environ.get("JAX_DEFAULT_MATMUL_PRECISION", "usual")
    print(job["label"], "begins", os.path.basename(where), precision, flush=True)
    if do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "wait":
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
        open(where, "w").close()
        time.sleep(60)
    status, message = {"refuse": (2, "write this"), "break": (3, "disk full")}.get(do, (0, ""))
    answers.write(json.dumps({"status": status, "message": message}) + "\\n")
    answers.flush()
    if status == 3:
        sys.exit(3)
"""


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-c", FAKE))


def jobs(where, *words):
    return [pool.Job([{"do": word}], [str(where / f"run{i}")]) for i, word in enumerate(words)]


def test_workers_take_the_jobs_in_turn(fake, tmp_path, capfd):
    assert sorted(pool.train(jobs(tmp_path, *["train"] * 5), 2)) == [0, 1, 2, 3, 4]
    out = capfd.readouterr().out.splitlines()
    assert "[4] of 5: run3" in out and "[4] begins run3 usual" in out and len(out) == 10


def test_workers_compute_products_as_the_process_that_starts_them(fake, tmp_path, capfd):
    with replicates.float32_products():
        assert list(pool.train(jobs(tmp_path, "train"), 1)) == [0]
    assert capfd.readouterr().out.splitlines()[-1] == "[1] begins run0 highest"


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["train", "refuse", "train"], UsageError, "run1: write this"),
        (["break", "train", "refuse"], exits.Broken, "run0: disk full"),
        (["train", "die", "train"], exits.Broken, "run1: its process was killed by SIGKILL"),
    ],
)
def test_a_job_that_fails_is_named_and_the_others_finish(fake, tmp_path, words, kind, says):
    finished = []
    with pytest.raises(kind) as error:
        for number in pool.train(jobs(tmp_path, *words), 2):
            finished.append(number)
    assert sorted(finished) == [i for i, word in enumerate(words) if word == "train"]
    assert says in str(error.value) and "The same command continues" in str(error.value)
    assert f"of 3 jobs failed, {words.count('train')} finished" in str(error.value)


def test_a_signal_is_passed_on_to_all(fake, tmp_path):
    """And no further job begins."""
    both = [tmp_path / "run0", tmp_path / "run1"]

    def interrupt():
        until(lambda: all(path.exists() for path in both))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    with pytest.raises(exits.Interrupted, match="the same command continues") as error:
        list(pool.train(jobs(tmp_path, "wait", "wait", "train"), 2))
    assert error.value.number == signal.SIGINT and time.monotonic() - began < 30


def test_workers_are_for_a_cpu(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    runs = [(tiny(seed=seed), epath.Path(tmp_path / str(seed))) for seed in (0, 1)]
    with pytest.raises(UsageError, match=r"--workers=2 is for a CPU.*--together=8"):
        list(members.run_members(runs, workers=2))


LONG = {"steps": 120, "log_every": 5, "eval_every": 40, "checkpoint_every": 5}


def parallel_sweep(where, *words):
    flags = command(where, "--seeds=2", "--grid=optim.learning_rate=0.01,0.001", *words, **LONG)
    return begin(["experiments.sweep" if w == "experiments.train" else w for w in flags])


def reached(folder):
    return [max((r["step"] for r in rows(p)), default=0) for p in sorted(folder.glob("*=*"))]


def equal(folder, whole):
    names = sorted(p.name for p in whole.glob("*=*"))
    assert len(names) == 4 and sorted(p.name for p in folder.glob("*=*")) == names
    for name in names:
        compare(folder / name, whole / name)
    assert len({json.dumps(rows(whole / name)) for name in names}) == 4
    results = [json.loads((where / "sweep.json").read_text()) for where in (folder, whole)]
    assert [{**m, "seconds": 0} for m in results[0]] == [{**m, "seconds": 0} for m in results[1]]


def ended(child, timeout=300):
    out, errors = child.communicate(timeout=timeout)
    return child.returncode, out, errors


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--workers=2"], ["--workers=2", "--together=2"]])
def test_a_stopped_parallel_sweep_continues_to_the_bit(words, tmp_path):
    """By Ctrl-C, by SIGKILL of the parent, and by SIGKILL of a worker, which is named."""
    folder, whole = tmp_path / "stopped", tmp_path / "whole"
    status, _, errors = ended(parallel_sweep(whole, *words))
    assert status == 0, errors

    child = parallel_sweep(folder, *words)
    until(lambda: len([s for s in reached(folder) if s >= 10]) >= 2)
    child.send_signal(signal.SIGINT)
    status, _, errors = ended(child)
    assert status == 130 and "the same command continues" in errors
    before = reached(folder)

    killed(parallel_sweep(folder, *words), lambda: sum(reached(folder)) > sum(before) + 20, 0)
    locks = [p / "lock" for p in folder.glob("*=*")]
    until(lambda: not _holders(locks))  # the workers notice, save and end

    child = parallel_sweep(folder, *words)
    found = []
    until(lambda: found.extend(_workers(locks)) or found)
    os.kill(found[0], signal.SIGKILL)
    status, out, errors = ended(child)
    assert status == exits.BROKEN and "its process was killed by SIGKILL" in errors, out + errors
    assert "seed=" in errors

    status, out, errors = ended(parallel_sweep(folder, *words))
    assert status == 0, errors
    assert "mean ± sample standard deviation over 2 seeds" in out
    equal(folder, whole)


def _workers(locks):
    """Processes that keep a lock for half a second: one that only tries it lets go at once."""
    before = _holders(locks)
    time.sleep(0.5)
    return [process for process in _holders(locks) if process in before]


def _holders(files):
    """Processes that have one of some files open."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            open_files = {os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}
        except OSError:
            continue
        if open_files & {str(file) for file in files}:
            found.append(int(pid))
    return found


@pytest.mark.slow
def test_a_member_that_is_refused_is_named(tmp_path):
    """The folder of one run holds another's; the rest of the sweep finishes."""
    where = tmp_path / "sweep"
    status, _, errors = ended(parallel_sweep(where, "--workers=2"))
    assert status == 0, errors
    victim = where / "optim.learning_rate=0.001,seed=0"
    config = json.loads((victim / "config.json").read_text())
    config["config"]["batch_size"] = 3
    (victim / "config.json").write_text(json.dumps(config))
    for name in ("optim.learning_rate=0.01,seed=1", "optim.learning_rate=0.001,seed=1"):
        subprocess.run(["rm", "-r", where / name], check=True)
    status, out, errors = ended(parallel_sweep(where, "--workers=2"))
    assert status == exits.USAGE
    assert f"{victim.name}: " in errors and "holds a run of another config" in errors
    assert len(list(where.glob("*/final.json"))) == 4, out


def test_a_sweep_lists_its_results_in_order(fake, tiny, tmp_path, monkeypatch):
    """Whatever the order in which they finish."""
    monkeypatch.setattr(pool, "train", lambda jobs, count: iter([2, 0, 1]))
    monkeypatch.setattr(members, "run_member", lambda config, folder: {"metrics": config.seed})
    results = sweep.sweep(tiny(), epath.Path(tmp_path), seeds=3, cells=[{}], workers=2)
    assert [r["seed"] for r in results] == [r["metrics"] for r in results] == [0, 1, 2]
    assert json.loads((tmp_path / "sweep.json").read_text()) == results
