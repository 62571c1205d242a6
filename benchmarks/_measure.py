"""The harness: contenders timed in turn, in one run, on the same arrays; a table and a JSON file.

Each contender has a process of its own, as it has where it is used: in one process, what one
library gives back to the allocator is what the next one finds there, and thread pools disturb
each other. Arrays are drawn from the same seeds. Each round runs every contender once, in another
random order, after one call that is not timed. So whatever else the machine does meets all of
them alike, and ratios hold where times do not.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

import normjax as nj

flags.DEFINE_bool("quick", False, "Tiny shapes and two rounds: that it runs, not how fast.")
flags.DEFINE_list("only", [], "Cases whose name contains one of these.")
flags.DEFINE_list("libraries", [], "Libraries to measure beside normjax; all that are installed.")
flags.DEFINE_integer("rounds", 15, "Times that each process is measured.", lower_bound=1)
flags.DEFINE_integer("contenders", 1, "Processes of each contender, pooled.", lower_bound=1)
flags.DEFINE_string("json", None, "Also write every figure, with versions and hardware, here.")

GROUPS = 32  # of group norm, in every library
PACKAGES = ("jax", "jaxlib", "flax", "dm-haiku", "equinox", "torch", "optax", "numpy")


class Cost(NamedTuple):
    """What one call took."""

    wall: float
    cpu: float
    faults: int


class Contender(NamedTuple):
    """One library in one case: a call that returns what it cost, and what is known beforehand.

    Attributes:
        library: which.
        call: runs once, to the end.
        moved: bytes that its program reads and writes, by the compiler's count.
        temporary: most bytes held at once beside arguments and results.
        trace: seconds until the program is XLA's.
        compile: seconds that XLA takes.
    """

    library: str
    call: Callable[[], Cost]
    moved: float | None = None
    temporary: int | None = None
    trace: float | None = None
    compile: float | None = None


# Library, module, function and its arguments: what a worker is told.
Maker = tuple[str, str, str, dict[str, Any]]


class Bar(NamedTuple):
    """A ratio of two medians that is aimed at: `slow / fast >= least` in cases named `case`."""

    case: str
    slow: str
    fast: str
    least: float


def timed(call: Callable[[], Any], finish: Callable[[Any], Any]) -> Cost:
    """Run once: wall clock, CPU time of all threads, and page faults."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    finish(call())
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return Cost(wall, cpu, after.ru_minflt - used.ru_minflt)


def of_jax(
    library: str, function: Callable[..., Any], args: Sequence[Any], carried: int = 0
) -> Contender:
    """Compile for these arguments; every array is an argument, none a constant.

    The first `carried` arguments are donated, and replaced by the first results, as a training
    loop does with its state.
    """
    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=range(carried)).lower(*args)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    # Copies, because what is donated is gone, and other contenders share the arrays.
    kept = [jax.tree.map(jnp.copy, a) for a in args[:carried]]

    def run() -> Any:
        results = compiled(*kept, *args[carried:])
        if carried:
            kept[:] = results[:carried]
        return results

    return Contender(
        library,
        lambda: timed(run, jax.block_until_ready),
        cost.get("bytes accessed"),
        getattr(memory, "temp_size_in_bytes", None),
        traced - start,
        done - traced,
    )


def forward_backward(apply: Callable[..., Any]) -> Callable[..., Any]:
    """From `apply(params, state, x) -> (y, state)`: output, state, and the gradients of `y * dy`.

    They are those of params and x, and everything is returned, so nothing is left out.
    """

    def both(params: Any, state: Any, x: Any, dy: Any) -> Any:
        y, pull, new = jax.vjp(lambda p, x: apply(p, state, x), params, x, has_aux=True)
        return y, new, pull(dy)

    return both


