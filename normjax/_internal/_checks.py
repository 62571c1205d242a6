"""Checks arguments: each function raises an error that says what to write instead.

A value checks its own fields when it is made; arrays are checked when a public function is
called. Nothing here computes on data, so the checks cost nothing under `jit`.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STATS = ("batch", "running")


# Modes and names.


def stats(value: Any) -> None:
    """Raise unless `value` is one of the two modes; there is no default."""
    if value not in STATS:
        raise ValueError(
            f'stats={value!r} is not a mode: write stats="batch" (this batch\'s statistics) or '
            'stats="running" (the running ones)'
        )


def hyper(value: Mapping[str, Any] | None, known: Sequence[str], who: str) -> None:
    """Raise if `hyper` has a name that is not in `known`."""
    for name in value or ():
        if name not in known:
            names = ", ".join(known) if known else "nothing"
            raise ValueError(f"{who} takes {names} in hyper=, not {name!r}{nearest(name, known)}")


def one_of(name: str, value: Any, known: Iterable[Any]) -> None:
    """Raise unless `value` is one of the values `known`."""
    known = tuple(known)
    if value not in known:
        listed = " | ".join(repr(k) for k in known)
        raise ValueError(f"{name}={value!r}: write {name}={listed}{nearest(value, known)}")


# Arrays and their shapes.


def floating(x: Any, who: str) -> jax.Array:
    """Return `x` as an array; raise for integers and booleans, whose mean has another dtype."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"{who} needs floating or complex x and got {x.dtype}: write x.astype(jnp.float32)"
        )
    return x


def shape(value: Any, who: str) -> None:
    """Raise if `value`, the shape argument of `init`, is a number or an array."""
    if isinstance(value, int | np.integer):
        raise TypeError(
            f"init of {who} takes the shape of x and got {value}: write init((1, {value})), or "
            "init(x.shape)"
        )
    if hasattr(value, "dtype"):
        raise TypeError(
            f"init of {who} takes the shape of x first and got an array of shape {value.shape}: "
            "write init(x.shape), or init(x.shape, key=key)"
        )


def features(value: Any) -> None:
    """Raise unless `value`, the size of the last axis of x, is a positive integer."""
    if np.ndim(value):
        raise TypeError(
            f"init takes (key, features) and got features of shape {np.shape(value)}: write "
            "init(key, x.shape[-1])"
        )
    positive_int("features", value)


def mask(value: Any, shape: tuple[int, ...]) -> jax.Array | None:
    """Return the mask as an array; raise unless it is boolean and has the rank of `shape`."""
    if value is None:
        return None
    value = jnp.asarray(value)
    if value.dtype != jnp.bool_:
        raise TypeError(
            f"mask must be boolean, True where a value counts, and is {value.dtype}: "
            "write mask.astype(bool) (or lengths[:, None] > jnp.arange(time))"
        )
    if value.ndim != len(shape):
        # [batch] against [batch, features] would silently broadcast along the features.
        ones = ", None" * (len(shape) - value.ndim)
        hint = (
            f"write mask[{', '.join([':'] * value.ndim)}{ones}]" if ones else "drop its extra axes"
        )
        raise ValueError(
            f"mask of shape {value.shape} must have as many axes as x of shape {shape}: {hint}"
        )
    if any(m not in (1, s) for m, s in zip(value.shape, shape, strict=True)):
        raise ValueError(
            f"mask of shape {value.shape} does not broadcast to x of shape {shape}: "
            "each of its axes is 1 or that of x"
        )
    return value


