"""Statistics in two parts: their fields, and what the dtype of the fields leaves out.

A float32 number changes by no less than half a unit in its last place. A sum of millions of small
steps therefore stops: a count at 2^24, a mean where each step is below 6e-8 of it. Here each field
has an `error` beside it, so that field + error is known to about 48 bits, and the sum goes on.
(Knuth's exact sum of two numbers; the compensated sums of Kahan and Neumaier.)

A compensated type is a subclass of the plain one: it has the plain fields, which are the nearest
float32 values, and is taken wherever the plain one is. As a pytree it has twice the leaves, named
`mean`, `var`, `mean_error`, `var_error` and so on.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from normjax._internal._exportable import exportable_node
from normjax.statistics._types import (
    Means,
    Moments,
    PyTree,
    Running,
    RunningCov,
    RunningMean,
    SecondMoments,
)

Pair = tuple[jax.Array, jax.Array]


class Compensated:
    """What compensated types have in common; `plain` is the type that one is a subclass of."""

    plain: type
    _fields: tuple[str, ...]
    _error: tuple[Any, ...] | None = None

    def __new__(cls, *values: Any, **named: Any) -> Any:
        """Make one of its fields, and of `mean_error`, ...; errors that are not given are 0."""
        fields = dict(zip((*cls._fields, *error_names(cls)), values, strict=False)) | named
        self = cls.plain.__new__(cls, *(fields[name] for name in cls._fields))
        if len(fields) > len(cls._fields):
            self._error = tuple(fields[name] for name in error_names(cls))
        return self

    @property
    def error(self: Any) -> tuple[Any, ...]:
        """What is left out of each field."""
        return tuple(map(jnp.zeros_like, self)) if self._error is None else self._error

    def _asdict(self: Any) -> dict[str, Any]:
        """Return fields and errors by name."""
        values = (*self, *self.error)
        return dict(zip((*self._fields, *error_names(type(self))), values, strict=True))

    def __repr__(self) -> str:
        """Return the fields and errors by name."""
        return (
            f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._asdict().items())})"
        )

    def __reduce__(self: Any) -> Any:
        """Pickle by the plain type: that of a user's own kind is made when it is asked for."""
        return _rebuild, (self.plain, (*self, *self.error))


def error_names(cls: Any) -> tuple[str, ...]:
    """Return the names of the errors of a type's fields."""
    return tuple(f"{name}_error" for name in cls._fields)


@functools.cache
def compensated_type(plain: type) -> Any:
    """Return the compensated type of a plain one, such as `Moments`."""
    name = f"Compensated{plain.__name__}"
    made = type(name, (Compensated, plain), {"plain": plain, "__doc__": Compensated.__doc__})
    keys = [jax.tree_util.GetAttrKey(n) for n in (*made._fields, *error_names(made))]  # type: ignore[attr-defined]

    def children(self: Any) -> tuple[PyTree, ...]:
        return (*self, *self.error)

    jax.tree_util.register_pytree_with_keys(
        made,
        lambda self: (tuple(zip(keys, children(self), strict=True)), None),
        lambda _, leaves: _rebuild(plain, leaves),
        lambda self: (children(self), None),
    )
    return made


def _rebuild(plain: type, leaves: Any) -> Any:
    return compensated_type(plain)(*leaves)


# Made at once, so that one that was pickled can be a leaf of any tree.
for _plain in (Moments, SecondMoments, Means, Running, RunningCov, RunningMean):
    exportable_node(compensated_type(_plain), lambda cls, leaves: _rebuild(cls.plain, leaves))


def plain_type(value: Any) -> type:
    """Return the type of statistics without compensation."""
    return value.plain if isinstance(value, Compensated) else type(value)


def compensate(value: PyTree) -> Any:
    """Return statistics with errors, of 0 where they had none."""
    return compensated_type(plain_type(value))(*value, *errors(value))


def errors(value: PyTree) -> tuple[Any, ...]:
    """Return what the fields of statistics leave out: 0 of plain ones."""
    return value.error if isinstance(value, Compensated) else tuple(map(jnp.zeros_like, value))


def add(a: Pair, step: Any, error: Any = 0.0) -> Pair:
    """Return a pair plus a small step, and plus an even smaller error, as a pair.

    The difference of float32 numbers that nearly cancel is exact, which the compiler does not
    undo: XLA keeps the order of sums.
    """
    total, rest = two_sum(a[0], step)
    rest = rest + (a[1] + error)
    return two_sum(total, rest)


def two_sum(a: Any, b: Any) -> Pair:
    """Return the rounded sum, and exactly what rounding took from it (Knuth's TwoSum)."""
    total = a + b
    b_there = total - a
    return total, (a - (total - b_there)) + (b - b_there)
