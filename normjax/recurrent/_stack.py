"""Stacks of recurrent layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Norm
from normjax.recurrent import _segments, _shared
from normjax.recurrent._base import Layer
from normjax.recurrent._checks import check_layer
from normjax.recurrent._composite import Composite, CompositeCall, CompositeRun, known_hyper
from normjax.recurrent._seq_norm import SeqNorm
from normjax.state._population import start_accumulators
from normjax.statistics._types import Accumulator, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Stack(Composite):
    """Layers on top of each other, as a value; made by `stack`."""

    factory: ClassVar[str] = "stack"

    layers: Sequence[Layer]
    norm_between: Norm | SeqNorm | None = None
    residual: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no layer, layers of two layouts, no norm, and a rate outside [0, 1)."""
        _checks.set_field(self, "layers", tuple(self.layers))
        if not self.layers:
            raise ValueError("stack([]) has no layer: give at least one")
        for layer in self.layers:
            check_layer(layer, "stack")
        if len({layer.time_major for layer in self.layers}) > 1:
            raise ValueError("a stack is batch-major or time-major: give all layers one time_major")
        _checks.dropout_rate("dropout", self.dropout)
        norm = _shared.lift(self.norm_between, "norm_between", stepwise=False)
        if getattr(norm, "clock", "row") == "segment":
            raise ValueError(
                'norm_between counts the steps of a row: write clock="row", or give the next layer '
                'norm_x=per_step(..., clock="segment")'
            )
        _checks.set_field(self, "norm_between", norm)

    @property
    def parts(self) -> dict[str, Layer]:
        """The layers, by the names of their params."""
        return {f"layer_{i}": layer for i, layer in enumerate(self.layers)}

    @property
    def features_out(self) -> int:
        """Size of the last axis of the outputs, the last layer's."""
        return self.layers[-1].features_out

    def output(self, carry: PyTree) -> jax.Array:
        """Return the last layer's outputs from the carries, one of each layer."""
        if self.residual:
            raise ValueError(
                "with residual=True the outputs are sums that no carry holds: write "
                "recurrent.last(y, lengths)"
            )
        carries = self._one_each("carry", carry)
        return self.layers[-1].output(carries[f"layer_{len(self.layers) - 1}"])

    @property
    def hyper_names(self) -> frozenset[str]:
        """Names that `hyper` may carry, those of all norms."""
        norm = self.norm_between
        return super().hyper_names.union(norm.norm.hyper_names if isinstance(norm, SeqNorm) else ())

    @property
    def stateful(self) -> bool:
        """Whether any norm keeps statistics."""
        norm = self.norm_between
        return (isinstance(norm, SeqNorm) and norm.norm.stateful) or super().stateful

    @property
    def has_dropout(self) -> bool:
        """Whether there is zoneout or dropout: they draw in mode `"batch"`, and need a key."""
        return bool(self.dropout) or super().has_dropout

    @_hints.with_hints()
    def init(
        self, key: jax.Array, features: int, dtype: Any = jnp.float32
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make `(params, state)`: entries `layer_0`, `layer_1`, …, and `norm_0`, … between."""
        params, state = {}, {}
        keys = jax.random.split(key, 2 * len(self.layers))
        for i, layer in enumerate(self.layers):
            name = f"layer_{i}"
            params[name], state[name] = layer.init(keys[2 * i], features, dtype)
            features = layer.features_out
            if self.norm_between is not None and i + 1 < len(self.layers):
                params[f"norm_{i}"], state[f"norm_{i}"] = self.norm_between.init(
                    (1, features), dtype, key=keys[2 * i + 1]
                )
        return params, state

    def entries(self) -> list[str]:
        """Names of the entries of params and state."""
        between = range(0 if self.norm_between is None else len(self.layers) - 1)
        return [*self.parts, *(f"norm_{i}" for i in between)]

    def accumulating(self, state: PyTree) -> PyTree:
        """Return the state of a run whose norms between layers report what they measure."""
        return {
            name: start_accumulators(part) if name.startswith("norm_") else part
            for name, part in state.items()
        }

    def info_between(self, between: Mapping[str, PyTree]) -> dict[str, Any]:
        """What the norms between layers measured, from their states after such a run."""
        return {name: own.measured for name, own in between.items() if isinstance(own, Accumulator)}

    def run(self, params: PyTree, state: PyTree, x: jax.Array, call: CompositeCall) -> CompositeRun:
        """Go up the stack."""
        count = len(self.layers)
        keys = [None] * (2 * count) if call.key is None else jax.random.split(call.key, 2 * count)
        mask = self._mask(x, call)
        y, parts, between = x, {}, {}
        for i, name in enumerate(self.parts):
            parts[name] = self.run_part(name, params, state, y, keys[2 * i], call)
            out = parts[name].y
            y = out + y if self.residual and out.shape == y.shape else out
            if i + 1 < count:
                if isinstance(self.norm_between, SeqNorm):
                    entry = f"norm_{i}"
                    y, between[entry] = self._normalize(
                        self.norm_between, params[entry], state[entry], y, mask, call
                    )
                y = self._drop(keys[2 * i + 1] if call.noise else None, y)
            if mask is not None:
                y = jnp.where(mask if self.time_major else mask.swapaxes(0, 1), y, 0)
        return CompositeRun(y, parts, between)

    def _normalize(
        self,
        norm: SeqNorm,
        params: PyTree,
        state: PyTree,
        y: jax.Array,
        mask: jax.Array | None,
        call: CompositeCall,
    ) -> tuple[jax.Array, PyTree]:
        """Normalize the outputs between two layers; return them and the norm's next state."""
        y, state = norm.apply(
            params,
            state,
            y if self.time_major else y.swapaxes(0, 1),
            stats=call.stats,
            mask=mask,
            axis_name=call.axis_name,
            hyper=known_hyper(call.hyper, norm.norm.hyper_names),
        )
        return (y if self.time_major else y.swapaxes(0, 1)), state

    def _drop(self, key: jax.Array | None, y: jax.Array) -> jax.Array:
        if key is None or not self.dropout:
            return y
        stays = jax.random.bernoulli(key, 1 - self.dropout, y.shape)
        return jnp.where(stays, y / jnp.asarray(1 - self.dropout, y.dtype), 0)

    def _mask(self, x: jax.Array, call: CompositeCall) -> jax.Array | None:
        """Return `[time, batch, 1]`, True on the steps that count."""
        if x.ndim != 3:
            return None  # the first layer says what is wrong
        x = x if self.time_major else x.swapaxes(0, 1)
        return _segments.steps_that_count(call.lengths, call.mask, None, x, self.time_major)[0]


@_hints.with_hints()
def stack(
    layers: Sequence[Layer],
    *,
    norm_between: Norm | SeqNorm | None = None,
    residual: bool = False,
    dropout: float = 0.0,
) -> Layer:
    r"""Stack layers, each reading the outputs of the one below.

    Vertical batch norm up a stack is `norm_x` of each layer; `norm_between` stands on the
    outputs between layers instead, before they meet the next layer's weights.

    Args:
        layers: recurrent layers, bidirectional pairs or stacks, lowest first.
        norm_between: on the outputs of each layer but the last; padding enters no statistic.
        residual: add a layer's input to its output where the shapes agree.
        dropout: probability that an output between layers is set to 0 (Zaremba et al. 2014);
            acts in mode `"batch"`, where `apply` needs a `key`, or as its `noise` says.

    Returns:
        A `Layer` with the same `init` and `apply`; its carry is a tuple of one each.

    Raises:
        TypeError: something that is no layer, or no norm.
        ValueError: no layer; layers of which some are time-major; a rate outside [0, 1).

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> from normjax import recurrent
        >>> vertical = recurrent.sequence_wise(nj.batch_norm())
        >>> net = recurrent.stack([recurrent.lstm(4, norm_x=vertical) for _ in range(3)])
        >>> params, state = net.init(jax.random.key(0), features=2)
        >>> (y, carry), state = net.apply(params, state, jnp.ones((5, 6, 2)), stats="batch")
        >>> y.shape, len(carry)
        ((5, 6, 4), 3)

    Reference:
        Laurent et al., "Batch Normalized Recurrent Neural Networks", 2016; Zaremba, Sutskever,
        Vinyals, "Recurrent Neural Network Regularization", 2014.
    """
    return Stack(**locals())
