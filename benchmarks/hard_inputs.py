"""Hard inputs: what normjax and its peers make of them, each cell from a run.

    python -m benchmarks.hard_inputs [--json=FILE]

A cell is the largest error against a two-pass float64 reference (with the library's own eps), or
what went wrong: not finite, an error, or a feature that is not there. Peers that are not
installed are left out; `make peers` installs them. Seconds on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import DECAY, NotOffered, libraries, versions

# References -------------------------------------------------------------------------------------


def reference(x, axes, eps, mask=None):
    """Two passes in float64 of the numbers that the library was given."""
    x = np.asarray(x).astype(np.float64)
    keep = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape)
    n = np.maximum(keep.sum(axes, keepdims=True), 1)
    mean = np.where(keep, x, 0).sum(axes, keepdims=True) / n
    var = np.where(keep, (x - mean) ** 2, 0).sum(axes, keepdims=True) / n
    return np.where(keep, (x - mean) / np.sqrt(var + eps), 0), mean, var


def grouped(x, groups, eps, mask=None, leading=1):
    """Group norm by reshape, in float64."""
    split = (*x.shape[:-1], groups, x.shape[-1] // groups)
    axes = (*range(leading, x.ndim - 1), x.ndim)
    if mask is not None:
        mask = np.broadcast_to(mask, x.shape).reshape(split)
    return reference(np.asarray(x).reshape(split), axes, eps, mask)[0].reshape(x.shape)


def error(got, want, where=None) -> float:
    """Largest difference; NaN if anything is not finite."""
    got = np.asarray(got, np.float64)
    if not np.isfinite(got).all():
        return float("nan")
    far = np.abs(got - want)
    return float((far if where is None else np.where(where, far, 0)).max())


# Cases: error of one library, and the largest that is only rounding -----------------------------


def _normal(shape, mean=0.0, std=1.0, seed=0, dtype=jnp.float32):
    draw = np.random.RandomState(seed).randn(*shape) * std + mean
    return jnp.asarray(draw, dtype)


def _batch_of(lib, x, mask=None):
    y = lib.batch(x, mask=mask).y
    return error(y, reference(x, tuple(range(x.ndim - 1)), lib.eps["batch"], mask)[0], mask)


def _layer_of(lib, x, mask=None):
    return error(lib.layer(x, mask=mask), reference(x, -1, lib.eps["layer"], mask)[0], mask)


def _constant(lib):
    errors = [
        _batch_of(lib, jnp.full((64, 4), value, jnp.float32)) for value in (1e3, 1234.567, 3000.1)
    ]
    return float(np.max(errors))


def _masked_row(lib):
    mask = jnp.array([[True], [False], [True]])
    return _layer_of(lib, _normal((3, 8)), mask)


def _masked_batch(lib):
    start = (jnp.full(4, 0.5, jnp.float32), jnp.full(4, 2.0, jnp.float32))
    out = lib.batch(_normal((8, 4)), mask=jnp.zeros((8, 1), bool), start=start)
    return error(out.mean, 0.5) + error(out.var, 2.0) + 0 * error(out.y, 0)


def _nan_under_mask(lib):
    mask = jnp.arange(8)[:, None] < 5
    clean = _normal((8, 4))
    dirty = jnp.where(mask, clean, jnp.nan)
    weight = _normal((8, 4), seed=1)

    def loss(x):
        return jnp.sum(jnp.where(mask, lib.batch(x, mask=mask).y * weight, 0))

    value = _batch_of(lib, dirty, mask)
    grads = jnp.where(mask, jax.grad(loss)(dirty) - jax.grad(loss)(jnp.where(mask, clean, 0)), 0)
    return max(value, error(grads, 0), key=lambda e: (np.isnan(e), e))


def _inf_under_mask(lib):
    mask = jnp.arange(8)[:, None] < 5
    return _batch_of(lib, jnp.where(mask, _normal((8, 4)), jnp.inf), mask)


def _masked_channel(lib):
    mask = jnp.broadcast_to(jnp.arange(4)[None] != 2, (8, 4))
    return _batch_of(lib, _normal((8, 4)), mask)


def _float16(lib):
    x = _normal((64, 512), 100.0, dtype=jnp.float16)
    return error(lib.layer(x), reference(x, -1, lib.eps["layer"])[0])


def _broadcast_mask(lib):
    mask = jnp.asarray(np.random.RandomState(0).rand(2, 5, 1) < 0.6)
    x = _normal((2, 5, 8))
    want = grouped(x, 4, lib.eps["group"], mask)
    return error(lib.group(x, 4, mask=mask), want, mask)


def _uneven_devices(lib):
    x = jnp.asarray([[1.0], [2.0], [3.0], [0.0], [4.0], [9.0], [9.0], [9.0]], jnp.float32)
    mask = jnp.asarray([[True]] * 5 + [[False]] * 3)
    shards, masks = x.reshape(2, 4, 1), mask.reshape(2, 4, 1)
    start = (jnp.zeros(1), jnp.ones(1))

    def one(x, mask):
        return lib.batch(x, mask=mask, start=start, axis_name="d")

    out = jax.vmap(one, axis_name="d")(shards, masks)
    return error(out.mean[0] / (1 - DECAY), 2.0)


def _batch_of_one(lib):
    return _batch_of(lib, _normal((1, 4)))


def _bf16(lib):
    x = _normal((256, 4), 10.0, dtype=jnp.bfloat16)
    out = lib.batch(x)
    if jnp.finfo(out.var.dtype).bits < 32:
        return float("inf")
    y = np.asarray(out.y, np.float64)
    return error(y.std(0), 1.0) + error(y.mean(0), 0.0)


def _bf16_eval(lib):
    # Strongly typed: a weak float32 would be promoted down to bfloat16 by whoever subtracts it.
    mean, var = jnp.full(2, 100.4, jnp.float32), jnp.full(2, 0.01, jnp.float32)
    x = jnp.full((1, 2), 100.5, jnp.bfloat16)
    want = (float(x[0, 0]) - 100.4) / np.sqrt(0.01 + lib.eps["batch"])
    return error(lib.batch_eval(x, mean, var), want)


def _accumulation(lib):
    x = _normal((64, 4), 0.5)
    start = (jnp.zeros(4), jnp.ones(4))
    mean, var = lib.accumulate([x[:16], x[16:32], x[32:48], x[48:]], start)
    _, m, v = reference(x, 0, 0.0)
    return error(mean, (1 - DECAY) * m[0]) + error(var, DECAY + (1 - DECAY) * v[0])


def _leading_axes(lib):
    x = _normal((2, 3, 5, 8)) * _normal((2, 3, 1, 1), 3.0, seed=4)
    want = grouped(x, 4, lib.eps["group"], leading=2)
    return error(lib.group(x, 4, leading=2), want)


class Case(NamedTuple):
    """A row of the table."""

    name: str
    measure: Callable[[Any], float]
    rounding: float


CASES = (
    Case("layer norm, mean 1e4, std 1", lambda lib: _layer_of(lib, _normal((64, 512), 1e4)), 2e-3),
    Case("batch norm, mean 1e4, std 1", lambda lib: _batch_of(lib, _normal((512, 8), 1e4)), 2e-3),
    Case(
        "layer norm, mean 100, std 0.01",
        lambda lib: _layer_of(lib, _normal((64, 512), 100.0, 0.01)),
        2e-3,
    ),
    Case(
        "batch norm, mean 100, std 0.01",
        lambda lib: _batch_of(lib, _normal((512, 8), 100.0, 0.01)),
        2e-3,
    ),
    Case("batch norm, constant channels", _constant, 1e-3),
    Case("batch norm, batch of 1", _batch_of_one, 1e-3),
    Case("layer norm, a row all masked", _masked_row, 1e-5),
    Case("batch norm, batch all masked: statistics stay", _masked_batch, 1e-6),
    Case("batch norm, NaN under the mask, gradient too", _nan_under_mask, 1e-5),
    Case("batch norm, infinity under the mask", _inf_under_mask, 1e-5),
    Case("batch norm, a channel all masked", _masked_channel, 1e-5),
    Case("group norm, mask that only broadcasts", _broadcast_mask, 1e-5),
    Case("group norm, two leading batch axes", _leading_axes, 1e-4),
    Case("batch norm, devices with 4 and 1 valid rows", _uneven_devices, 1e-5),
    Case("layer norm, f16, mean 100", _float16, 5e-3),
    Case("batch norm, bf16, mean 10: std of output", _bf16, 0.02),
    Case("batch norm, bf16 evaluation, float32 statistics", _bf16_eval, 0.01),
    Case("batch norm, 4 microbatches = full batch", _accumulation, 1e-6),
)


def cell(case: Case, lib: Any) -> dict[str, Any]:
    """Measure one cell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = case.measure(lib)
    except NotOffered:
        return {"text": "not offered", "passes": None}
    except Exception as raised:  # a peer's failure is what the cell reports
        if lib.name == "normjax":
            raise
        return {"text": f"raises {type(raised).__name__}", "passes": False}
    if np.isnan(value):
        return {"text": "NaN", "passes": False}
    passes = bool(value <= case.rounding)
    text = f"{value:.0e}" if np.isfinite(value) else "statistics in half"
    return {"text": f"{text}" if passes else f"{text} ✗", "passes": passes, "error": float(value)}


def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Measure every cell."""
    libs = libraries()
    return {case.name: {lib.name: cell(case, lib) for lib in libs} for case in CASES}


def markdown(cells: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The table as Markdown."""
    names = list(next(iter(cells.values())))
    lines = ["| largest error | " + " | ".join(names) + " |", "| :--- |" + " ---: |" * len(names)]
    for case, row in cells.items():
        shown = (f"**{c['text']}**" if c["passes"] else c["text"] for c in row.values())
        lines.append(f"| {case} | " + " | ".join(shown) + " |")
    passed = [sum(bool(row[n]["passes"]) for row in cells.values()) for n in names]
    lines.append("| passed | " + " | ".join(f"{p} of {len(cells)}" for p in passed) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and keep it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, help="also write the cells to this file")
    asked = parser.parse_args()
    cells = table()
    print(markdown(cells))
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "command": "python -m benchmarks.hard_inputs",
            "cells": cells,
            "versions": versions(),
            "hardware": {"device": jax.devices()[0].device_kind, "cpus": os.cpu_count()},
        }
        asked.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
