"""Registers, spills and shared memory of the kernels of a program for an H100.

XLA writes out the PTX of its own kernels and of Triton's; `ptxas` says what it makes of each. The
memory of a kernel that is given at launch is in XLA's list of launches.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

LAUNCH = re.compile(
    r"kCustomKernel .*?\] (\S+) grid: \[(\d+), (\d+), (\d+)\] threads: \[(\d+), (\d+), (\d+)\] +"
    r"shared_memory: (\d+) bytes"
)
COMPILED = re.compile(
    r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers([^\n]*)",
    re.S,
)


def kernels(compile_: Callable[..., Any], function: Any, *args: Any) -> list[dict[str, Any]]:
    """Compile a program and return what each of its kernels takes, in the order of launches."""
    with tempfile.TemporaryDirectory() as folder:
        compile_(function, *args, options={"xla_dump_to": folder})
        made: dict[str, dict[str, int]] = {}
        for path in pathlib.Path(folder).glob("*.ptx"):
            if path.stat().st_size:  # constants have an empty one
                made |= read(_ptxas(path))
        (launches,) = pathlib.Path(folder).glob("*.thunk_sequence.txt")
        return launched(launches.read_text(), made)


def read(text: str) -> dict[str, dict[str, int]]:
    """Registers of a thread, and bytes of spills and shared memory, by kernel, as ptxas tells."""
    return {
        name: {
            "registers": int(registers),
            "spill_bytes": int(stores) + int(loads),
            "shared_bytes": int(match[1]) if (match := re.search(r"(\d+) bytes smem", rest)) else 0,
        }
        for name, stores, loads, registers, rest in COMPILED.findall(text)
    }


def launched(text: str, made: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Join the launches of a program with what ptxas made of their kernels, each kernel once."""
    found: dict[str, dict[str, Any]] = {}
    for name, *numbers in LAUNCH.findall(text):
        x, y, z, *threads, shared = map(int, numbers)
        takes = made[name]
        found[name] = {
            "kernel": name,
            "blocks": x * y * z,
            "threads": threads[0] * threads[1] * threads[2],
            **takes,
            "shared_bytes": takes["shared_bytes"] + shared,
        }
    return list(found.values())


def _ptxas(path: pathlib.Path) -> str:
    """What ptxas prints about the kernels of a file."""
    root = pathlib.Path(sys.prefix) / "lib"
    (ptxas,) = root.glob("python3*/site-packages/nvidia/cu13/bin/ptxas")
    command = [str(ptxas), "--verbose", "--gpu-name=sm_90a", str(path), "--output-file=/dev/null"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr
