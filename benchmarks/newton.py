"""Evaluation of a recurrent layer: Newton's method for all steps at once, beside the scan.

    python -m benchmarks.newton [--only=T8192] [--rounds=15] [--quick] [--json=FILE]

A case is named by steps T, batch B and units H. Both solvers run in one process: these arrays are
small. `sweeps` is how many Newton took, `difference` the largest of its outputs from the scan's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import _measure
from benchmarks.norms import draw
from normjax import recurrent
from normjax.recurrent import _newton

BATCH, FEATURES = 1, 8
UNITS = {"bn_lstm": (4, 16), "gru": (8,)}
LENGTHS = (128, 512, 2048, 8192)


def layer_of(cell: str, steps: int, hidden: int) -> recurrent.Recurrent:
    """Return a BN-LSTM with gamma 0.1 and statistics of each step, or a GRU without norms."""
    return recurrent.bn_lstm(hidden, steps) if cell == "bn_lstm" else recurrent.gru(hidden)


def prepared(cell: str, steps: int, hidden: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return `run(solver, params, state, x)` of a layer with statistics of data, and arguments."""
    layer = layer_of(cell, steps, hidden)
    params, state = layer.init(jax.random.key(0), FEATURES)
    many = jnp.asarray(draw((64, steps, FEATURES), 1))
    _, state = layer.apply(params, state, many, stats="batch")  # the first replaces the start

    def run(solver: Any, params: Any, state: Any, x: jax.Array) -> jax.Array:
        return layer.apply(params, state, x, stats="running", solver=solver)[0][0]

    return run, (params, state, jnp.asarray(draw((BATCH, steps, FEATURES), 0)))


def case(name: str, cell: str, steps: int, hidden: int, rounds: int) -> list[dict[str, Any]]:
    """Time both solvers in turn, count Newton's sweeps, and compare the outputs."""
    run, args = prepared(cell, steps, hidden)
    timed = [
        _measure.of_jax(f"normjax {solver}", functools.partial(run, solver), args)
        for solver in ("scan", "newton")
    ]
    taken = []

    class Counting(_newton.Newton):
        def solve(self, *system: Any) -> _newton.Sweep:
            found = super().solve(*system)
            taken.append(int(found.sweeps))
            return found

    difference = jnp.max(jnp.abs(run(Counting(), *args) - run("scan", *args)))
    scan, newton = _measure.summary(name, timed, rounds)
    return [scan, newton | {"sweeps": taken[0], "difference": float(difference)}]


def measure(asked: Any) -> list[dict[str, Any]]:
    """Every case that is asked for."""
    records = []
    for cell, units in UNITS.items():
        for hidden in units[:1] if asked.quick else units:
            for steps in (16,) if asked.quick else LENGTHS:
                name = f"{cell} T{steps} B{BATCH} H{hidden}"
                if _measure.wanted(name, asked.only):
                    records += case(name, cell, steps, hidden, asked.rounds)
    return records


def table(records: list[dict[str, Any]]) -> str:
    """Times of both solvers, and what Newton's were spent on."""
    lines = [
        "| case | scan ms | newton ms | newton / scan | CPU ms | newton | sweeps | difference |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for scan, newton in zip(records[::2], records[1::2], strict=True):
        lines.append(
            f"| {scan['case']} | {scan['median_ms']:.2f} | {newton['median_ms']:.2f} "
            f"| {newton['times_first']:.1f} | {scan['cpu_ms']:.2f} | {newton['cpu_ms']:.2f} "
            f"| {newton['sweeps']} | {newton['difference']:.0e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    _measure.launch("benchmarks.newton", measure, show=table)
