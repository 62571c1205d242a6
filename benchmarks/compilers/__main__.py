"""Compile for a target and print what its compiler made: see `benchmarks.compilers`."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.compilers import norms, recurrent, resources, slices, steps, table, targets

PARTS = {
    "norms": norms.measure,
    "forward": norms.measure_forward,
    "resources": resources.measure,
    "recurrent": recurrent.measure,
    "slices": slices.measure,
    "steps": steps.measure,
}
COMPILERS = {"tpu": ("libtpu",), "h100": ("jax-cuda13-plugin", "nvidia-cuda-nvcc")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compilers", description=__doc__)
    parser.add_argument("target", nargs="?", default="tpu", choices=[*targets.NAMES, "table"])
    parser.add_argument("--parts", default=",".join(PARTS), help=",".join(PARTS))
    parser.add_argument("--only", default="", help="comma-separated parts of names: layer,bn_lstm")
    parser.add_argument("--keep", action="store_true", help="write results/compilers/TARGET.json")
    asked = parser.parse_args()
    if asked.target == "table":
        table.bring_up_to_date()
        return
    parts = asked.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: there is no {unknown[0]!r}; known: {', '.join(PARTS)}")
    if not _has_compiler(asked.target):
        _run_in_its_environment(asked.target)
    if asked.keep and asked.only:
        parser.error("--keep keeps whole parts: leave --only out")
    record = measure(asked.target, parts, [v for v in asked.only.split(",") if v])
    if asked.keep:
        table.keep(record, parts)


def measure(target: str, parts: Sequence[str], only: Sequence[str] = ()) -> dict[str, Any]:
    """Compile all that is asked for, print a table of each part, and return the record."""

    def wanted(name: str) -> bool:
        return not only or any(part in name for part in only)

    compile_ = targets.compiler(target)
    found: dict[str, Any] = {"target": target, "versions": versions(target)}
    found["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    for name in PARTS:
        found[name] = []
        records = PARTS[name](compile_, target, wanted) if name in parts else ()
        for record in records:
            found[name].append(record)
            print(json.dumps(record), flush=True)
    for shown in table.tables(found):
        print(f"\n{shown}")
    return found


def versions(target: str) -> dict[str, str]:
    """The packages that determine what is compiled."""
    packages = ("jax", "jaxlib", "flax", *COMPILERS[target])
    return {name: importlib.metadata.version(name) for name in packages}


def _has_compiler(target: str) -> bool:
    try:
        importlib.metadata.version(COMPILERS[target][0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _run_in_its_environment(target: str) -> None:
    """Run this command again by the interpreter that has the compiler, and exit as it does."""
    python = targets.python(target)
    if not python.exists():
        sys.exit(f"The compiler for {target} is not installed: run make accelerators")
    path = os.pathsep.join([str(targets.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [str(python), "-m", "benchmarks.compilers", *sys.argv[1:]]
    environment = os.environ | targets.environment() | {"PYTHONPATH": path}
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
