"""A GPU in a few minutes: norms in bytes a second, recurrent layers in microseconds a time step.

    python -m benchmarks.device --json=FILE [--minutes=3] [--only=copy,norms] [--quick]

Everything of JAX is in one process. The programs of a part are compiled side by side, then measured
one at a time: after a call that is not timed, each round calls every contender of a case as often
as fills some milliseconds and waits once, so that starting a program is no part of its time. torch
has a process of its own, after them. The file is written after every case; parts that no time was
left for are named in it. Order is by worth: what comes last is what may be left out.

"copies" are times in copies of the array by the device: reading it and writing it once. A forward
pass needs 1, that of batch norm 1.5; with the backward pass 2.5 and 3.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import datetime
import faulthandler
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

# Before JAX starts: torch's process gets the rest.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _measure
from benchmarks._device_programs import Program, parts

ROUNDS, THREADS = 5, 12


@functools.cache
def _draw(shape: tuple[int, ...], dtype: Any, seed: int) -> jax.Array:
    """Standard normal values, made by the device."""
    return jax.block_until_ready(jax.random.normal(jax.random.key(seed), shape, dtype))


def drawn(types: Any) -> Any:
    """Random numbers for arguments: around 1 for vectors, small for matrices, standard for x."""
    rng = np.random.default_rng(0)

    def one(path: Any, t: Any) -> Any:
        if not jnp.issubdtype(t.dtype, jnp.floating):
            return jnp.zeros(t.shape, t.dtype)
        if path[0].idx >= 2:
            return _draw(t.shape, t.dtype, path[0].idx)
        small = 0.1 * rng.normal(size=t.shape)
        return jnp.asarray(small + (path[0].idx == 1 or t.ndim == 1), t.dtype)

    return jax.tree_util.tree_map_with_path(one, types)


class Run:
    """Compiles and measures, keeps the time, and writes what there is after every case."""

    def __init__(self, path: str | None, minutes: float) -> None:
        self.path, self.end = path, time.perf_counter() + 60 * minutes
        self.records: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.extra: dict[str, Any] = {}
        self.compiled: dict[tuple[str, str], tuple[Any, Program]] = {}
        self.copy_gbps: float | None = None

    def left(self) -> float:
        """Seconds that remain."""
        return self.end - time.perf_counter()

    def note(self, text: str) -> None:
        """Write down what was skipped or went wrong."""
        self.notes.append(text[:400])
        print(f"! {text[:400]}", flush=True)
        self.save()

    def save(self) -> None:
        """Write the file."""
        if self.path is None:
            return
        whole = {
            "command": " ".join(["python -m benchmarks.device", *sys.argv[1:]]),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": _measure.versions(),
            "hardware": _measure.hardware(),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "copy_gbps": self.copy_gbps,
            "notes": self.notes,
            **self.extra,
            "records": self.records,
        }
        part = pathlib.Path(f"{self.path}.part")
        part.write_text(json.dumps(whole, indent=1) + "\n")
        part.replace(self.path)

    def add(self, part: str, record: dict[str, Any]) -> None:
        """Keep a figure, and print it."""
        us = record["us"]
        if record.get("steps"):
            record["us_a_step"] = us / record["steps"]
        if record.get("floor_mb"):
            record["gbps"] = record["floor_mb"] * 1e3 / us
            if self.copy_gbps:
                copied_mb = record["floor_mb"] / record["floor_copies"]  # read and written
                record["copies"] = us * self.copy_gbps / 1e3 / copied_mb
        self.records.append({"part": part, **record})
        facts = {"us_a_step": "µs a step", "gbps": "GB/s", "copies": "copies"}
        shown = "  ".join(f"{record[k]:.2f} {unit}" for k, unit in facts.items() if k in record)
        print(f"{record['case']:45} {record['library']:32} {us:10.1f} µs  {shown}", flush=True)

    def copy(self, quick: bool) -> None:
        """How fast the device copies a large array: bytes read and written a second."""
        best = 0.0
        for mb in (1,) if quick else (256, 1024):
            x = _draw((mb * 2**18,), jnp.float32, 9)
            ways = {"copy": jnp.copy, "add 1": lambda x: x + 1}
            for name, way in ways.items():
                run = jax.jit(way).lower(x).compile()
                once(run, (x,), 1)
                us = 1e6 * float(np.median([once(run, (x,), 1 if quick else 20) for _ in range(7)]))
                facts = {"case": f"{name} {mb} MB", "library": "device", "us": us}
                gbps = 2 * x.nbytes / us / 1e3
                print(f"{facts['case']:45} {gbps:.0f} GB/s", flush=True)
                self.records.append({"part": "copy", **facts, "gbps": gbps})
                best = max(best, gbps)
        self.copy_gbps = best
        _draw.cache_clear()
        self.save()

    def part(self, name: str, programs: Sequence[Program], compile_for: float) -> None:
        """Compile the programs of a part side by side, then measure each case."""
        start = time.perf_counter()
        pool = concurrent.futures.ThreadPoolExecutor(THREADS)
        futures = [pool.submit(p.compile) for p in programs]
        concurrent.futures.wait(futures, timeout=compile_for)
        pool.shutdown(wait=False, cancel_futures=True)
        print(f"-- {name}: compiled in {time.perf_counter() - start:.1f} s", flush=True)
        cases: dict[str, list[Any]] = {}
        for p, future in zip(programs, futures, strict=True):
            if not future.done() or future.cancelled():
                self.note(f"{name}: {p.case}, {p.library}: not compiled in {compile_for:.0f} s")
            elif future.exception() is not None:
                self.note(f"{name}: {p.case}, {p.library}: {brief(future.exception())}")
            else:
                cases.setdefault(p.case, []).append((p, *future.result()))
        for case, contenders in cases.items():
            if self.left() < 2:
                self.note(f"{name}: {case}: no time left")
                continue
            self.case(name, contenders)
        _draw.cache_clear()
        self.extra.setdefault("seconds", {})[name] = round(time.perf_counter() - start, 1)
        self.save()

    def case(self, part: str, contenders: Sequence[Any]) -> None:
        """Measure the contenders of a case in turn."""
        ready = []
        for p, compiled, seconds in contenders:
            try:
                args = drawn(p.args)
                once(compiled, args, 1)
                once_took = once(compiled, args, 1)
                calls = 1 if once_took > 0.1 else min(max(int(0.02 / once_took), 2), 100)
                ready.append((p, compiled, args, calls, seconds, []))
                self.compiled[p.case, p.library] = compiled, p
            except Exception as raised:
                self.note(f"{part}: {p.case}, {p.library}: {brief(raised)}")
        for _ in range(ROUNDS):
            for _, compiled, args, calls, _, took in ready:
                with contextlib.suppress(Exception):
                    took.append(1e6 * once(compiled, args, calls))
        for p, compiled, _, calls, seconds, took in ready:
            if took:
                record = {"case": p.case, "library": p.library, "us": float(np.median(took))}
                memory = getattr(compiled.memory_analysis(), "temp_size_in_bytes", None)
                record |= {"rounds_us": took, "calls": calls, "compile_s": seconds}
                self.add(part, record | {"temporary_bytes": memory} | p.facts)
        self.save()

    def torch(self, process: subprocess.Popen[str] | None) -> None:
        """Let torch's process, which is ready, measure."""
        if process is None:
            return self.note("torch: no process")
        try:
            said, errors = process.communicate("go\n", timeout=max(min(self.left(), 45), 5))
        except subprocess.TimeoutExpired:
            process.kill()
            said, errors = process.communicate()
            self.note("torch: stopped at its limit")
        for line in said.splitlines():
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if "us" in found:
                    self.add("torch", found)
                elif "error" in found:
                    self.note(f"torch: {found['error']}")
                else:
                    self.extra["torch"] = found
        if process.returncode:
            self.note(f"torch: {errors.strip().splitlines()[-1:]}")
        self.save()

    def profile(self) -> None:
        """Where the time goes in a BN-LSTM's training step, and in the slowest norm's."""
        slow = [r for r in self.records if r.get("copies") and r["library"] == "normjax"]
        slow.sort(key=lambda r: r["copies"] / r["floor_copies"])
        wanted = [(r["case"], r["library"]) for r in slow[-1:]]
        of_bn = [k for k in self.compiled if k[1] == "normjax bn_lstm" and k[0].startswith("T")]
        wanted += of_bn[1:2] or of_bn[:1]
        for key in wanted:
            if self.left() < 3:
                return self.note(f"profile: {key}: no time left")
            compiled, p = self.compiled[key]
            args = drawn(p.args)
            once(compiled, args, 1)
            with tempfile.TemporaryDirectory() as folder:
                with jax.profiler.trace(folder):
                    took = once(compiled, args, 1)
                found = kernels(folder)
            self.extra.setdefault("profile", {})[" ".join(key)] = {"call_us": 1e6 * took, **found}
            print(f"-- profile: {' '.join(key)}: {json.dumps(found)[:900]}", flush=True)
            self.save()


