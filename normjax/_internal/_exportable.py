"""Registers the types of params, states and statistics, so that exported programs may hold them."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.export

Type = TypeVar("Type", bound=type)


def exportable(cls: Type) -> Type:
    """Register a named tuple for `Exported.serialize()`, under `normjax.` and its name.

    Files hold that name: a type that is renamed keeps it here.
    """
    jax.export.register_namedtuple_serialization(cls, serialized_name=_name(cls))
    return cls


def exportable_node(cls: type, make: Any) -> None:
    """Register a type whose nodes have no data beside their children, and that `make` makes."""
    jax.export.register_pytree_node_serialization(
        cls,
        serialized_name=_name(cls),
        serialize_auxdata=lambda _: b"",
        deserialize_auxdata=lambda _: None,
        from_children=lambda _, children: make(cls, children),
    )


def _name(cls: type) -> str:
    return f"normjax.{cls.__name__}"
