"""Writes the tables of `benchmarks/README.md` about devices, from `results/h100`.

    python -m benchmarks.device_table

A folder of `results/h100` is named by its day. It holds `bench.json` of `benchmarks.device`, what
`tests/device` gave in `tests.json`, and `variants.json`. Its tables stand where the README marks
the day.
"""

from __future__ import annotations

import collections
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks._device_programs import BOTH, METHODS
from benchmarks.compilers.table import README, markdown
from benchmarks.compilers.targets import ROOT

RESULTS = ROOT / "results" / "h100"
NORMS = {"ours": "normjax", "our kernel": "normjax kernel", "Flax": "flax.linen", "torch": "torch"}
LAYERS = {
    "normjax lstm": "LSTM, scan",
    "normjax lstm, loops recorded": "LSTM, scan, loops recorded",
    "normjax lstm cudnn": 'LSTM, `impl="cudnn"`',
    "flax lstm": "LSTM, Flax",
    "torch lstm": "LSTM, torch (cuDNN)",
    "normjax bn_lstm": "BN-LSTM, scan",
    "normjax bn_lstm, loops recorded": "BN-LSTM, scan, loops recorded",
    "normjax bn_lstm kernel": 'BN-LSTM, `impl="kernel"`',
    "normjax ln_lstm": "LN-LSTM, scan",
    "normjax ln_lstm, loops recorded": "LN-LSTM, scan, loops recorded",
}
SIDE_BY_SIDE = ("normjax lstm", "normjax bn_lstm", "normjax bn_lstm kernel")

Records = Sequence[dict[str, Any]]


def tables(folder: pathlib.Path) -> Iterator[str]:
    """Each table of a folder, under the command and versions that made its numbers."""
    bench, tests, variants = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("bench", "tests", "variants")
    )
    found = bench["records"]
    versions = ", ".join(f"{k} {bench['versions'][k]}" for k in ("jax", "flax", "torch", "normjax"))
    copies = ", ".join(
        f"{r['case'].removeprefix('copy ')} at {r['gbps']:,.0f} GB/s"
        for r in found
        if r["part"] == "copy" and r["case"].startswith("copy")
    )
    yield (
        f"`{bench['command']}`, {bench['date'][:10]}, {bench['hardware']['device']}, {versions}. "
        f"The device copies an array of {copies}, each byte read and written."
    )
    yield "Norms: copies of x, and in brackets GB/s of the bytes that have to be moved."
    yield _norms(found)
    yield "Recurrent layers: microseconds a time step; T steps, batch B, D features, H units."
    yield _recurrent(found)
    yield (
        "Models side by side under `jax.vmap`, B100 D1 H100, forward and backward: microseconds a "
        "time step of all, and in brackets of one."
    )
    yield _side_by_side(found)
    yield "The same with a classifier and an update of SGD (`variants.json`)."
    yield _variants(variants["records"])
    yield "`tests/device` against float64."
    yield _tests(tests["tests"])


def _norms(records: Records) -> str:
    """Copies, and GB/s of the bytes that have to be read and written."""
    found: dict[str, dict[str, Any]] = {}
    for r in records:
        if "copies" in r:
            found.setdefault(r["case"], {})[r["library"]] = r
    order = [f"{m} {d}" for m in METHODS for d in ("float32", "bfloat16")]
    rows = []
    for case in (f"{c} {way}" for c in order for way in BOTH):
        by = found.get(case, {})
        if "normjax" in by:
            needed = f"{by['normjax']['floor_copies']:g}"
            cells = [
                f"{by[k]['copies']:.2f} ({by[k]['gbps']:,.0f})" if k in by else ""
                for k in NORMS.values()
            ]
            rows.append([*case.split(), needed, *cells])
    return markdown(("norm", "dtype", ""), ("needed", *NORMS), rows)


