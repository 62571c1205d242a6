"""Runs a user's NNX module as pure functions, with norms that know the run's call."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import normjax
from experiments.models.base import Call, Data, init_norm
from experiments.models.own_linen import check_rows, keywords
from experiments.usage import UsageError

Tree = Any


class NormState(nnx.BatchStat):
    """The state of a norm, a pytree with the library's own statistics in it."""


class Slot:
    """Holds the call that the norms of one model are in."""

    call = Call(stats="running")


class Norm(nnx.Module):
    """A norm of this library with the mode, the mask and the device axis of a call."""

    def __init__(self, norm: normjax.Norm | None, slot: Slot, features: Any, rngs: nnx.Rngs):
        self.norm, self.slot = norm, slot
        if norm is None:
            return
        shape = (1, features) if isinstance(features, int) else tuple(features)
        params, state = init_norm(norm, shape, rngs.params())
        self.params, self.state = nnx.Param(params), NormState(state)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize x, whose first axes are those of the examples."""
        if self.norm is None:
            return x
        call = self.slot.call
        check_rows(call, x)
        y, new = call.norm(self.norm, self.params.get_value(), self.state.get_value(), x)
        self.state.set_value(new)
        return y


@dataclasses.dataclass(frozen=True)
class NnxModel:
    """An NNX class, its arguments, and its norms by argument."""

    kind: type
    arguments: dict[str, Any]
    norms: dict[str, normjax.Norm | None]
    data: Data

    def _make(self, key: jax.Array, slot: Slot) -> Any:
        rngs = nnx.Rngs(key)
        norms = {
            name: functools.partial(Norm, norm, slot, rngs=rngs)
            for name, norm in self.norms.items()
        }
        model = self.kind(**self.arguments, **norms, rngs=rngs)
        for _, node in nnx.iter_graph(model):
            if isinstance(node, nnx.BatchNorm):
                raise UsageError(
                    "the module has a flax.nnx.BatchNorm, whose statistics know neither padding "
                    "nor devices; write norm(features) in its place, and "
                    "config.model.norm.name=batch_norm."
                )
        return model

    def _parts(self, model: Any) -> tuple[Any, list[dict[tuple, Any]]]:
        """Return the graph, and parameters, norm states and random keys by path."""
        graph, *states = nnx.split(model, nnx.Param, NormState, nnx.RngState, ...)
        flat = [dict(nnx.to_flat_state(state)) for state in states]
        for path, variable in flat.pop().items():
            raise UsageError(
                f"{self.kind.__name__} keeps {'.'.join(map(str, path))}, a "
                f"{type(variable).__name__}; a run carries parameters and the state of norms alone."
            )
        return graph, flat

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Return `(params, state)`, nested by attribute."""
        params, state, _ = self._parts(self._make(key, Slot()))[1]
        return _nest(params), _nest(state)

    def _shapes(self, slot: Slot) -> tuple[Any, list[dict[tuple, Any]]]:
        """Return `_parts` of a model that was never computed; its values must be replaced."""
        found: list[Any] = []

        def make() -> None:  # nnx.eval_shape takes no pytrees in variables where there is a mesh
            found.extend(self._parts(self._make(jax.random.key(0), slot)))

        jax.eval_shape(make)
        return found[0], found[1]

    def apply(self, params: Tree, state: Tree, x: jax.Array, call: Call) -> tuple[jax.Array, Tree]:
        """Return the output and the next state."""
        slot = Slot()
        graph, parts = self._shapes(slot)
        filled = [_fill(part, tree) for part, tree in zip(parts[:2], (params, state), strict=True)]
        key = jax.random.key(0) if call.key is None else call.key
        filled.append(_keys(parts[2], key))
        model = nnx.merge(graph, *filled)
        model.train() if call.train else model.eval()
        slot.call = call
        y = model(x, **keywords(self.kind, call, x, self.data))
        slot.call = Slot.call  # holds no tracer of a trace that has ended
        return y, _nest(self._parts(model)[1][1])


def _nest(flat: Mapping[tuple, Any]) -> dict[str, Any]:
    """Return the values of variables as nested dictionaries."""
    tree: dict[str, Any] = {}
    for path, variable in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(str(name), {})
        node[str(path[-1])] = variable.get_value()
    return tree


def _fill(flat: Mapping[tuple, Any], tree: Tree) -> Any:
    """Return a state with values from nested dictionaries."""
    filled = []
    for path, variable in flat.items():
        value = tree
        for name in path:
            value = value[str(name)]
        filled.append((path, variable.replace(value)))
    return nnx.from_flat_state(filled)


def _keys(flat: Mapping[tuple, Any], key: jax.Array) -> Any:
    """Return random keys of this step for each stream, and counts of 0."""
    filled = []
    for i, (path, variable) in enumerate(flat.items()):
        is_key = isinstance(variable, nnx.RngKey)
        value = jax.random.fold_in(key, i) if is_key else jnp.zeros((), jnp.uint32)
        filled.append((path, variable.replace(value)))
    return nnx.from_flat_state(filled)
