"""Carries a module's Python arguments through Flax's transformations, which take arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
    """A string or a bool as a pytree without leaves."""

    value: str | bool


class StaticArguments:
    """Mixin of modules whose call takes a mode: `nn.remat(Module)(…)(x, stats="running")` works.

    `nn.remat`, `nn.jit` and the like make a subclass whose `__call__` hands its arguments to JAX,
    where a string is an error and a bool an array. That `__call__` gets them as static pytrees,
    and the one inside gets them back as they were.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Convert the arguments of a class's own `__call__`."""
        super().__init_subclass__(**keywords)
        call = vars(cls).get("__call__")
        if call is not None:
            inherited = (vars(base).get("__call__") for base in cls.__mro__[1:])
            inner = next(filter(None, inherited), None)
            lifted = inner is not None and getattr(call, "__wrapped__", None) is inner
            setattr(cls, "__call__", _converts(call, _hide if lifted else _show))  # noqa: B010


def _converts(call: Callable[..., Any], convert: Callable[[Any], Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def __call__(self: Any, *args: Any, **keywords: Any) -> Any:
        keywords = {name: convert(value) for name, value in keywords.items()}
        return call(self, *map(convert, args), **keywords)

    return __call__


def _hide(value: Any) -> Any:
    return _Static(value) if isinstance(value, str | bool) else value


def _show(value: Any) -> Any:
    return value.value if isinstance(value, _Static) else value
