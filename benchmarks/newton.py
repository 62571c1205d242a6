"""Evaluation of a recurrent layer: Newton's method for all steps at once, beside the scan.

    python -m benchmarks.newton [--only=T8192] [--rounds=15] [--quick] [--json=FILE]

A case is named by steps T, batch B and units H. `sweeps` is how many Newton took, `difference` the
largest of its outputs from those of the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import _measure
from benchmarks.norms import draw
from normjax import recurrent
from normjax.recurrent import _newton

BATCH, FEATURES = 1, 8
UNITS = {"bn_lstm": (4, 16), "gru": (8, 32)}
LENGTHS = (128, 512, 2048, 8192)


def layer_of(cell: str, steps: int, hidden: int) -> recurrent.Recurrent:
    """Return a BN-LSTM with gamma 0.1 and statistics of each step, or a GRU without norms."""
    return recurrent.bn_lstm(hidden, steps) if cell == "bn_lstm" else recurrent.gru(hidden)


def prepared(cell: str, steps: int, hidden: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return `run(solver, params, state, x)` of a layer with statistics of data, and arguments."""
    layer = layer_of(cell, steps, hidden)
    params, state = layer.init(jax.random.key(0), FEATURES)
    many = jnp.asarray(draw((64, steps, FEATURES), 1))
    hyper = {"decay": 0.0} if layer.stateful else None
    _, state = layer.apply(params, state, many, stats="batch", hyper=hyper)

    def run(solver: Any, params: Any, state: Any, x: jax.Array) -> jax.Array:
        return layer.apply(params, state, x, stats="running", solver=solver)[0][0]

    return run, (params, state, jnp.asarray(draw((BATCH, steps, FEATURES), 0)))


def contender(solver: str, cell: str, steps: int, hidden: int) -> _measure.Contender:
    """One solver, compiled."""
    run, args = prepared(cell, steps, hidden)
    return _measure.of_jax(solver, lambda *args: run(solver, *args), args)


def sweeps(cell: str, steps: int, hidden: int) -> dict[str, Any]:
    """How many sweeps Newton takes, and how far from the scan it ends."""
    taken = []

    class Counting(_newton.Newton):
        def solve(self, *args: Any) -> _newton.Sweep:
            found = super().solve(*args)
            taken.append(int(found.sweeps))
            return found

    run, args = prepared(cell, steps, hidden)
    difference = jnp.max(jnp.abs(run(Counting(), *args) - run("scan", *args)))
    return {"sweeps": taken[0], "difference": float(difference)}


def measure(asked: Any) -> list[dict[str, Any]]:
    """Every case that is asked for."""
    records = []
    for cell, units in UNITS.items():
        for hidden in units[:1] if asked.quick else units:
            for steps in (16,) if asked.quick else LENGTHS:
                case = f"{cell} T{steps} B{BATCH} H{hidden}"
                if not _measure.wanted(case, asked.only):
                    continue
                size = {"cell": cell, "steps": steps, "hidden": hidden}
                makers = [
                    (
                        f"normjax {solver}",
                        "benchmarks.newton",
                        "contender",
                        {"solver": solver, **size},
                    )
                    for solver in ("scan", "newton")
                ]
                found = _measure.gather(case, makers, asked.libraries, asked.rounds)
                about = sweeps(**size)
                records += [r | (about if r["library"] == "normjax newton" else {}) for r in found]
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
