"""Reads and sets the varying manual axes of arrays inside `shard_map`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax import lax


def axis_type(x: Any) -> dict[str, Any]:
    """Return the varying manual axes of x, as a keyword of `ShapeDtypeStruct`."""
    kind = jax.typeof(x)
    names = ("manual_axis_type", "vma")  # since JAX 0.10.2, and before
    return next(({n: getattr(kind, n)} for n in names if hasattr(kind, n)), {})


def varying(x: Any) -> tuple[str, ...]:
    """Return the device axes that x varies over."""
    (kind,) = axis_type(x).values() or (None,)
    return tuple(getattr(kind, "varying", kind) or ())


def vary(x: jax.Array, axes: Iterable[str]) -> jax.Array:
    """Return x with a type that varies over `axes` as well."""
    missing = tuple(a for a in axes if a not in varying(x))
    return lax.pcast(x, missing, to="varying") if missing else x


def vary_together(args: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Return the arrays, all varying over every device axis that any of them varies over."""
    axes = dict.fromkeys(a for x in args for a in varying(x))
    return tuple(vary(x, axes) for x in args)
