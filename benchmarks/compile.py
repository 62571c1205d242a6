"""Seconds until the first step: tracing, and XLA's compilation.

    python -m benchmarks.compile [--only=layer,T784] [--rounds=3] [--quick] [--json=FILE]

The programs are those of `benchmarks.norms` and `benchmarks.recurrent`, forward and backward;
each is built in a process of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from absl import flags

from benchmarks import _layers, _measure, norms, recurrent


def cases(quick: bool) -> dict[str, list[_measure.Maker]]:
    """Every case, and how each library builds it."""
    found = {}
    for case in norms.CASES:
        shape = case.small if quick else case.shape
        name = f"{case.method} {'×'.join(map(str, shape))}"
        found[name] = norms.makers(case, shape, backward=True)
    for size in _layers.sizes(quick):
        found[_layers.named(size)] = _layers.makers(recurrent.MODULE, size)
    return found


def measure(asked: Any) -> list[dict[str, Any]]:
    """Every case that is asked for; each compilation in a fresh process."""
    records = []
    for case, makers in cases(asked.quick).items():
        if not _measure.wanted(case, asked.only):
            continue
        took: dict[str, list[tuple[float, float]]] = {}
        for _ in range(min(asked.rounds, asked.compilations)):
            for library, *how in makers:
                if library not in ("torch", "copy"):
                    made = _measure.build(case, library, *how)
                    if made is not None:
                        took.setdefault(library, []).append((made.trace, made.compile))
        for library, times in took.items():
            trace, build = (statistics.median(t) for t in zip(*times, strict=True))
            records.append({"case": case, "library": library, "trace_s": trace, "compile_s": build})
    return records


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    lines = ["| case | | trace s | compile s |", "| :--- | :--- | ---: | ---: |"]
    last = None
    for r in records:
        name = r["case"] if r["case"] != last else ""
        lines.append(f"| {name} | {r['library']} | {r['trace_s']:.3f} | {r['compile_s']:.3f} |")
        last = r["case"]
    return "\n".join(lines)


if __name__ == "__main__":
    flags.DEFINE_integer("compilations", 3, "Times that each program is compiled, at most.")
    _measure.launch("benchmarks.compile", measure, show=markdown)
