"""Generates the tables of methods from docstrings and by running each method. Needs no Sphinx."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from typing import Any

import jax
import numpy as np

import normjax as nj
from normjax.testing import REPARAMS, SAMPLES
from normjax_docs.names import public


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the methods table, read from the code."""

    name: str
    formula: str
    axes: str
    params: str
    state: str
    eps: str
    mask: str
    paper: str


def factories(kind: str) -> list[str]:
    """Public functions that return a `Norm` or a `Reparam`."""
    return [
        n
        for n in public("normjax")
        if inspect.isfunction(f := getattr(nj, n)) and f.__annotations__.get("return") == kind
    ]


@functools.cache
def norms() -> tuple[Method, ...]:
    """A row for each public norm; raises if one has no sample, formula or reference."""
    return tuple(norm(name) for name in factories("Norm"))


def reparams() -> list[Method]:
    """A row for each public method for weights."""
    return [reparam(name) for name in factories("Reparam")]


def norm(name: str) -> Method:
    """The row of a norm: its default if it has one, else its sample of `normjax.testing`."""
    sample = next((s for s in SAMPLES if s.norm.factory == name), None)
    if sample is None:
        raise LookupError(f"{name} has no line in normjax.testing.SAMPLES")
    needed = inspect.signature(getattr(nj, name)).parameters.values()
    plain = all(p.default is not p.empty for p in needed)
    value = getattr(nj, name)() if plain else sample.norm
    params, state = value.init(SHAPE)
    return Method(
        name=name,
        axes=depends_on(value),
        params=_names(params),
        state=_names(state) if value.stateful else "",
        mask="yes" if sample.mask_shape is not None else "no",
        **_documented(name),
    )


def reparam(name: str) -> Method:
    """The row of a method for weights."""
    sample = next((s for s in REPARAMS if s.reparam.factory == name), None)
    if sample is None:
        raise LookupError(f"{name} has no line in normjax.testing.REPARAMS")
    params, state = sample.reparam.init(sample.weight())
    return Method(
        name=name,
        axes="",
        params=_names(params),
        state=_names(state) if sample.reparam.stateful else "",
        mask="",
        **_documented(name),
    )


def _documented(name: str) -> dict[str, str]:
    function = getattr(nj, name)
    text = inspect.getdoc(function) or ""
    formula = re.search(r"\$\$(.+?)\$\$", text, re.S)
    paper = re.search(r"\nReference:\n(.+?)(?:\n\n|\Z)", text, re.S)
    if not formula or not paper:
        raise LookupError(f"the docstring of {name} has no formula or no reference")
    eps = inspect.signature(function).parameters.get("eps")
    return {
        "formula": re.sub(r"\s+", " ", formula[1]).strip(),
        "paper": re.sub(r"\s+", " ", paper[1]).strip(),
        "eps": f"{eps.default:g}".replace("e-0", "e-") if eps else "",
    }


def _names(tree: Any) -> str:
    """Names of the leaves of a params or state tuple that exist: `scale`, `bias`."""
    if not hasattr(tree, "_fields"):
        return ""
    return ", ".join(f"`{f}`" for f in tree._fields if getattr(tree, f) is not None)


SHAPE = (6, 2, 2, 64)  # N, H, W, C


def depends_on(norm: Any) -> str:
    """Axes of the set that one value is normalized with: which other values of x change it."""
    x = jax.random.normal(jax.random.key(0), SHAPE)
    params, state = norm.init(SHAPE)
    params = jax.tree.map(lambda p: p + 0.25, params)  # a scale of 0 would hide every dependence

    @jax.jit
    def sensitivity(x: jax.Array) -> jax.Array:
        def first(x: jax.Array) -> jax.Array:
            return norm.apply(params, state, x, stats="batch")[0][0, 0, 0, 1]

        # For x and for -x: a threshold or a maximum has zero gradient on one side.
        return abs(jax.grad(first)(x)) + abs(jax.grad(first)(-x))

    moved = np.asarray(sensitivity(x)) > 1e-12
    parts = []
    for axis, letter in enumerate("NHWC"):
        along = moved.any(axis=tuple(a for a in range(4) if a != axis))
        others = np.delete(along, 1 if letter == "C" else 0)
        if others.all():
            parts.append(letter)
        elif others.any():
            parts.append(f"part of {letter}")
    return ", ".join(parts)


def table(group: str) -> str:
    """The rows of a group as a Markdown list-table, formulas included."""
    if group == "weights":
        rows, heads = reparams(), ("method", "formula", "stored", "state", "eps")
    else:
        rows, heads = norms(), ("method", "formula", "set", "learned", "state", "eps", "mask")
        rows = [r for r in rows if GROUPS[group](r)]
    lines = [":::{list-table}", ":header-rows: 1", ":class: methods", ""]
    lines += ["* - " + heads[0], *(f"  - {h}" for h in heads[1:])]
    for r in rows:
        cells = {
            "method": f"{{py:obj}}`{r.name} <normjax.{r.name}>`\\\n    {r.paper}",
            # A long formula is broken where its author left a space.
            "formula": "\\\n    ".join(
                f"${part.strip(' ,;')}$" for part in re.split(r"\\q?quad", r.formula)
            ),
            "set": r.axes or "–",
            "learned": r.params or "–",
            "stored": r.params,
            "state": r.state or "–",
            "eps": r.eps or "–",
            "mask": r.mask,
        }
        lines += [f"* - {cells[heads[0]]}", *(f"  - {cells[h]}" for h in heads[1:])]
    return "\n".join([*lines, ":::"])


GROUPS = {
    "batch": lambda r: "N" in r.axes,
    "sample": lambda r: r.axes and "N" not in r.axes,
    "nothing": lambda r: not r.axes,
}
