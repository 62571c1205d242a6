"""Bidirectional pairs of recurrent layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Hyper, Stats
from normjax.recurrent import _sequences
from normjax.recurrent._base import Layer
from normjax.recurrent._checks import check_layer, check_made
from normjax.recurrent._stack import _known, _one_each
from normjax.statistics._types import Array, AxisName, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Bidirectional(Layer):
    """The value behind `bidirectional`; see there."""

    factory: ClassVar[str] = "bidirectional"

    forward: Any
    backward: Any
    merge: Literal["concat", "sum"] = "concat"

    @property
    def features_out(self) -> int:
        """Size of the last axis of the outputs."""
        both = self.merge == "concat"
        return (
            self.forward.features_out + self.backward.features_out
            if both
            else self.forward.features_out
        )

    @property
    def hyper_names(self) -> frozenset[str]:
        """Names that `hyper` may carry, those of all norms."""
        return self.forward.hyper_names | self.backward.hyper_names

    @property
    def stateful(self) -> bool:
        """Whether any norm keeps statistics."""
        return self.forward.stateful or self.backward.stateful

    @property
    def needs_key(self) -> bool:
        """Whether `apply` needs a PRNG key in every mode."""
        return self.forward.needs_key or self.backward.needs_key

    @property
    def has_dropout(self) -> bool:
        """Whether zoneout or dropout is asked for: they draw in mode `"batch"`, given a key."""
        return self.forward.has_dropout or self.backward.has_dropout

    @property
    def time_major(self) -> bool:
        """Whether sequences are `[time, batch, features]`."""
        return self.forward.time_major

    @_hints.with_hints()
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
    ) -> tuple[tuple[jax.Array, tuple[PyTree, PyTree]], PyTree]:
        """Run both directions; arguments as for one layer, `carry` and `hidden_perturbation` a
        pair.

        Returns:
            `((y, carry), state)`, `carry` the pair of last carries.

        Raises:
            ValueError: as a single layer.
        """
        ends: list[PyTree] = []
        moved: dict[str, PyTree] = {}
        nudges = _one_each("hidden_perturbation", hidden_perturbation, "directions", 2)

        def run(i: int, name: str, params: PyTree, state: PyTree, x: Array, how: Any) -> Array:
            # The hidden_perturbation is in the order of the outputs, so it turns with them.
            own = (
                {}
                if nudges[i] is None
                else {"hidden_perturbation": self._read(i, nudges[i], lengths)}
            )
            (y, end), moved[name] = getattr(self, name).apply(params, state, x, **how, **own)
            ends.append(end)
            return y

        how = {"lengths": lengths, "stats": stats, "axis_name": axis_name, "hyper": hyper}
        y = self._both(run, params, state, x, carry, key, how)
        return (y, (ends[0], ends[1])), moved

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
        """Run as `apply` and return the outputs and what each direction saw, in its own order."""
        measured: dict[str, Any] = {}

        def run(i: int, name: str, params: PyTree, state: PyTree, x: Array, how: Any) -> Array:
            y, measured[name] = getattr(self, name).apply_with_info(params, state, x, **how)
            return y

        how = {"lengths": None, "axis_name": None, "hyper": None, **how}
        return self._both(run, params, state, x, carry, key, how), measured

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
        _checks.hyper(hyper, sorted(self.hyper_names), self.factory)
        check_made(self.factory, params, state, ("forward", "backward"))
        keys = (None, None) if key is None else jax.random.split(key)
        carries = _one_each("carry", carry, "directions", 2)
        x, outs = jnp.asarray(x), []
        for i, name in enumerate(("forward", "backward")):
            own = {"carry": carries[i], "key": keys[i]}
            own["hyper"] = _known(hyper, getattr(self, name).hyper_names)
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
        if self.time_major:
            return _sequences.reverse(x, lengths)
        return _sequences.reverse(x.swapaxes(0, 1), lengths).swapaxes(0, 1)


@_hints.with_hints()
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
    if forward.time_major != backward.time_major:
        raise ValueError("both directions must be batch-major or time-major: give one time_major")
    if merge == "sum" and forward.features_out != backward.features_out:
        raise ValueError(
            f'merge="sum" needs equal widths and got {forward.features_out} and '
            f'{backward.features_out}: write merge="concat"'
        )
    return Bidirectional(forward, backward, merge)
