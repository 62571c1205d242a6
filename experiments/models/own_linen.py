"""Runs a user's Linen module as pure functions, with norms that know the run's call."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import normjax
from experiments.models.base import Call, Data, init_norm
from experiments.usage import UsageError

Tree = Any
STATS = "batch_stats"


class Norm(nn.Module):
    """A norm of this library with the mode, the mask and the device axis of a call."""

    norm: normjax.Norm | None
    call: Call

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize x, whose first axes are those of the examples."""
        if self.norm is None:
            return x
        check_rows(self.call, x)
        # Parameters and statistics are variables of their own types, as all of this library reads.
        params = self.param("norm", lambda key: init_norm(self.norm, x.shape, key)[0])
        state = self.variable(STATS, "norm", lambda: init_norm(self.norm, x.shape, None)[1])
        y, new = self.call.norm(self.norm, params, state.value, x)
        if not self.is_initializing():
            state.value = new
        return y


def check_rows(call: Call, x: jax.Array) -> None:
    """Refuse an input whose first axes are not those of the mask."""
    mask = call.mask
    if mask is not None and x.shape[: mask.ndim] != mask.shape:
        raise UsageError(
            f"a norm got an input of shape {x.shape} where the examples are {mask.shape}: keep "
            "batch and time in front, so that padding can be left out."
        )


@dataclasses.dataclass(frozen=True)
class LinenModel:
    """A Linen class, its arguments, and its norms by argument."""

    kind: type
    arguments: dict[str, Any]
    norms: dict[str, normjax.Norm | None]
    data: Data

    def _module(self, call: Call) -> Any:
        def factory(norm: normjax.Norm | None) -> Any:
            return lambda name=None: Norm(norm, call, name=name)

        return self.kind(**self.arguments, **{k: factory(n) for k, n in self.norms.items()})

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Return `(params, state)`: two collections of variables."""
        example = self.data.example
        call = Call(stats="running")
        module, x = self._module(call), jnp.zeros(example.shape, example.dtype)
        keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
        with nn.intercept_methods(_refuse_foreign):
            variables = module.init(keys, x, **keywords(self.kind, call, x, self.data))
        other = sorted(set(variables) - {"params", STATS, "intermediates"})
        if other:
            raise UsageError(
                f"{self.kind.__name__} keeps variables in the collection {other[0]!r}; a run "
                "carries parameters and the state of norms alone."
            )
        return variables.get("params", {}), variables.get(STATS, {})

    def apply(self, params: Tree, state: Tree, x: jax.Array, call: Call) -> tuple[jax.Array, Tree]:
        """Return the output and the next state."""
        keys = {} if call.key is None else {"dropout": call.key}
        variables = {"params": params} | ({STATS: state} if state else {})
        how = keywords(self.kind, call, x, self.data)
        y, new = self._module(call).apply(variables, x, rngs=keys, mutable=[STATS], **how)
        return y, new.get(STATS, state)


def keywords(kind: type, call: Call, x: jax.Array, data: Data) -> dict[str, Any]:
    """Return what the `__call__` of a class has arguments for."""
    offered: dict[str, Any] = {"train": call.train, "deterministic": not call.train}
    if data.kind != "image":
        mask = jnp.ones(x.shape[:2], bool) if call.mask is None else call.mask
        offered |= {"mask": mask, "lengths": mask.sum(1)}
    names = inspect.signature(kind.__call__).parameters
    return {k: v for k, v in offered.items() if k in names}


def _refuse_foreign(call_next: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Refuse Flax's own BatchNorm, which knows nothing of the run."""
    if isinstance(context.module, nn.BatchNorm):
        raise UsageError(
            "the module has a flax.linen.BatchNorm, whose statistics know neither padding nor "
            "devices; write norm() in its place, and config.model.norm.name=batch_norm."
        )
    return call_next(*args, **kwargs)
