r"""Joins several processes into one run: `--distributed`, automatic on TPU slices and under Slurm.

    python -m experiments.train --config=… --workdir=… \
        --distributed --coordinator=HOST:PORT --processes=2 --process=0     # and --process=1

Each process watches the others. When one is lost the rest end within a minute with status 3; the
same command on every host then continues from the last checkpoint.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import jax
from absl import flags

from experiments.runtime import exits
from experiments.usage import UsageError

HEARTBEAT = 30  # seconds of silence after which a process counts as lost

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", None, "Run with other processes; automatic on TPU slices and under Slurm."
)
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", 0, "How many processes the run has.")
_PROCESS = flags.DEFINE_integer("process", -1, "Which of them this one is, from 0.")
_PATIENCE = flags.DEFINE_integer("patience", 300, "Seconds to wait for the other processes.")


def automatic() -> bool:
    """Whether this is one of several tasks of a Slurm step, or a host of a TPU slice."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return True
    if os.environ.get("JAX_PLATFORMS", "tpu").partition(",")[0] not in ("tpu", ""):
        return False
    # On a slice of one host this makes a run of one process, which does no harm.
    chips = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def requested() -> bool:
    """Whether the command line or the machine says that there are other processes."""
    return automatic() if _DISTRIBUTED.value is None else _DISTRIBUTED.value


def main() -> None:
    """Join the other processes, if there are any.

    The network library ends a process that lost its peers by aborting it. So the work is done by a
    child, and this process stays to report what happened.
    """
    if not requested():
        if _COORDINATOR.value or _PROCESSES.value or _PROCESS.value >= 0:
            raise UsageError("--coordinator, --processes and --process need --distributed.")
        return
    if os.environ.get("NORMJAX_CHILD"):
        _join()
    else:
        sys.exit(_watch())


def _watch() -> int:
    child = subprocess.Popen(sys.orig_argv, env={**os.environ, "NORMJAX_CHILD": str(os.getpid())})
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: child.send_signal(number))
    status = child.wait()
    if status >= 0:
        return status
    if -status in (signal.SIGABRT, signal.SIGSEGV):
        print(
            f"error: {_who()} lost the others: one of them ended or never came, or the network "
            "failed; the first lines of their logs say which. What was saved is kept: start the "
            "same command again on every host.",
            file=sys.stderr,
        )
        return exits.BROKEN
    print(f"error: {_who()} was ended by signal {-status}.", file=sys.stderr)
    return 128 - status


def _who() -> str:
    if _PROCESS.value < 0:
        return "this process"
    return f"process {_PROCESS.value} of {_PROCESSES.value}"


def _join() -> None:
    if sys.platform == "linux":  # a child dies with its parent
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != int(os.environ["NORMJAX_CHILD"]):
            os._exit(128 + signal.SIGKILL)
    arguments: dict[str, Any] = {}
    if _COORDINATOR.value:
        arguments = _addresses()
    jax.config.update("jax_enable_preemption_service", False)  # exits.Stop handles the signals
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=_PATIENCE.value, heartbeat_timeout_seconds=HEARTBEAT
        )
    except ValueError as error:
        raise UsageError(
            f"no other processes were detected ({error}); outside Slurm and TPU slices "
            "--distributed needs --coordinator=HOST:PORT, --processes=N and --process=I."
        ) from error


def _addresses() -> dict[str, Any]:
    """Return what the flags say, once the coordinator's port is free or answers."""
    host, colon, port = _COORDINATOR.value.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"--coordinator={_COORDINATOR.value!r} must be HOST:PORT.")
    count, process = _PROCESSES.value, _PROCESS.value
    if count < 1 or not 0 <= process < count:
        raise UsageError(
            f"--processes={count} --process={process}: write how many processes the run has, and "
            "which of them this one is, from 0."
        )
    if process == 0:
        _bindable(int(port))
    else:
        _reachable(host, int(port))
    return {"coordinator_address": f"{host}:{port}", "num_processes": count, "process_id": process}


def _bindable(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            raise UsageError(
                f"port {port} is in use on this host ({error.strerror}); give every process "
                "another port in --coordinator=HOST:PORT."
            ) from error


def _reachable(host: str, port: int) -> None:
    until = time.monotonic() + _PATIENCE.value
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise exits.Broken(
                    f"no coordinator answers at {host}:{port} ({error.strerror or error}); waited "
                    f"{_PATIENCE.value} s. Start process 0 there, or write another "
                    "--coordinator; --patience=SECONDS waits longer."
                ) from error
        time.sleep(0.5)
