"""Layers of layers: stacks with norms between them, and both directions of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.base import Array, AxisName, Hyper, Norm, PyTree, Stats
from normjax.recurrent import _lifts, _sequences
from normjax.recurrent._contract import Layer
from normjax.recurrent._lifts import SeqNorm


@dataclasses.dataclass(frozen=True, repr=False)
class Stack(Layer):
    """The value behind `stack`; see there."""

    factory: ClassVar[str] = "stack"

    layers: tuple[Any, ...]
    norm_between: SeqNorm | None = None
    residual: bool = False
    dropout: float = 0.0

    @property
    def width(self) -> int:
        """Size of the last axis of the outputs, the last layer's."""
        return self.layers[-1].width

    @property
    def hypers(self) -> frozenset[str]:
        """Names that `hyper` may carry, those of all norms."""
        between = self.norm_between.norm.hypers if self.norm_between else ()
        return frozenset(between).union(*(layer.hypers for layer in self.layers))

    @property
    def stateful(self) -> bool:
        """Whether any norm keeps statistics."""
        between = self.norm_between is not None and self.norm_between.norm.stateful
        return between or any(layer.stateful for layer in self.layers)

    @property
    def noisy(self) -> bool:
        """Whether `apply` needs a PRNG key in every mode."""
        return any(layer.noisy for layer in self.layers)

    @property
    def time_first(self) -> bool:
        """Whether sequences are `[time, batch, features]`."""
        return self.layers[0].time_first

    def init(
        self, key: jax.Array, features: int, dtype: Any = jnp.float32
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make `(params, state)`: entries `layer_0`, `layer_1`, …, and `norm_0`, … between."""
        params, state = {}, {}
        keys = jax.random.split(key, 2 * len(self.layers))
        for i, layer in enumerate(self.layers):
            name = f"layer_{i}"
            params[name], state[name] = layer.init(keys[2 * i], features, dtype)
            features = layer.width
            if self.norm_between is not None and i + 1 < len(self.layers):
                params[f"norm_{i}"], state[f"norm_{i}"] = self.norm_between.init(
                    (1, features), dtype, key=keys[2 * i + 1]
                )
        return params, state

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
    ) -> tuple[tuple[jax.Array, tuple[PyTree, ...]], PyTree]:
        """Run all layers; arguments as for one layer, `carry` a sequence of one each.

        Returns:
            `((y, carry), state)`, `carry` a tuple of one each.

        Raises:
            ValueError: as a single layer; a carry for another number of layers.
        """
        _checks.hyper(hyper, sorted(self.hypers), self.factory)
        count = len(self.layers)
        carry = (None,) * count if carry is None else tuple(carry)
        if len(carry) != count:
            raise ValueError(f"carry has {len(carry)} entries for {count} layers: give one each")
        keys = [None] * (2 * count) if key is None else list(jax.random.split(key, 2 * count))
        y = jnp.asarray(x)
        mask = self._mask(y, lengths)
        last, new = [], {}
        for i, layer in enumerate(self.layers):
            name = f"layer_{i}"
            (out, end), new[name] = layer.apply(
                params[name],
                state[name],
                y,
                stats=stats,
                lengths=lengths,
                carry=carry[i],
                key=keys[2 * i],
                axis_name=axis_name,
                hyper=_known(hyper, layer.hypers),
            )
            last.append(end)
            y = out + y if self.residual and out.shape == y.shape else out
            if i + 1 < count:
                y, found = self._between(i, params, state, y, mask, stats, axis_name, hyper)
                new.update(found)
                y = self._drop(keys[2 * i + 1] if stats == "batch" else None, y)
            if mask is not None:
                y = jnp.where(mask if self.time_first else mask.swapaxes(0, 1), y, 0)
        return (y, tuple(last)), new

    def _between(
        self,
        i: int,
        params: PyTree,
        state: PyTree,
        y: jax.Array,
        mask: jax.Array | None,
        stats: Stats,
        axis_name: AxisName,
        hyper: Hyper,
    ) -> tuple[jax.Array, PyTree]:
        norm, name = self.norm_between, f"norm_{i}"
        if norm is None:
            return y, {}
        y = y if self.time_first else y.swapaxes(0, 1)
        y, new = norm.apply(
            params[name],
            state[name],
            y,
            stats=stats,
            mask=mask,
            axis_name=axis_name,
            hyper=_known(hyper, norm.norm.hypers),
        )
        return (y if self.time_first else y.swapaxes(0, 1)), {name: new}

    def _drop(self, key: jax.Array | None, y: jax.Array) -> jax.Array:
        if key is None or not self.dropout:
            return y
        kept = jax.random.bernoulli(key, 1 - self.dropout, y.shape)
        return jnp.where(kept, y / jnp.asarray(1 - self.dropout, y.dtype), 0)

    def _mask(self, x: jax.Array, lengths: Array | None) -> jax.Array | None:
        if x.ndim != 3:
            return None  # the first layer says what is wrong
        steps, batch = x.shape[:2] if self.time_first else x.shape[1::-1]
        return _sequences.padding(lengths, steps, batch)


@dataclasses.dataclass(frozen=True, repr=False)
class Bidirectional(Layer):
    """The value behind `bidirectional`; see there."""

    factory: ClassVar[str] = "bidirectional"

    forward: Any
    backward: Any
    merge: Literal["concat", "sum"] = "concat"

    @property
    def width(self) -> int:
        """Size of the last axis of the outputs."""
        both = self.merge == "concat"
        return self.forward.width + self.backward.width if both else self.forward.width

    @property
    def hypers(self) -> frozenset[str]:
        """Names that `hyper` may carry, those of all norms."""
        return self.forward.hypers | self.backward.hypers

    @property
    def stateful(self) -> bool:
        """Whether any norm keeps statistics."""
        return self.forward.stateful or self.backward.stateful

    @property
    def noisy(self) -> bool:
        """Whether `apply` needs a PRNG key in every mode."""
        return self.forward.noisy or self.backward.noisy

    @property
    def time_first(self) -> bool:
        """Whether sequences are `[time, batch, features]`."""
        return self.forward.time_first

    def init(
        self, key: jax.Array, features: int, dtype: Any = jnp.float32
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make `(params, state)`, entries `forward` and `backward`."""
        keys = jax.random.split(key)
        made = [
            layer.init(k, features, dtype)
            for layer, k in zip((self.forward, self.backward), keys, strict=True)
        ]
        names = ("forward", "backward")
        params = {name: m[0] for name, m in zip(names, made, strict=True)}
        return params, {name: m[1] for name, m in zip(names, made, strict=True)}

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
    ) -> tuple[tuple[jax.Array, tuple[PyTree, PyTree]], PyTree]:
        """Run both directions; arguments as for one layer, `carry` a pair.

        Returns:
            `((y, carry), state)`, `carry` the pair of last carries.

        Raises:
            ValueError: as a single layer.
        """
        _checks.hyper(hyper, sorted(self.hypers), self.factory)
        x = jnp.asarray(x)
        keys = (None, None) if key is None else jax.random.split(key)
        carry = (None, None) if carry is None else tuple(carry)
        if len(carry) != 2:
            raise ValueError(f"carry has {len(carry)} entries for two directions: give a pair")
        outs, ends, new = [], [], {}
        for i, name in enumerate(("forward", "backward")):
            layer: Layer = getattr(self, name)
            (y, end), new[name] = layer.apply(
                params[name],
                state[name],
                self._turn(x, lengths) if i else x,
                stats=stats,
                lengths=lengths,
                carry=carry[i],
                key=keys[i],
                axis_name=axis_name,
                hyper=_known(hyper, layer.hypers),
            )
            outs.append(self._turn(y, lengths) if i else y)
            ends.append(end)
        y = jnp.concatenate(outs, axis=-1) if self.merge == "concat" else outs[0] + outs[1]
        return (y, (ends[0], ends[1])), new

    def _turn(self, x: jax.Array, lengths: Array | None) -> jax.Array:
        if x.ndim != 3:
            return x  # the layer says what is wrong
        if self.time_first:
            return _sequences.reverse(x, lengths)
        return _sequences.reverse(x.swapaxes(0, 1), lengths).swapaxes(0, 1)


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
        _is_layer(layer, "stack")
    if len({layer.time_first for layer in layers}) > 1:
        raise ValueError("a stack is batch-major or time-major: give all layers one time_major")
    _checks.rate("dropout", dropout)
    between = _lifts.lift(norm_between, "norm_between", stepwise=False)
    return Stack(layers, between, residual, dropout)


