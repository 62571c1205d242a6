"""Reads a compiled program's text: kernels and the bytes that they move, loops, collectives."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4}
BYTES |= {"bf16": 2, "f16": 2, "s16": 2, "u16": 2, "pred": 1, "s8": 1, "u8": 1}
ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]")
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
# These only name memory, and run nothing.
NAMES = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all"}
COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast"),
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One instruction that runs, and the bytes of its operands and results."""

    name: str
    op: str
    operands: tuple[int, ...]
    results: int
    line: str

    @property
    def moved(self) -> int:
        """Bytes read and written, where each operand is read once."""
        return sum(self.operands) + self.results


def size(text: str) -> int:
    """Bytes of all arrays that a type names."""
    return sum(
        BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in ARRAY.findall(text)
    )


def _itemsize(kind: str) -> int:
    match = ARRAY.search(kind)
    return BYTES[match[1]] if match else 1


def kernels(body: str, fused: dict[str, str] | None = None) -> list[Kernel]:
    """The instructions of a computation that run, in order; starts and ends count as one.

    `fused` holds the computations of fusions by name: an operand of which one takes only a slice
    counts as that slice.
    """
    types: dict[str, str] = {}
    found = []
    for line in body.splitlines():
        match = INSTRUCTION.match(line)
        if not match:
            continue
        name, kind, op, rest = match.groups()
        types[name] = kind
        if op in NAMES or op.endswith("-done"):
            continue
        operands = re.findall(r"%([\w.\-]+)", _arguments(rest))
        called = re.search(r"calls=%?([\w.\-]+)", rest)
        slices = _slices((fused or {}).get(called[1], "")) if called else {}
        read = tuple(
            min(size(types.get(o, "")), slices.get(operands.index(o), math.inf))
            for o in dict.fromkeys(operands)
        )
        found.append(Kernel(name, op, read, size(kind), line.strip()))
    return found


@functools.lru_cache(maxsize=4096)
def _slices(body: str) -> dict[int, int]:
    """Bytes that a fused computation reads of each parameter of which it takes only slices."""
    found = {}
    lines = [m for m in map(INSTRUCTION.match, body.splitlines()) if m]
    for name, kind, op, rest in (m.groups() for m in lines):
        if op != "parameter":
            continue
        # Under its own name and others, of another type or shape, but of the same values.
        names, taken = {name}, 0
        for other, type_, how, operands in (m.groups() for m in lines):
            if names & set(re.findall(r"%([\w.\-]+)", _arguments(operands))):
                if how in ("convert", "bitcast"):
                    names.add(other)
                elif how in ("slice", "dynamic-slice"):
                    taken += size(type_) * _itemsize(kind) // _itemsize(type_)
                else:
                    break
        else:
            found[int(_arguments(rest))] = taken
    return found


def _arguments(rest: str) -> str:
    """The text up to the bracket that closes an instruction's arguments."""
    depth = 1
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return rest[:i]
    return rest


def computations(text: str) -> dict[str, str]:
    """Bodies of all computations by name; the program's own is `ENTRY`."""
    found = re.findall(r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.S | re.M)
    return {"ENTRY" if entry else name: body for entry, name, body in found}


def entry(text: str) -> list[Kernel]:
    """The kernels of a program, without those inside its loops."""
    bodies = computations(text)
    return kernels(bodies.get("ENTRY", ""), bodies)


def loops(text: str) -> list[list[Kernel]]:
    """The kernels of one turn of each loop, in order of the text; a call's kernels count too."""
    bodies = computations(text)
    names = re.findall(r" while\(.*?body=%?([\w.\-]+)", text)
    return [list(_inside(bodies, name)) for name in names]


def _inside(bodies: dict[str, str], name: str) -> Iterator[Kernel]:
    for kernel in kernels(bodies.get(name, ""), bodies):
        called = re.search(r"to_apply=%?([\w.\-]+)", kernel.line)
        if kernel.op in ("call", "async-start") and called and called[1] in bodies:
            yield from _inside(bodies, called[1])
        else:
            yield kernel


def collectives(found: list[Kernel]) -> dict[str, int]:
    """How many collectives of each kind are among kernels."""
    counts: dict[str, int] = {}
    for kernel in found:
        op = kernel.op.removesuffix("-start")
        if op in COLLECTIVES:
            counts[op] = counts.get(op, 0) + 1
    return counts


def vmem(kernel: Kernel) -> int:
    """Bytes of a TPU's on-chip memory that a kernel has for itself while it runs."""
    used = re.search(r'"used_scoped_memory_configs":\[(.*?)\]', kernel.line)
    sizes = re.findall(r'"memory_space":"1".*?"size":"(\d+)"', used[1]) if used else []
    return sum(map(int, sizes))


def bytes_accessed(compiled: Any) -> float:
    """XLA's own count of the bytes that a program reads and writes."""
    return float((compiled.cost_analysis() or {}).get("bytes accessed", 0))
