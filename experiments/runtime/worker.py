"""Trains the jobs that `experiments.runtime.pool` writes to the standard input.

    python -m experiments.runtime.worker FILE_DESCRIPTOR

A job is a line of JSON: "label" (of its lines of output), "configs" and "workdirs". The answer, a
line in the file descriptor, has a status of `experiments.runtime.exits` and a message.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import IO, Any

from absl import logging
from etils import epath

from experiments.runtime import exits, members
from experiments.runtime.exits import Broken, Interrupted
from experiments.usage import UsageError


class _Jobs:
    """Reads jobs in a thread, which also notices that the process which gives them has ended."""

    def __init__(self, lines: IO[str]):
        self.lines, self.queue = lines, queue.Queue[str | None]()
        self.working = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.lines:
            self.working = True
            self.queue.put(line)
        self.queue.put(None)
        if self.working:  # nobody waits for this job any more: save and stop
            os.kill(os.getpid(), signal.SIGTERM)


class _Labelled(io.TextIOBase):
    """Writes whole lines, each behind a label."""

    def __init__(self, stream: IO[str], label: str):
        self.stream, self.label, self.begun = stream, label, ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        with contextlib.suppress(BrokenPipeError):  # nobody reads them any more
            self.stream.write("".join(f"{self.label} {line}\n" for line in lines))
            self.stream.flush()
        return len(text)


def _train(job: dict[str, Any]) -> tuple[int, str]:
    """Train a job's runs; return a status and a message."""
    runs = [
        (config, epath.Path(workdir))
        for config, workdir in zip(job["configs"], job["workdirs"], strict=True)
    ]
    try:
        for _ in members.run_members(runs, together=len(runs)):
            pass
    except UsageError as error:
        return exits.USAGE, str(error)
    except Broken as error:
        return exits.BROKEN, str(error)
    except Interrupted:
        raise
    except Exception as error:
        traceback.print_exc()
        return exits.BROKEN, f"{type(error).__name__}: {error}"
    return 0, ""


def main() -> None:
    """Run ``python -m experiments.runtime.worker``."""
    logging.set_verbosity(logging.WARNING)
    answers = os.fdopen(int(sys.argv[1]), "w")
    jobs = _Jobs(sys.stdin)
    with exits.statuses():
        while (line := jobs.queue.get()) is not None:
            job = json.loads(line)
            with contextlib.redirect_stdout(_Labelled(sys.stdout, job["label"])):
                status, message = _train(job)
            jobs.working = False
            answers.write(json.dumps({"status": status, "message": message}) + "\n")
            answers.flush()
            if status == exits.BROKEN:  # its writers would report the same failure again
                exits.exit_with(status)


if __name__ == "__main__":
    main()
