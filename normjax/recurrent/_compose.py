"""Layers of layers: stacks with norms between them, and both directions of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from normjax import _checks, _words
from normjax._population import collecting
from normjax.base import Array, AxisName, Collect, Hyper, Norm, PyTree, Stats
from normjax.recurrent import _lifts, _sequences
from normjax.recurrent._contract import Layer, check_layer, check_made
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
    def drops(self) -> bool:
        """Whether zoneout or dropout is asked for: they draw in mode `"batch"`, given a key."""
        return bool(self.dropout) or any(layer.drops for layer in self.layers)

    @property
    def time_first(self) -> bool:
        """Whether sequences are `[time, batch, features]`."""
        return self.layers[0].time_first

    @_words.told()
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

    @_words.told()
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
        nudge: Sequence[Any] | None = None,
    ) -> tuple[tuple[jax.Array, tuple[PyTree, ...]], PyTree]:
        """Run all layers; arguments as for one layer, `carry` and `nudge` a sequence of one each.

        Returns:
            `((y, carry), state)`, `carry` a tuple of one each.

        Raises:
            ValueError: as a single layer; a carry for another number of layers.
        """
        self._check(params, state)
        last: list[PyTree] = []
        moved: dict[str, PyTree] = {}
        nudges = _one_each("nudge", nudge, "layers", len(self.layers))

        def run(i: int, layer: Any, params: PyTree, state: PyTree, y: Array, how: Any) -> Array:
            own = {} if nudges[i] is None else {"nudge": nudges[i]}
            (y, end), moved[f"layer_{i}"] = layer.apply(params, state, y, **how, **own)
            last.append(end)
            return y

        how = {"lengths": lengths, "stats": stats, "axis_name": axis_name, "hyper": hyper}
        y, between = self._up(run, params, state, x, carry, key, how)
        return (y, tuple(last)), {**moved, **between}

    def look(
        self,
        params: PyTree,
        state: PyTree,
        x: Array,
        *,
        carry: Sequence[PyTree] | None = None,
        key: jax.Array | None = None,
        **how: Any,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Run as `apply` and return the outputs and what was seen, by the names of `params`."""
        self._check(params, state)
        seen: dict[str, Any] = {}

        def run(i: int, layer: Any, params: PyTree, state: PyTree, y: Array, how: Any) -> Array:
            y, seen[f"layer_{i}"] = layer.look(params, state, y, **how)
            return y

        gathering = {k: collecting(v) if k.startswith("norm_") else v for k, v in state.items()}
        how = {"lengths": None, "axis_name": None, "hyper": None, **how}
        y, between = self._up(run, params, gathering, x, carry, key, how)
        return y, seen | {k: v.seen for k, v in between.items() if isinstance(v, Collect)}

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
        _checks.hyper(hyper, sorted(self.hypers), self.factory)
        carries = _one_each("carry", carry, "layers", count)
        keys = [None] * (2 * count) if key is None else list(jax.random.split(key, 2 * count))
        y, new = jnp.asarray(x), {}
        mask = self._mask(y, how["lengths"])
        for i, layer in enumerate(self.layers):
            name = f"layer_{i}"
            own = {"carry": carries[i], "key": keys[2 * i], "hyper": _known(hyper, layer.hypers)}
            out = run(i, layer, params[name], state[name], y, {**how, **own})
            y = out + y if self.residual and out.shape == y.shape else out
            if i + 1 < count:
                y, found = self._between(i, params, state, y, mask, how)
                new.update(found)
                y = self._drop(keys[2 * i + 1] if how["stats"] == "batch" else None, y)
            if mask is not None:
                y = jnp.where(mask if self.time_first else mask.swapaxes(0, 1), y, 0)
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
        y = y if self.time_first else y.swapaxes(0, 1)
        y, new = norm.apply(
            params[name],
            state[name],
            y,
            stats=how["stats"],
            mask=mask,
            axis_name=how["axis_name"],
            hyper=_known(how["hyper"], norm.norm.hypers),
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
    def drops(self) -> bool:
        """Whether zoneout or dropout is asked for: they draw in mode `"batch"`, given a key."""
        return self.forward.drops or self.backward.drops

    @property
    def time_first(self) -> bool:
        """Whether sequences are `[time, batch, features]`."""
        return self.forward.time_first

    @_words.told()
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

    @_words.told()
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
        nudge: Sequence[Any] | None = None,
    ) -> tuple[tuple[jax.Array, tuple[PyTree, PyTree]], PyTree]:
        """Run both directions; arguments as for one layer, `carry` and `nudge` a pair.

        Returns:
            `((y, carry), state)`, `carry` the pair of last carries.

        Raises:
            ValueError: as a single layer.
        """
        ends: list[PyTree] = []
        moved: dict[str, PyTree] = {}
        nudges = _one_each("nudge", nudge, "directions", 2)

        def run(i: int, name: str, params: PyTree, state: PyTree, x: Array, how: Any) -> Array:
            # The nudge is in the order of the outputs, so it turns with them.
            own = {} if nudges[i] is None else {"nudge": self._read(i, nudges[i], lengths)}
            (y, end), moved[name] = getattr(self, name).apply(params, state, x, **how, **own)
            ends.append(end)
            return y

        how = {"lengths": lengths, "stats": stats, "axis_name": axis_name, "hyper": hyper}
        y = self._both(run, params, state, x, carry, key, how)
        return (y, (ends[0], ends[1])), moved

    def look(
        self,
        params: PyTree,
        state: PyTree,
        x: Array,
        *,
        carry: Sequence[PyTree] | None = None,
        key: jax.Array | None = None,
        **how: Any,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Run as `apply` and return the outputs and what each direction saw, in its own order."""
        seen: dict[str, Any] = {}

        def run(i: int, name: str, params: PyTree, state: PyTree, x: Array, how: Any) -> Array:
            y, seen[name] = getattr(self, name).look(params, state, x, **how)
            return y

        how = {"lengths": None, "axis_name": None, "hyper": None, **how}
        return self._both(run, params, state, x, carry, key, how), seen

    def _both(
        self,
        run: Any,
        params: PyTree,
        state: PyTree,
        x: Array,
        carry: Sequence[PyTree] | None,
        key: jax.Array | None,
        how: dict[str, Any],
    ) -> jax.Array:
        """`run` each direction and merge their outputs."""
        hyper, lengths = how["hyper"], how["lengths"]
        _checks.hyper(hyper, sorted(self.hypers), self.factory)
        check_made(self.factory, params, state, ("forward", "backward"))
        keys = (None, None) if key is None else jax.random.split(key)
        carries = _one_each("carry", carry, "directions", 2)
        x, outs = jnp.asarray(x), []
        for i, name in enumerate(("forward", "backward")):
            own = {"carry": carries[i], "key": keys[i]}
            own["hyper"] = _known(hyper, getattr(self, name).hypers)
            turned = self._read(i, x, lengths)
            y = run(i, name, params[name], state[name], turned, {**how, **own})
            outs.append(self._read(i, y, lengths))
        return jnp.concatenate(outs, axis=-1) if self.merge == "concat" else outs[0] + outs[1]

    def _read(self, i: int, x: Array, lengths: Array | None) -> jax.Array:
        """The sequences as direction `i` reads them; and, by the same turn, back."""
        x = jnp.asarray(x)
        return self._turn(x, lengths) if i else x

    def _turn(self, x: jax.Array, lengths: Array | None) -> jax.Array:
        if x.ndim != 3:
            return x  # the layer says what is wrong
        if self.time_first:
            return _sequences.reverse(x, lengths)
        return _sequences.reverse(x.swapaxes(0, 1), lengths).swapaxes(0, 1)


@_words.told()
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
    if len({layer.time_first for layer in layers}) > 1:
        raise ValueError("a stack is batch-major or time-major: give all layers one time_major")
    _checks.rate("dropout", dropout)
    between = _lifts.lift(norm_between, "norm_between", stepwise=False)
    return Stack(layers, between, residual, dropout)


@_words.told()
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
    check_layer(forward, "bidirectional")
    check_layer(backward, "bidirectional")
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


def _one_each(what: str, given: Any, of: str, count: int) -> tuple[Any, ...]:
    found = (None,) * count if given is None else tuple(given)
    if len(found) != count:
        raise ValueError(f"{what} has {len(found)} entries for {count} {of}: give one each")
    return found