def _recurrent(records: Records) -> str:
    """Microseconds a time step, by layer and size."""
    found = {
        (r["case"], r["library"]): r["us_a_step"]
        for r in records
        if "us_a_step" in r and r["part"] != "side_by_side"
    }
    cases = sorted(dict.fromkeys(case for case, _ in found), key=_by_size)
    rows = [
        [title, *(f"{found[case, name]:.2f}" if (case, name) in found else "" for case in cases)]
        for name, title in LAYERS.items()
        if any((case, name) in found for case in cases)
    ]
    return markdown(("µs a time step",), cases, rows)


def _by_size(case: str) -> tuple[int, ...]:
    """Order by units, then steps, then direction."""
    numbers = [int(n) for n in re.findall(r"[TBDH](\d+)", case)]
    return (numbers[-1], numbers[0], len(case))


def _side_by_side(records: Records) -> str:
    """Microseconds a time step of all models, of one of them, and memory."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for r in records:
        if r["part"] == "side_by_side":
            found.setdefault((r["models"], r["steps"]), {})[r["library"]] = r
    rows = []
    for (models, steps), by in found.items():
        cells = []
        for name in SIDE_BY_SIDE:
            us = by[name]["us_a_step"] if name in by else None
            cells.append("" if us is None else f"{us:.1f} ({us / models:.1f})")
        for name in SIDE_BY_SIDE[1:]:
            cells.append(f"{by[name]['temporary_bytes'] / 1e9:.2f}")
        rows.append([str(models), str(steps), *cells])
    heads = [*(LAYERS[name] for name in SIDE_BY_SIDE), "GB, BN-LSTM scan", "GB, BN-LSTM kernel"]
    return markdown((), ("models", "steps", *heads), rows)


def _variants(records: Records) -> str:
    """Milliseconds an update, by model, precision and unrolling."""
    rows = []
    for r in sorted(records, key=lambda r: (r["steps"], r["models"], r["cell"], r["impl"])):
        if "ms_update" not in r:
            continue
        by = "scan" if r["impl"] == "xla" else "kernel"
        name = {"lstm": "LSTM", "bn_lstm": "BN-LSTM"}[r["cell"]]
        # The kernel multiplies in float32 whatever JAX's default is.
        exact = r["precision"] == "highest" or by == "kernel"
        numbers = [r["models"], r["steps"], r["unroll"]]
        times = [f"{r['ms_update']:.2f}", f"{r['us_scan_step_and_model']:.2f}"]
        products = "float32" if exact else "TF32"
        rows.append([f"{name}, {by}", products, *map(str, numbers), *times])
    heads = ("models", "steps", "steps a turn", "ms an update", "µs a step and model")
    return markdown(("", "products"), heads, rows)


def _tests(records: Records) -> str:
    """How many tests of a file passed."""
    counts: dict[str, collections.Counter[str]] = {}
    for r in records:
        counts.setdefault(r["file"], collections.Counter())[r["outcome"]] += 1
    kinds = ("passed", "failed", "stopped")
    rows = [[f"`{file}`", *(str(n[k]) for k in kinds)] for file, n in counts.items()]
    total = sum(counts.values(), collections.Counter())
    rows.append(["all", *(str(total[k]) for k in kinds)])
    return markdown(("tests/device",), kinds, rows)


def replaced(readme: str, folder: pathlib.Path) -> str:
    """The text of the README with the tables of a folder brought up to date."""
    start, end = (f"<!-- h100 {folder.name}{s} -->" for s in ("", ", end"))
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.S)
    section = "\n\n".join([start, *tables(folder), end])
    return pattern.sub(lambda _: section, readme)


def folders() -> list[pathlib.Path]:
    """The folders that have all three files."""
    return sorted(p.parent for p in RESULTS.glob("*/variants.json"))


def main() -> None:
    """Entry point of ``python -m benchmarks.device_table``."""
    readme = README.read_text()
    for folder in folders():
        readme = replaced(readme, folder)
    README.write_text(readme)


if __name__ == "__main__":
    main()