def once(compiled: Any, args: Any, calls: int) -> float:
    """Seconds of a call, of several in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        out = compiled(*args)
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / calls


def kernels(folder: str, most: int = 15) -> dict[str, Any]:
    """The kernels of a trace that took most time together, and the sum of all."""
    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    totals: dict[str, list[float]] = {}
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        if "GPU" not in plane.name:
            continue
        for line in plane.lines:
            if "Stream" in line.name:  # the others sum up the same kernels
                for event in line.events:
                    total = totals.setdefault(event.name[:80], [0.0, 0])
                    total[0] += event.duration_ns / 1e3
                    total[1] += 1
    rows = sorted(totals.items(), key=lambda item: -item[1][0])
    return {
        "kernels_us": round(sum(t for t, _ in totals.values()), 1),
        "kernels": sum(n for _, n in totals.values()),
        "most": [[name, round(t, 1), n] for name, (t, n) in rows[:most]],
    }


def brief(error: BaseException | None) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def start_torch(quick: bool) -> subprocess.Popen[str] | None:
    """A process that imports torch and waits."""
    command = [sys.executable, "-m", "benchmarks._device_torch", *(["--quick"] if quick else [])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        return subprocess.Popen(command, text=True, **pipes)
    except OSError:
        return None


def main() -> None:
    """Entry point of ``python -m benchmarks.device``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="where all figures are written")
    parser.add_argument("--minutes", type=float, default=3.0, help="when to stop")
    parser.add_argument("--only", help="parts to measure, with commas between them")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: that it runs")
    asked = parser.parse_args()
    offered = parts(asked.quick)
    wanted = asked.only.split(",") if asked.only else [*offered]
    if unknown := [part for part in wanted if part not in offered]:
        parser.error(f"--only: there is no {unknown[0]!r}; known: {', '.join(offered)}")
    faulthandler.dump_traceback_later(60 * asked.minutes + 45, exit=True)
    run = Run(asked.json, asked.minutes)
    print(jax.devices(), jax.__version__, flush=True)
    todo = {name: make for name, make in offered.items() if name in wanted}
    try:
        run.copy(asked.quick)
    except Exception as raised:
        run.note(f"copy: {brief(raised)}")
    process = None
    for name, make in todo.items():
        least = {"profile": 4, "torch": 8}.get(name, 15) if not asked.quick else 0
        if run.left() < least:
            run.note(f"{name}: skipped, {run.left():.0f} s left")
            continue
        if "torch" in todo and process is None:
            process = start_torch(asked.quick)
        try:
            if name == "torch":
                run.torch(process)
            elif name == "profile":
                run.profile()
            else:
                run.part(name, list(make()), min(45.0, 0.7 * run.left()))
        except Exception as raised:
            run.note(f"{name}: {brief(raised)}")
    if process is not None and process.poll() is None:
        process.kill()
    run.save()
    print(f"-- done, {run.left():.0f} s left, {len(run.records)} figures, {len(run.notes)} notes")
    sys.stdout.flush()
    os._exit(0)  # what still compiles is not waited for


if __name__ == "__main__":
    main()