def broadcasts(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise unless `value` is `None` or broadcasts to `shape` without widening it."""
    if isinstance(value, list | tuple):
        value = jnp.asarray(value)  # NumPy takes none that has a tracer in it
    own = np.shape(value) if value is not None else ()
    if len(own) > len(shape) or any(
        m not in (1, s) for m, s in zip(own[::-1], shape[::-1], strict=False)
    ):
        raise ValueError(
            f"{name} of shape {own} does not broadcast to x of shape {shape}: its axes are the "
            "last of x, each 1 or that of x"
        )


def lengths(name: str, value: Any, steps: int | None, batch: tuple[int, ...]) -> jax.Array:
    """Return the lengths of a batch of sequences as an array; raise if they do not fit.

    Traced lengths, and lists with one among them, have no values yet, so only their dtype and shape
    are checked.
    """
    # Read static lengths before `jnp.asarray`: inside `jit` it would make them a tracer.
    known = None if traced(value) else np.asarray(value)
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(
            f"{name} must be integers, one per sequence, and are {value.dtype}: write "
            f"{name}.astype(jnp.int32)"
        )
    if value.shape != batch:
        raise ValueError(
            f"{name} of shape {value.shape} must be that of the batch, {batch}: the number of "
            "steps of each sequence (a mask is written mask.sum(time_axis))"
        )
    if known is not None and steps is not None and known.size:
        low, high = int(known.min()), int(known.max())
        if low < 0 or high > steps:
            raise ValueError(f"{name} from {low} to {high} do not fit sequences of {steps} steps")
    return value


def max_steps(value: int, max_steps: int, beyond: str) -> None:
    """Raise if a sequence is longer than its statistics and `beyond` is "error"."""
    if value > max_steps and beyond == "error":
        raise ValueError(
            f"a sequence of {value} steps is longer than max_steps={max_steps} and "
            'beyond="error": write beyond="last" to use the last statistics there'
        )


def traced(value: Any) -> bool:
    """Whether `value` has no values yet: a tracer, or a list with a tracer in it."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


# Axes and features.


def axes(value: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the field `axes` of a norm as a hashable tuple of ints, or `None`."""
    if value is None:
        return None
    if isinstance(value, Iterable):
        value = tuple(operator.index(a) for a in value)
    else:
        value = (operator.index(value),)
    if not value:
        raise ValueError(
            "axes=() averages over nothing: name the axes averaged over, for example axes=(0,), "
            "or axes=None for all but the last"
        )
    if len(set(value)) != len(value):
        raise ValueError(f"axes={value} names an axis twice")
    return value


def resolve_axes(
    value: Sequence[int] | int | None, ndim: int, *, name: str = "axes"
) -> tuple[int, ...]:
    """Return sorted non-negative axes of an array with `ndim` axes; `None` is all but the last."""
    if isinstance(value, tuple) and value == (-1,) and ndim:  # the most frequent call
        return (ndim - 1,)
    if value is None:
        if ndim < 2:
            raise ValueError(
                f"{name}=None means all axes but the last, and x of {ndim} axis(es) has none: "
                f"give x a batch axis, x[None], or name the axes, {name}=(0,)"
            )
        return tuple(range(ndim - 1))
    value = (value,) if isinstance(value, int) else tuple(value)
    for a in value:
        if not -ndim <= a < ndim:
            raise ValueError(
                f"{name}={value} does not fit x with {ndim} axes: write axes in [{-ndim}, {ndim})"
            )
    resolved = tuple(sorted(a % ndim for a in value))
    if len(set(resolved)) != len(resolved):
        raise ValueError(f"{name}={value} names an axis of x with {ndim} axes twice")
    return resolved


def same_features(state: Any, features: tuple[int, ...], who: str) -> None:
    """Raise unless the running statistics have the shape `features`; another would broadcast."""
    running = getattr(state, "running", state)
    if not hasattr(running, "mean"):
        raise TypeError(
            f"{who} was given {type(state).__name__} for its state: apply takes (params, state, x) "
            "as init returned them"
        )
    if np.shape(running.mean) != features:
        raise ValueError(
            f"{who} keeps statistics of shape {np.shape(running.mean)} and x has features of shape "
            f"{features}: init with the shape of this x"
        )


# Numbers and other fields of values.


def positive(name: str, value: Any, *, zero: bool = False) -> None:
    """Raise unless `value` is a finite number above 0, or with `zero` at least 0."""
    if _is_number(value) and (value > 0 or (zero and value == 0)) and math.isfinite(value):
        return
    raise ValueError(f"{name}={value!r} must be a {'non-negative' if zero else 'positive'} number")


def positive_int(name: str, value: Any) -> None:
    """Raise unless `value` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r} must be a positive integer")


def unit_interval(name: str, value: Any, *, hint: str = "") -> None:
    """Raise unless `value` is a number in [0, 1]."""
    if not (_is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{name}={value!r} must be a number in [0, 1]{hint}")


def dropout_rate(name: str, value: Any) -> None:
    """Raise unless `value` is a number in [0, 1)."""
    unit_interval(name, value)
    if value == 1:
        raise ValueError(f"{name}=1 would let nothing through: write a rate below 1")


def require_instance(name: str, value: Any, kind: type, who: str) -> None:
    """Raise unless `value` is a `kind`; the message is a special one for a factory not called."""
    if isinstance(value, kind):
        return
    if callable(value) and hasattr(value, "__name__"):
        called = f"{value.__name__}()"
        raise TypeError(f"{who} takes what a factory returns: write {who}({called})")
    raise TypeError(f"{who} takes a {kind.__name__} such as batch_norm() and got {name}={value!r}")


def number(name: str, value: Any) -> None:
    """Raise unless `value` is a plain number: an array would make the norm unhashable."""
    if not _is_number(value):
        raise TypeError(
            f"{name}={value!r} must be a plain number, so that the norm stays a hashable value: "
            "write other initial values into the params that init returns"
        )


def groups(value: Sequence[Sequence[int]] | None) -> tuple[tuple[int, ...], ...] | None:
    """Return groups of device indices as hashable tuples."""
    return None if value is None else tuple(tuple(group) for group in value)


def set_field(instance: Any, name: str, value: Any) -> None:
    """Set a field of a frozen dataclass to its canonical form, in `__post_init__`."""
    object.__setattr__(instance, name, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def nearest(value: Any, known: Iterable[Any]) -> str:
    """Return " (did you mean ...?)" for the closest known value, or an empty string."""
    close = difflib.get_close_matches(str(value), [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
