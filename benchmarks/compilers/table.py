"""The tables of `benchmarks/README.md`, made from `results/compilers`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.compilers import norms, targets

RESULTS = targets.ROOT / "results" / "compilers"
README = targets.ROOT / "benchmarks" / "README.md"
PARTS = ("norms", "forward", "resources", "recurrent", "slices", "steps")


def text(record: dict[str, Any]) -> str:
    """A record as JSON, one line for each measurement."""
    lines = []
    for key, value in record.items():
        if isinstance(value, list):
            inner = ",\n  ".join(json.dumps(v) for v in value)
            lines.append(f' "{key}": [\n  {inner}\n ]')
        else:
            lines.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def keep(record: dict[str, Any], parts: Sequence[str]) -> None:
    """Write the parts of a record; what is there of others, made by the same versions, stays."""
    path = RESULTS / f"{record['target']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("versions") == record["versions"]:
        record = record | {k: v for k, v in before.items() if k in PARTS and k not in parts}
    path.write_text(text(record))


def tables(record: dict[str, Any]) -> Iterator[str]:
    """Each part of a record as a Markdown table; parts without records have none."""
    target = record["target"]
    if record["norms"]:
        yield _norms(record["norms"], target)
    if record.get("forward"):
        yield _forward(record["forward"])
    if record.get("resources"):
        yield _resources(record["resources"])
    if record["recurrent"]:
        yield _recurrent(record["recurrent"])
    if record["slices"]:
        yield _slices(record["slices"])
    if record.get("steps"):
        yield _steps(record["steps"])


def _norms(records: Sequence[dict[str, Any]], target: str) -> str:
    most = {(case.name, case.shape): case.most.get(target) for case in norms.CASES}
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for r in records:
        shape = "×".join(map(str, r["shape"]))
        found.setdefault((r["norm"], shape, r["dtype"]), {})[r["impl"]] = r
    rows = []
    for (name, shape, dtype), by in found.items():
        aim = most.get((name, tuple(by["xla"]["shape"])))
        if target == "tpu" and "flax" in by:  # at most what Flax moves
            aim = min(round(by["flax"]["copies"]), aim or math.inf)
        cells = [f"{by[i]['copies']:.1f}" if i in by else "" for i in ("xla", "kernel", "flax")]
        # Aims are whole passes over x; sums of parts come on top.
        if aim and round(by["xla"]["copies"]) <= aim:
            cells[0] = f"**{cells[0]}**"
        counts = ["/".join(str(by[i][k]) for i in by) for k in ("kernels", "temporary_mb")]
        rows.append([f"{name} {shape}", dtype, f"{aim:g}" if aim else "", *cells, *counts])
    heads = ("aim", "XLA", "kernel", "Flax", "kernels launched", "MB temporary")
    return markdown(("norm", "dtype"), heads, rows)


def _forward(records: Sequence[dict[str, Any]]) -> str:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for r in records:
        shape = "×".join(map(str, r["shape"]))
        found.setdefault((f"{r['norm']} {shape}", r["dtype"]), {})[r["impl"]] = r
    rows = []
    for labels, by in found.items():
        cells = [f"{by[i]['copies']:.1f}" if i in by else "" for i in ("xla", "kernel", "flax")]
        rows.append([*labels, *cells, "/".join(str(r["kernels"]) for r in by.values())])
    return markdown(("forward alone", "dtype"), ("XLA", "kernel", "Flax", "kernels launched"), rows)


def _resources(records: Sequence[dict[str, Any]]) -> str:
    """One line a program: a number for each kernel of Pallas, or the largest of XLA's."""
    heads = {"threads": "threads", "registers": "registers", "spill_bytes": "bytes spilled"}
    heads |= {"shared_bytes": "KiB shared", "vmem_bytes": "KiB of VMEM"}
    fields = [field for field in heads if field in records[0]]
    rows = []
    for r in records:
        cells = []
        for field in fields:
            unit = 1024 if field in ("shared_bytes", "vmem_bytes") else 1
            cells.append("/".join(f"{v / unit:.1f}".removesuffix(".0") for v in r[field]))
        by = {"kernel": "kernel", "xla": "XLA, largest"}[r["impl"]]
        rows.append([r["program"], r["dtype"], by, *cells])
    return markdown(("program", "dtype", "by"), [heads[f] for f in fields], rows)


def _recurrent(records: Sequence[dict[str, Any]]) -> str:
    rows = []
    for r in records:
        size = " ".join(f"{k}{v}" for k, v in zip("TBDH", r["size"], strict=True))
        rows.append([r["layer"], size, *_two(r["kernels_a_step"]), str(r["temporary_mb"])])
    heads = ("kernels a step, forward", "backward", "MB temporary")
    return markdown(("layer", "size"), heads, rows)


def _slices(records: Sequence[dict[str, Any]]) -> str:
    rows = [
        [r["layer"], r["slice"], r["mode"], *_two(r["a_step"]), str(r["outside"])] for r in records
    ]
    heads = ("collectives a step, forward", "backward", "outside of loops")
    return markdown(("layer", "slice", ""), heads, rows)


def _steps(records: Sequence[dict[str, Any]]) -> str:
    found: dict[str, dict[str, Any]] = {}
    for r in records:
        found.setdefault(r["config"], {})[r.get("mode", "")] = r
    modes = list(dict.fromkeys(r["mode"] for r in records if "mode" in r))
    rows = []
    for config, by in found.items():
        cells = [""] * 4
        if (one := by.get("")) is not None:  # what is asked for may be on a slice alone
            turns = "/".join(map(str, one["kernels_a_turn"]))
            moved = "" if one["moved_mb"] is None else f"{one['moved_mb']:.0f}"
            cells = [str(one["kernels"]), turns, moved, str(one["temporary_mb"])]
        for mode in modes:
            split = by.get(mode, {"a_step": [], "outside": ""})
            cells += ["/".join(map(str, split["a_step"])), str(split["outside"])]
        rows.append([config, *cells])
    heads = ["kernels", "a turn of its loops", "MB moved", "MB temporary"]
    for mode in modes:
        heads += [f"{mode}: collectives a turn", "outside"]
    return markdown(("training step",), heads, rows)


def _two(loops: Sequence[Any]) -> list[str]:
    """Write the numbers of the loops forward and backward; a layer may have none."""
    return [str(loop) for loop in [*loops, "", ""][:2]]


def markdown(labels: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table: columns of labels to the left, of numbers to the right."""
    lines = [[*labels, *numbers], [":---"] * len(labels) + ["---:"] * len(numbers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def section(record: dict[str, Any]) -> str:
    """All tables of a target, with the command and versions that made them."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    head = (
        f"`python -m benchmarks.compilers {record['target']} --keep`, {record['date']}, {versions}."
    )
    return "\n\n".join([head, *tables(record)])


def replaced(readme: str, record: dict[str, Any]) -> str:
    """The text of the README with the section of one target brought up to date."""
    start, end = (f"<!-- compilers {record['target']}{s} -->" for s in ("", ", end"))
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.S)
    return pattern.sub(lambda _: f"{start}\n\n{section(record)}\n\n{end}", readme)


def bring_up_to_date() -> None:
    """Write the tables of all kept records into `benchmarks/README.md`."""
    readme = README.read_text()
    for name in targets.NAMES:
        path = RESULTS / f"{name}.json"
        if path.exists():
            readme = replaced(readme, json.loads(path.read_text()))
    README.write_text(readme)
