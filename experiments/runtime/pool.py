"""Trains runs in several processes of this machine, for `--workers` of a sweep.

Each worker (`experiments.runtime.worker`) is a process that takes one job after another: the
configs and workdirs of runs that are trained together, or of one. Its lines of output begin with
the job's number. A job that fails, even one whose process is killed, is reported by name
once all others have finished. Ctrl-C and TERM are passed on: every worker saves and stops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from experiments.runtime import exits
from experiments.runtime.workdir import matmul_precision
from experiments.usage import UsageError

COMMAND = (sys.executable, "-m", "experiments.runtime.worker")
POLL = 0.1  # seconds from a signal to its being passed on


@dataclasses.dataclass
class Job:
    """Runs for one worker; the configs are checked, and can be written as JSON."""

    configs: Sequence[Mapping[str, Any]]
    workdirs: Sequence[str]

    @property
    def names(self) -> str:
        """The runs' folders, in words."""
        return ", ".join(os.path.basename(w) for w in self.workdirs)


class _Worker:
    """A process, and two threads that read what it prints and what it answers."""

    def __init__(self, events: queue.Queue):
        self.number = -1  # of the job at hand; -1: none
        answers, write = os.pipe()
        # A session of its own: a terminal's Ctrl-C reaches this process alone, which passes it on.
        self.process = subprocess.Popen(
            [*COMMAND, str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[write],
            env=_environment(),
            start_new_session=True,
        )
        os.close(write)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin: IO[str] = self.process.stdin
        self.printer = threading.Thread(target=self._print, args=(self.process.stdout,))
        self.printer.start()
        threading.Thread(target=self._read, args=(answers, events)).start()

    def _print(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                sys.stdout.write(line)  # whole, so that lines of two workers do not mix
                sys.stdout.flush()

    def _read(self, answers: int, events: queue.Queue) -> None:
        with open(answers) as file:
            for line in file:
                events.put((self, json.loads(line)))
        self.printer.join()
        self.process.wait()
        self.dismiss()
        events.put((self, None))  # the process has ended

    def give(self, number: int, job: Job) -> None:
        """Hand over a job."""
        self.number = number
        words = {"label": f"[{number + 1}]", **dataclasses.asdict(job)}
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is the next event
            self.stdin.write(json.dumps(words) + "\n")
            self.stdin.flush()

    def dismiss(self) -> None:
        """Let the process end once it has nothing to do; in the middle of a job, save and end."""
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()

    def ended(self) -> str:
        """Say how the process ended."""
        status = self.process.wait()
        if status < 0:
            return f"its process was killed by {signal.Signals(-status).name}"
        return f"its process ended with status {status}"


def _environment() -> dict[str, str]:
    """Return this process's environment, with the precision of its matrix products."""
    precision = matmul_precision()
    return {**os.environ, **({"JAX_DEFAULT_MATMUL_PRECISION": precision} if precision else {})}


def train(jobs: Sequence[Job], count: int) -> Iterator[int]:
    """Train jobs in so many processes; yield the number of each as it finishes.

    Raises:
        Interrupted: a signal stopped all of them.
        UsageError, Broken: some jobs failed, and all others have finished.
    """
    events: queue.Queue = queue.Queue()
    waiting, failed, statuses = list(range(len(jobs))), [], set()
    workers: list[_Worker] = []

    def hire() -> None:
        while waiting and len(workers) < count:
            workers.append(_Worker(events))
            assign(workers[-1])

    def assign(worker: _Worker) -> None:
        worker.number = -1
        if waiting and not stop.number:
            number = waiting.pop(0)
            print(f"[{number + 1}] of {len(jobs)}: {jobs[number].names}", flush=True)
            worker.give(number, jobs[number])
        else:
            worker.dismiss()

    try:
        with exits.Stop() as stop:
            hire()
            passed_on = False
            while workers:
                if stop.number and not passed_on:
                    passed_on = True
                    _signal(workers, stop.number)
                try:
                    worker, answer = events.get(timeout=POLL)
                except queue.Empty:
                    continue
                number = worker.number
                if answer is None:
                    workers.remove(worker)
                    if number >= 0 and not stop.number:
                        failed.append(f"{jobs[number].names}: {worker.ended()}")
                        statuses.add(exits.BROKEN)
                    if not stop.number:
                        hire()
                    continue
                if answer["status"] == 0:
                    yield number
                elif not stop.number:
                    failed.append(f"{jobs[number].names}: {answer['message']}")
                    statuses.add(answer["status"])
                if answer["status"] == exits.BROKEN:
                    worker.number = -1  # it ends by itself, and another takes its place
                else:
                    assign(worker)
            if stop.number:
                raise exits.Interrupted(
                    "stopped, checkpoints are written; the same command continues from there.",
                    stop.number,
                )
    except KeyboardInterrupt:  # a second signal
        _signal(workers, signal.SIGTERM)
        raise
    finally:
        for worker in workers:
            worker.dismiss()
    if failed:
        kind = UsageError if statuses == {exits.USAGE} else exits.Broken
        done = len(jobs) - len(failed)
        raise kind(
            f"{len(failed)} of {len(jobs)} jobs failed, {done} finished:\n  "
            + "\n  ".join(failed)
            + "\nThe same command continues these."
        )


def _signal(workers: Sequence[_Worker], number: int) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(number)
