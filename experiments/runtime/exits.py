"""Ends a run with a message and an exit status.

======  =========================================================================================
status  meaning
======  =========================================================================================
0       finished
1       diverged: the same command would diverge again; the last good checkpoint is kept
2       a mistake in the command, the config or the data; nothing was changed
3       something around the run broke: disk, another process, the network. What was saved is
        kept; once that is fixed, the same command continues
128+n   stopped by signal n (130 Ctrl-C, 143 TERM) after saving; the same command continues. A
        second signal ends the run at once, and the last checkpoint is kept
141     nobody reads what is printed any more, as after `| head`; a run continues from its last
        checkpoint
======  =========================================================================================
"""

from __future__ import annotations

import collections
import contextlib
import errno
import logging as python_logging
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

from experiments.usage import UsageError

DIVERGED, USAGE, BROKEN = 1, 2, 3
# Seconds within which a repeated signal counts as the same one: schedulers signal every process.
SAME = 0.5


class Diverged(RuntimeError):
    """The loss or its gradient is no longer finite."""


class Broken(RuntimeError):
    """Something around the run failed: disk, network, another process."""


class Interrupted(RuntimeError):
    """A signal stopped the run; its checkpoint is written."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


# Errors of the operating system by their text, which is all that writers of checkpoints pass on.
_SYSTEM = {
    errno.ENOSPC: ("no space left", "the disk is full"),
    errno.EDQUOT: ("quota exceeded", "the disk quota is used up"),
    errno.EFBIG: (
        "file too large",
        "a file may not grow further (a limit of this process or disk)",
    ),
    errno.EROFS: ("read-only file system", "the file system is read-only"),
    errno.EACCES: ("permission denied", "writing is not permitted"),
    errno.EPERM: ("operation not permitted", "writing is not permitted"),
}
_LOST = ("gloo", "connection closed by peer", "connection reset", "heartbeat", "coordination")


def cause(error: BaseException) -> str:
    """Say what the operating system or the network refused; '' if it was neither."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _SYSTEM:
            return _SYSTEM[link.errno][1]
        text = str(link).lower()
        for words, meaning in _SYSTEM.values():
            if words in text:
                return meaning
        if jax.process_count() > 1 and any(word in text for word in _LOST):
            return "another process of this run ended or cannot be reached"
        link = link.__cause__ or link.__context__
    return ""


@contextlib.contextmanager
def reraise_as_broken(what: str) -> Iterator[None]:
    """Raise errors of the system as `Broken`, with a word on what is kept."""
    try:
        yield
    except (UsageError, Diverged, Interrupted, Broken):
        raise
    except Exception as error:
        if not (meaning := cause(error)):
            raise
        raise Broken(f"{meaning}: {what}") from error


def hide_explained(record: python_logging.LogRecord) -> bool:
    """Filter log records: not those of an error that ends the run with a message of its own.

    Orbax logs what a writer raised with its whole traceback, twice.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (error is not None and cause(error))


def hide_late_callbacks() -> None:
    """Do not print the tracebacks of reads and writes that end after the one that failed.

    Orbax closes its event loop at the first failure. The other writes then find it closed, in
    threads of their own; the other reads are thrown away with the loop (`GeneratorExit`).
    """
    before = sys.unraisablehook

    def hook(late: Any) -> None:
        error = late.exc_value
        closed = isinstance(error, RuntimeError) and "loop is closed" in str(error)
        thrown_away = isinstance(getattr(error, "__cause__", None), GeneratorExit)
        if not (closed or thrown_away):
            before(late)

    sys.unraisablehook = hook


class Stop:
    """Hold back a Ctrl-C or a TERM until the step in flight is done; a second one is final."""

    def __enter__(self) -> Stop:
        self.number, self.when = 0, 0.0
        self.votes: collections.deque[jax.Array] = collections.deque()
        self.before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: the caller handles signals
                break
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.number and time.monotonic() - self.when > SAME:
            raise KeyboardInterrupt(number)
        if not self.number:
            self.number, self.when = number, time.monotonic()

    def agreed_signal(self, running: Any, devices: Any) -> int:
        """Return the signal that any process has received, so that all stop after the same step.

        Processes vote once per step, and the previous step's vote counts, so none of them waits for
        the step in flight.
        """
        if jax.process_count() == 1:
            return self.number
        if jax.default_backend() == "cpu":
            jax.block_until_ready(running)  # two programs at once would mix their messages
        mesh = jax.sharding.Mesh(np.array(devices), ("all",))
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
        every = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        mine = np.full(len(mesh.local_devices), self.number, np.int32)
        ballot = jax.make_array_from_process_local_data(rows, mine)
        self.votes.append(jax.jit(jax.numpy.max, out_shardings=every)(ballot))
        return int(self.votes.popleft()) if len(self.votes) > 1 else 0

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def exit_with(status: int) -> None:
    """Exit with a status.

    One of several processes does not wait for the others, which wait for it; after a failure
    nothing waits for the writers, which would report it again.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized() or status == BROKEN:
        os._exit(status)
    sys.exit(status)


def _reader_is_gone() -> bool:
    """Whether nobody reads what is printed, as after `| head`."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)
    except (OSError, ValueError):  # standard output is no file: another pipe broke
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def statuses() -> Iterator[None]:
    """End the program with the message and the exit status of what went wrong."""
    logging.get_absl_logger().addFilter(hide_explained)
    hide_late_callbacks()
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # Python flushes once more when it ends, which would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_with(128 + signal.SIGPIPE)
    except (UsageError, Diverged, Broken) as error:
        kinds = {UsageError: USAGE, Diverged: DIVERGED, Broken: BROKEN}
        print(f"error: {error}", file=sys.stderr)
        exit_with(next(status for kind, status in kinds.items() if isinstance(error, kind)))
    except Interrupted as error:
        print(str(error), file=sys.stderr)
        sys.exit(128 + error.number)
    except KeyboardInterrupt as error:  # before the first step, or a second signal
        print("stopped; the same command continues from the last checkpoint.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(128 + (error.args[0] if error.args else signal.SIGINT))  # writers do not delay it
