"""Recurrent layers with reparametrized weights: what `reparam` makes of a `Layer`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from normjax._internal import _hints
from normjax.base import Reparam, Stats
from normjax.recurrent._base import Layer
from normjax.recurrent._seq_norm import SeqNorm
from normjax.statistics._types import Array, PyTree
from normjax.weights._reparametrize import (
    ReparamLayer,
    ReparamState,
    wrap_layer,
)


@dataclasses.dataclass(frozen=True, repr=False)
class ReparamRecurrent(ReparamLayer, Layer):
    """A recurrent layer whose weights are made before its scan, as a value; made by `reparam`."""

    layer: Layer

    @_hints.with_hints()
    def init(
        self, key: jax.Array, features: int, dtype: Any = jnp.float32
    ) -> tuple[PyTree, ReparamState]:
        """Return the layer's `(params, state)`, with the selected weights reparametrized.

        Args:
            key: PRNG key.
            features: size of the last axis of the inputs.
            dtype: dtype of the parameters.

        Returns:
            `(params, ReparamState)`.

        Raises:
            ValueError: a path of the rules that does not exist.
        """
        return super().init(key, features, dtype)

    def apply_with_info(
        self, params: PyTree, state: ReparamState, x: Array, *, stats: Stats, **keywords: Any
    ) -> tuple[jax.Array, Any]:
        """Run as `apply` and return the outputs and the layer's info; no state moves."""
        params, _ = self.materialized(params, state, stats)
        return self.layer.apply_with_info(params, state.inner, x, stats=stats, **keywords)

    def output(self, carry: PyTree) -> jax.Array:
        """Return the last outputs from the last carry, as the layer does."""
        return self.layer.output(carry)

    @property
    def features_out(self) -> int:
        """Size of the last axis of the outputs."""
        return self.layer.features_out

    @property
    def hyper_names(self) -> frozenset[str]:
        """Names that `hyper` may carry, those of all norms."""
        return self.layer.hyper_names

    @property
    def needs_key(self) -> bool:
        """Whether `apply` needs a PRNG key in every mode."""
        return self.layer.needs_key

    @property
    def has_dropout(self) -> bool:
        """Whether there is zoneout or dropout: they draw in mode `"batch"`, and need a key."""
        return self.layer.has_dropout

    @property
    def time_major(self) -> bool:
        """Whether sequences are `[time, batch, features]`."""
        return self.layer.time_major

    # Of one layer; a stack or a bidirectional pair has neither.

    @property
    def hidden(self) -> int:
        """Number of units."""
        return self.layer.hidden  # type: ignore[attr-defined]

    def norms(self) -> dict[str, SeqNorm]:
        """Return the lifted norm of each place that has one."""
        return self.layer.norms()  # type: ignore[attr-defined]


@wrap_layer.register(Layer)
def _(layer: Layer, rules: tuple[tuple[str, Reparam], ...]) -> ReparamLayer:
    return ReparamRecurrent(layer, rules)