class Worker:
    """A process with one contender; see `benchmarks._worker`."""

    def __init__(self, library: str, module: str, function: str, arguments: dict[str, Any]) -> None:
        self.library = library
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=pathlib.Path(__file__).parents[1],
        )
        self._send({"module": module, "function": function, "arguments": arguments})

    def _send(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended"}

    def built(self) -> Contender | str:
        """Wait until it has compiled: the contender, or why there is none."""
        facts = self._answer()
        if "error" in facts:
            self.close()
            return str(facts["error"])
        return Contender(self.library, self.run, **facts)

    def run(self) -> Cost:
        """Run once."""
        self._send("run")
        return Cost(*self._answer()["cost"])

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def compete(contenders: Sequence[Contender], rounds: int) -> dict[str, list[Cost]]:
    """Measure every contender once a round, in another order each time."""
    # Contenders of one name, in several processes, are pooled.
    costs: dict[str, list[Cost]] = {c.library: [] for c in contenders}
    order, shuffle = list(contenders), random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for contender in order:
            contender.call()
            costs[contender.library].append(contender.call())
    return costs


def summary(case: str, contenders: Sequence[Contender], rounds: int) -> list[dict[str, Any]]:
    """One record per contender, with its ratios to the first (ours) and to a copy."""
    costs = compete(contenders, rounds)
    middle = {k: statistics.median(c.wall for c in v) for k, v in costs.items()}
    first, records = contenders[0].library, []
    for c in {c.library: c for c in contenders}.values():
        cpu = statistics.median(one.cpu for one in costs[c.library])
        records.append(
            {
                "case": case,
                "library": c.library,
                "median_ms": 1e3 * middle[c.library],
                "min_ms": 1e3 * min(one.wall for one in costs[c.library]),
                "cpu_ms": 1e3 * cpu,
                "page_faults": statistics.median(one.faults for one in costs[c.library]),
                "times_first": middle[c.library] / middle[first],
                "copies": middle[c.library] / middle["copy"] if "copy" in middle else None,
                "bytes_moved": c.moved,
                "temporary_bytes": c.temporary,
                "trace_s": c.trace,
                "compile_s": c.compile,
                "wall_ms": [1e3 * one.wall for one in costs[c.library]],
            }
        )
    return records


def gather(
    case: str,
    makers: Iterable[Maker],
    only: Sequence[str] = (),
    rounds: int = 15,
    processes: int = 1,
) -> list[dict[str, Any]]:
    """Start the contenders that are installed and offer the case, and measure them.

    Args:
        case: its name.
        makers: library, module, function and its arguments; ours first.
        only: libraries to measure beside ours; empty is all.
        rounds: times each process is measured.
        processes: how many each contender has.
    """
    workers, found = [], []
    try:
        for library, module, function, arguments in [m for m in makers for _ in range(processes)]:
            if only and library not in only and not library.startswith(("normjax", "copy")):
                continue
            workers.append(Worker(library, module, function, arguments))
            # One after the other, so that compilations do not fill the machine.
            contender = workers[-1].built()
            if isinstance(contender, str):
                print(f"{case}: {library} is left out: {contender}", file=sys.stderr)
            else:
                found.append(contender)
        return summary(case, found, rounds) if found else []
    finally:
        for worker in workers:
            if not worker.process.stdin.closed:  # type: ignore[union-attr]
                worker.close()


def build(
    case: str, library: str, module: str, function: str, arguments: dict[str, Any]
) -> Contender | None:
    """Build once, for what building takes; nothing is run."""
    worker = Worker(library, module, function, arguments)
    made = worker.built()
    if isinstance(made, str):
        print(f"{case}: {library} is left out: {made}", file=sys.stderr)
        return None
    worker.close()
    return made


def _cell(value: Any, form: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value * scale, form)


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    lines = [
        "| case | | median ms | min ms | CPU ms | page faults | × first row | copies | MB moved "
        "| MB temporary |",
        "| :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    last = None
    for r in records:
        lines.append(
            f"| {r['case'] if r['case'] != last else ''} | {r['library']} "
            f"| {r['median_ms']:.2f} | {r['min_ms']:.2f} | {r['cpu_ms']:.2f} "
            f"| {r['page_faults']:.0f} | {r['times_first']:.2f} "
            f"| {_cell(r['copies'], '.1f')} | {_cell(r['bytes_moved'], '.1f', 1e-6)} "
            f"| {_cell(r['temporary_bytes'], '.1f', 1e-6)} |"
        )
        last = r["case"]
    return "\n".join(lines)


def bars_of(records: Sequence[dict[str, Any]], bars: Sequence[Bar]) -> str:
    """What became of each ratio that is aimed at, as a Markdown table."""
    lines = ["| case | ratio | aim | median | CPU time |", "| :--- | :--- | ---: | ---: | ---: |"]
    found = {(r["case"], r["library"]): r for r in records}
    for case in dict.fromkeys(r["case"] for r in records):
        for bar in bars:
            slow, fast = found.get((case, bar.slow)), found.get((case, bar.fast))
            if not case.startswith(bar.case) or slow is None or fast is None:
                continue
            ratio = slow["median_ms"] / fast["median_ms"]
            cpu = slow["cpu_ms"] / max(fast["cpu_ms"], 1e-9)
            shown = f"**{ratio:.2f}**" if ratio >= bar.least else f"{ratio:.2f}"
            lines.append(
                f"| {case} | {bar.slow} / {bar.fast} | {bar.least:.2f} | {shown} | {cpu:.2f} |"
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def versions() -> dict[str, str]:
    """Of what was measured."""
    found = {"normjax": nj.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Of what it was measured on, and how busy that was."""
    info = pathlib.Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.exists() else []
    model = next((n.split(":")[1].strip() for n in names if n.startswith("model name")), "unknown")
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": model,
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "allocator": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
    }


def report(command: str, records: list[dict[str, Any]], shown: str) -> None:
    """Print the table, and write the JSON if asked."""
    print(shown)
    where = flags.FLAGS.json
    if where:
        path = pathlib.Path(where)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {
            "command": " ".join([f"python -m {command}", *sys.argv[1:]]),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "hardware": hardware(),
            "records": records,
        }
        path.write_text(json.dumps(whole, indent=1) + "\n")


def launch(
    command: str,
    measure: Callable[[Any], list[dict[str, Any]]],
    bars: Sequence[Bar] = (),
    show: Callable[..., str] = markdown,
) -> None:
    """Run a module of benchmarks: `measure(flags) -> records`."""

    def main(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments: {argv[1:]}")
        asked = flags.FLAGS
        if asked.quick:
            asked.rounds = 2
        records = measure(asked)
        if not records:
            raise app.UsageError(f"--only={','.join(asked.only)} is in the name of no case.")
        parts = [show(records), *([bars_of(records, bars)] if bars else [])]
        report(command, records, "\n\n".join(part for part in parts if part))

    app.run(main)


def wanted(name: str, only: Sequence[str]) -> bool:
    """Whether `--only` asks for a case."""
    return not only or any(part in name for part in only)
