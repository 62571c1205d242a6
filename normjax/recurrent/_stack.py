"""Stacks of recurrent layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Hyper, Norm, Stats
from normjax.recurrent import _sequences, _shared
from normjax.recurrent._base import Layer
from normjax.recurrent._checks import check_layer, check_made
from normjax.recurrent._seq_norm import SeqNorm
from normjax.state._population import accumulate_statistics
from normjax.statistics._types import Accumulator, Array, AxisName, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Stack(Layer):
    """The value behind `stack`; see there."""

    factory: ClassVar[str] = "stack"

    layers: tuple[Any, ...]
    norm_between: SeqNorm | None = None
    residual: bool = False
    dropout: float = 0.0

    @property
    def features_out(self) -> int:
        """Size of the last axis of the outputs, the last layer's."""
        return self.layers[-1].features_out

    @property
    def hyper_names(self) -> frozenset[str]:
        """Names that `hyper` may carry, those of all norms."""
        between = self.norm_between.norm.hyper_names if self.norm_between else ()
        return frozenset(between).union(*(layer.hyper_names for layer in self.layers))

    @property
    def stateful(self) -> bool:
        """Whether any norm keeps statistics."""
        between = self.norm_between is not None and self.norm_between.norm.stateful
        return between or any(layer.stateful for layer in self.layers)

    @property
    def needs_key(self) -> bool:
        """Whether `apply` needs a PRNG key in every mode."""
        return any(layer.needs_key for layer in self.layers)

    @property
    def has_dropout(self) -> bool:
        """Whether zoneout or dropout is asked for: they draw in mode `"batch"`, given a key."""
        return bool(self.dropout) or any(layer.has_dropout for layer in self.layers)

    @property
    def time_major(self) -> bool:
        """Whether sequences are `[time, batch, features]`."""
        return self.layers[0].time_major

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

    @_hints.with_hints()
    def apply(
        self,
        params: PyTree,
        state: PyTree,
        x: Array,
        *,
        stats: Stats,
        lengths: Array | None = None,
        carry: Sequence[PyTree] | None = None,
        key: jax.Array | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
        hidden_perturbation: Sequence[Any] | None = None,
    ) -> tuple[tuple[jax.Array, tuple[PyTree, ...]], PyTree]:
        """Run all layers; arguments as for one layer, `carry` and `hidden_perturbation` a sequence
        of one each.

        Returns:
            `((y, carry), state)`, `carry` a tuple of one each.

        Raises:
            ValueError: as a single layer; a carry for another number of layers.
        """
        self._check(params, state)
        last: list[PyTree] = []
        moved: dict[str, PyTree] = {}
        nudges = _one_each("hidden_perturbation", hidden_perturbation, "layers", len(self.layers))

        def run(i: int, layer: Any, params: PyTree, state: PyTree, y: Array, how: Any) -> Array:
            own = {} if nudges[i] is None else {"hidden_perturbation": nudges[i]}
            (y, end), moved[f"layer_{i}"] = layer.apply(params, state, y, **how, **own)
            last.append(end)
            return y

        how = {"lengths": lengths, "stats": stats, "axis_name": axis_name, "hyper": hyper}
        y, between = self._up(run, params, state, x, carry, key, how)
        return (y, tuple(last)), {**moved, **between}

    def apply_with_info(
        self,
        params: PyTree,
        state: PyTree,
        x: Array,
        *,
        carry: Sequence[PyTree] | None = None,
        key: jax.Array | None = None,
        **how: Any,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Run as `apply` and return the outputs and what was measured, by the names of `params`."""
        self._check(params, state)
        measured: dict[str, Any] = {}

        def run(i: int, layer: Any, params: PyTree, state: PyTree, y: Array, how: Any) -> Array:
            y, measured[f"layer_{i}"] = layer.apply_with_info(params, state, y, **how)
            return y

        gathering = {
            k: accumulate_statistics(v) if k.startswith("norm_") else v for k, v in state.items()
        }
        how = {"lengths": None, "axis_name": None, "hyper": None, **how}
        y, between = self._up(run, params, gathering, x, carry, key, how)
        return y, measured | {
            k: v.measured for k, v in between.items() if isinstance(v, Accumulator)
        }

    def _check(self, params: PyTree, state: PyTree) -> None:
        count = len(self.layers)
        between = range(0 if self.norm_between is None else count - 1)
        both = [f"layer_{i}" for i in range(count)] + [f"norm_{i}" for i in between]
        check_made(self.factory, params, state, both)

    def _up(
        self,
        run: Any,
        params: PyTree,
        state: PyTree,
        x: Array,
        carry: Sequence[PyTree] | None,
        key: jax.Array | None,
        how: dict[str, Any],
    ) -> tuple[jax.Array, dict[str, PyTree]]:
        """Go up the stack, `run` each layer; return outputs and states of the norms between."""
        hyper, count = how["hyper"], len(self.layers)
        _checks.hyper(hyper, sorted(self.hyper_names), self.factory)
        carries = _one_each("carry", carry, "layers", count)
        keys = [None] * (2 * count) if key is None else list(jax.random.split(key, 2 * count))
        y, new = jnp.asarray(x), {}
        mask = self._mask(y, how["lengths"])
        for i, layer in enumerate(self.layers):
            name = f"layer_{i}"
            own = {
                "carry": carries[i],
                "key": keys[2 * i],
                "hyper": _known(hyper, layer.hyper_names),
            }
            out = run(i, layer, params[name], state[name], y, {**how, **own})
            y = out + y if self.residual and out.shape == y.shape else out
            if i + 1 < count:
                y, found = self._between(i, params, state, y, mask, how)
                new.update(found)
                y = self._drop(keys[2 * i + 1] if how["stats"] == "batch" else None, y)
            if mask is not None:
                y = jnp.where(mask if self.time_major else mask.swapaxes(0, 1), y, 0)
        return y, new

    def _between(
        self,
        i: int,
        params: PyTree,
        state: PyTree,
        y: jax.Array,
        mask: jax.Array | None,
        how: dict[str, Any],
    ) -> tuple[jax.Array, PyTree]:
        norm, name = self.norm_between, f"norm_{i}"
        if norm is None:
            return y, {}
        y = y if self.time_major else y.swapaxes(0, 1)
        y, new = norm.apply(
            params[name],
            state[name],
            y,
            stats=how["stats"],
            mask=mask,
            axis_name=how["axis_name"],
            hyper=_known(how["hyper"], norm.norm.hyper_names),
        )
        return (y if self.time_major else y.swapaxes(0, 1)), {name: new}

    def _drop(self, key: jax.Array | None, y: jax.Array) -> jax.Array:
        if key is None or not self.dropout:
            return y
        kept = jax.random.bernoulli(key, 1 - self.dropout, y.shape)
        return jnp.where(kept, y / jnp.asarray(1 - self.dropout, y.dtype), 0)

    def _mask(self, x: jax.Array, lengths: Array | None) -> jax.Array | None:
        if x.ndim != 3:
            return None  # the first layer says what is wrong
        steps, batch = x.shape[:2] if self.time_major else x.shape[1::-1]
        return _sequences.padding(lengths, steps, batch)


@_hints.with_hints()
def stack(
    layers: Sequence[Any],
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
            acts in mode `"batch"` where `apply` is given a `key`.

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
    layers = tuple(layers)
    if not layers:
        raise ValueError("stack([]) has no layer: give at least one")
    for layer in layers:
        check_layer(layer, "stack")
    if len({layer.time_major for layer in layers}) > 1:
        raise ValueError("a stack is batch-major or time-major: give all layers one time_major")
    _checks.dropout_rate("dropout", dropout)
    between = _shared.lift(norm_between, "norm_between", stepwise=False)
    return Stack(layers, between, residual, dropout)


def _known(hyper: Hyper, names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in (hyper or {}).items() if name in names}


def _one_each(what: str, given: Any, of: str, count: int) -> tuple[Any, ...]:
    found = (None,) * count if given is None else tuple(given)
    if len(found) != count:
        raise ValueError(f"{what} has {len(found)} entries for {count} {of}: give one each")
    return found