def bidirectional(
    forward: Any, backward: Any = None, *, merge: Literal["concat", "sum"] = "concat"
) -> Layer:
    r"""Read sequences in both directions; only the part that is not padding is reversed.

    Statistics per step of the backward layer count steps from each sequence's end.

    Args:
        forward: layer that reads from the start.
        backward: layer that reads from the end; by default another of the same.
        merge: `"concat"` of both outputs, or their `"sum"` (Deep Speech 2).

    Returns:
        A `Layer` with the same `init` and `apply`; its carry is a pair.

    Raises:
        TypeError: something that is no layer.
        ValueError: layers of unequal layout, or of unequal width with `"sum"`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import recurrent
        >>> both = recurrent.bidirectional(recurrent.gru(4))
        >>> params, state = both.init(jax.random.key(0), features=2)
        >>> (y, carry), _ = both.apply(params, state, jnp.ones((5, 6, 2)), stats="running")
        >>> y.shape
        (5, 6, 8)

    Reference:
        Schuster, Paliwal, "Bidirectional Recurrent Neural Networks", 1997.
    """
    backward = forward if backward is None else backward
    _is_layer(forward, "bidirectional")
    _is_layer(backward, "bidirectional")
    _checks.one_of("merge", merge, ("concat", "sum"))
    if forward.time_first != backward.time_first:
        raise ValueError("both directions must be batch-major or time-major: give one time_major")
    if merge == "sum" and forward.width != backward.width:
        raise ValueError(
            f'merge="sum" needs equal widths and got {forward.width} and {backward.width}: write '
            'merge="concat"'
        )
    return Bidirectional(forward, backward, merge)


def _known(hyper: Hyper, names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in (hyper or {}).items() if name in names}


def _is_layer(layer: Any, who: str) -> None:
    """Accept a `Layer`, and what answers like one: a layer whose weights are written otherwise."""
    if not all(hasattr(layer, name) for name in ("init", "apply", "width", "time_first")):
        raise TypeError(f"{who} takes layers such as lstm(100) and got {layer!r}")
