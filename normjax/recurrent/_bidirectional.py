"""Bidirectional pairs of recurrent layers."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.recurrent import _segments, _sequences
from normjax.recurrent._base import Layer
from normjax.recurrent._checks import check_layer
from normjax.recurrent._composite import Composite, CompositeCall, CompositeRun
from normjax.statistics._types import Array, PyTree

Merge = Literal["concat", "sum"]


@dataclasses.dataclass(frozen=True, repr=False)
class Bidirectional(Composite):
    """Two layers that read in opposite directions, as a value; made by `bidirectional`."""

    factory: ClassVar[str] = "bidirectional"
    part_names: ClassVar[str] = "directions"

    forward: Layer
    backward: Layer | None = None
    merge: Merge = "concat"

    def __post_init__(self) -> None:
        """Refuse what is no layer, an unknown merge, unequal layouts, and widths with no sum."""
        if self.backward is None:
            _checks.set_field(self, "backward", self.forward)
        for layer in self.parts.values():
            check_layer(layer, "bidirectional")
        _checks.one_of("merge", self.merge, get_args(Merge))
        forward, backward = self.parts.values()
        if forward.time_major != backward.time_major:
            raise ValueError(
                "both directions must be batch-major or time-major: give one time_major"
            )
        widths = forward.features_out, backward.features_out
        if self.merge == "sum" and widths[0] != widths[1]:
            raise ValueError(
                f'merge="sum" needs equal widths and got {widths[0]} and {widths[1]}: write '
                'merge="concat"'
            )

    @property
    def parts(self) -> dict[str, Layer]:
        """Both layers, by the names of their params."""
        return {"forward": self.forward, "backward": self.backward or self.forward}

    @property
    def features_out(self) -> int:
        """Size of the last axis of the outputs."""
        forward, backward = (layer.features_out for layer in self.parts.values())
        return forward if self.merge == "sum" else forward + backward

    @_hints.with_hints()
    def init(
        self, key: jax.Array, features: int, dtype: Any = jnp.float32
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make `(params, state)`, entries `forward` and `backward`."""
        params, state = {}, {}
        keys = jax.random.split(key)
        for (name, layer), layer_key in zip(self.parts.items(), keys, strict=True):
            params[name], state[name] = layer.init(layer_key, features, dtype)
        return params, state

    def run(self, params: PyTree, state: PyTree, x: jax.Array, call: CompositeCall) -> CompositeRun:
        """Run each direction and merge their outputs."""
        keys = (None, None) if call.key is None else jax.random.split(call.key)
        # A perturbation is in the order of the outputs, so it turns with them.
        turned = {
            name: value if value is None else self._turn(name, value, call.lengths)
            for name, value in call.perturbations.items()
        }
        call = dataclasses.replace(call, perturbations=turned)
        parts, outputs = {}, []
        for name, key in zip(self.parts, keys, strict=True):
            read = self._turn(name, x, call.lengths)
            parts[name] = self.run_part(name, params, state, read, key, self._turn_call(name, call))
            outputs.append(self._turn(name, parts[name].y, call.lengths))
        return CompositeRun(self._merged(*outputs), parts, {})

    def output(self, carry: PyTree) -> jax.Array:
        """Merge what each direction puts out once it has read the whole sequence."""
        carries = self._one_each("carry", carry)
        return self._merged(*(part.output(carries[name]) for name, part in self.parts.items()))

    def _merged(self, forward: jax.Array, backward: jax.Array) -> jax.Array:
        if self.merge == "sum":
            return forward + backward
        return jnp.concatenate([forward, backward], axis=-1)

    def _turn(self, name: str, x: Array, lengths: Array | None) -> jax.Array:
        """Reverse sequences for the backward direction; the same turn leads back."""
        x = jnp.asarray(x)
        if name == "forward" or x.ndim != 3:  # the layer says what is wrong with other ranks
            return x
        if self.time_major:
            return _sequences.reverse(x, lengths)
        return _sequences.reverse(x.swapaxes(0, 1), lengths).swapaxes(0, 1)

    def _turn_call(self, name: str, call: CompositeCall) -> CompositeCall:
        """Reverse the flags of each step; the forward layer says what is wrong with them."""
        if name == "forward" or (call.resets is None and call.mask is None):
            return call

        def turn(flags: Array | None) -> Any:
            if flags is None:
                return None
            return self._turn(name, jnp.asarray(flags)[..., None], call.lengths)[..., 0]

        resets = _segments.resets_backward(call.resets, call.lengths, self.time_major)
        return dataclasses.replace(call, resets=turn(resets), mask=turn(call.mask))


@_hints.with_hints()
def bidirectional(
    forward: Layer, backward: Layer | None = None, *, merge: Merge = "concat"
) -> Layer:
    r"""Read sequences in both directions; only the part that is not padding is reversed.

    Statistics per step of the backward layer count steps from each sequence's end. With `resets`
    both directions read the same segments: the backward layer starts again at the last step of
    each.

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
    return Bidirectional(**locals())
