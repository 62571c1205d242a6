"""`Recurrent`: a cell's equations, lifted norms by place, one scan.

A cell says which places its norms have and how one step follows from the last. All else is
here and the same for every cell: the input projection and its statistics for all steps at
once, the scan, padding, the carry, and the state's move after the scan.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Inexact, Integer

from normjax import _checks
from normjax.base import Array, AxisName, Hyper, Norm, PyTree, Stats
from normjax.recurrent import _initializers, _lifts
from normjax.recurrent._initializers import Initializer
from normjax.recurrent._lifts import SeqNorm

NormAt = Callable[[str, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, repr=False)
class Recurrent(abc.ABC):
    """A recurrent layer: static structure and the pure functions `init` and `apply`.

    Like a `Norm` it is a hashable value with equality, `repr` and pickle. `params` is a
    dictionary (`w_x`, `w_h`, `bias`, one entry for each norm, `h0`, `c0` if learned), `state`
    one of the norms' states by place.

    Class attributes:
        factory: name of the public function that makes it.
        gates: number of blocks of `hidden` columns in the weights.
        places: where norms may stand, and how many blocks wide each is.
    """

    factory: ClassVar[str] = "recurrent"
    gates: ClassVar[int] = 1
    places: ClassVar[dict[str, int]] = {}

    hidden: int
    norm_x: SeqNorm | None = None
    norm_h: SeqNorm | None = None
    norm_sum: SeqNorm | None = None
    kernel_init: Initializer = "lecun_normal"
    recurrent_init: Initializer = "orthogonal"
    learn_carry: bool = False
    h0_noise: float = 0.0
    time_major: bool = False

    # What a cell defines.

    @abc.abstractmethod
    def cell(
        self, params: PyTree, norm: NormAt, zx: jax.Array, carry: PyTree
    ) -> tuple[PyTree, jax.Array]:
        """One step: from the input term and the carry to the next carry and the output.

        Args:
            params: the weights, in the dtype of the computation.
            norm: `norm(place, value)` normalizes a value where a norm stands, and is the
                identity elsewhere.
            zx: `[batch, gates * hidden]`, the input term, already normalized.
            carry: `[batch, hidden]` arrays.
        """

    @abc.abstractmethod
    def start_carry(self, batch: int, dtype: Any) -> PyTree:
        """Return the zero carry."""

    def start_bias(self, dtype: Any) -> jax.Array:
        """Return the bias before training."""
        return jnp.zeros((self.gates * self.hidden,), dtype)

    # What a user calls.

    def init(
        self, key: jax.Array, features: int, dtype: Any = jnp.float32
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make `(params, state)`.

        Args:
            key: PRNG key.
            features: size of the last axis of the inputs.
            dtype: dtype of the parameters; statistics are at least float32.

        Returns:
            `(params, state)`.

        Raises:
            ValueError: `features` is not a positive integer.
        """
        _checks.positive_int("features", features)
        key_x, key_h, key_norms = jax.random.split(key, 3)
        width = (self.gates, self.hidden)
        params: dict[str, Any] = {
            "w_x": _initializers.make(self.kernel_init, key_x, features, *width, dtype),
            "w_h": _initializers.make(self.recurrent_init, key_h, self.hidden, *width, dtype),
            "bias": self.start_bias(dtype),
        }
        state: dict[str, Any] = {}
        norms = self.norms()
        for (place, norm), k in zip(
            norms.items(), jax.random.split(key_norms, max(len(norms), 1)), strict=False
        ):
            shape = (1, self.places[place] * self.hidden)
            params[place], state[place] = norm.init(shape, dtype, key=k)
        if self.learn_carry:
            params["carry"] = jax.tree.map(lambda z: z[0], self.start_carry(1, dtype))
        return params, state

    def apply(
        self,
        params: PyTree,
        state: PyTree,
        x: Inexact[Array, "*batch_time features"],
        *,
        stats: Stats,
        lengths: Integer[Array, " batch"] | None = None,
        carry: PyTree | None = None,
        key: jax.Array | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
        nudge: Inexact[Array, "*batch_time hidden"] | None = None,
    ) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        """Run the layer over a sequence.

        Args:
            params: what `init` returned.
            state: what `init` or the last `apply` returned.
            x: `[batch, time, features]`, or `[time, batch, features]` with `time_major`; its
                dtype is that of the computation (statistics stay in at least float32).
            stats: `"batch"`: each batch's statistics, and the state moves; `"running"`: the
                state's.
            lengths: `[batch]`, number of steps of each sequence, 0 to time. Steps past it
                enter no statistic, hold the carry and put out 0. `None`: all steps count.
            carry: start of the carry; `None`: zeros, or what was learned.
            key: PRNG key, needed where `h0_noise` is positive.
            axis_name: device axis or axes that the batch is split over.
            hyper: numbers that may vary during training, given to every norm that takes them.
            nudge: added to the hidden state of every step, in the layout of the outputs. At 0
                the gradient of a loss with respect to it is dLoss/dh_t.

        Returns:
            `((y, carry), state)`: outputs of every step `[batch, time, hidden]`, the carry
            after each sequence's last step, and the next state.

        Raises:
            TypeError: `x` is not floating, `lengths` not integer.
            ValueError: shapes that do not fit, a missing `key`, an unknown `stats`.
        """
        _checks.stats(stats)
        known = sorted({name for n in self.norms().values() for name in n.norm.hypers})
        _checks.hyper(hyper, known, self.factory)
        x = _checks.floating(x, self.factory)
        self._check_shapes(params, x)
        if not self.time_major:
            x = jnp.swapaxes(x, 0, 1)
            nudge = None if nudge is None else jnp.swapaxes(nudge, 0, 1)
        mask = _padding(lengths, x.shape[0], x.shape[1])
        if mask is not None:
            # Whatever fills the padding, NaN too, must not meet a weight: 0 * NaN is its gradient.
            x = jnp.where(mask, x, 0)
        params = _cast(params, x.dtype)
        carry = self._first_carry(params, x, carry, key)
        y, carry, state = self._run(params, state, x, carry, mask, nudge, stats, axis_name, hyper)
        return (y if self.time_major else jnp.swapaxes(y, 0, 1), carry), state

    def norms(self) -> dict[str, SeqNorm]:
        """Return the lifted norm of each place that has one."""
        found = {place: getattr(self, place) for place in self.places}
        return {place: norm for place, norm in found.items() if norm is not None}

    def _run(
        self,
        params: PyTree,
        state: PyTree,
        x: jax.Array,
        carry: PyTree,
        mask: jax.Array | None,
        nudge: jax.Array | None,
        stats: Stats,
        axis_name: AxisName,
        hyper: Hyper,
    ) -> tuple[jax.Array, PyTree, PyTree]:
        norms = self.norms()
        how: dict[str, dict[str, Any]] = {
            place: {
                "stats": stats,
                "axis_name": axis_name,
                "hyper": {k: v for k, v in (hyper or {}).items() if k in norm.norm.hypers},
            }
            for place, norm in norms.items()
        }
        # The input term never needs the recurrence: one matmul and one set of statistics.
        zx = x @ params["w_x"]
        seen: dict[str, Any] = {}
        if norm_x := norms.get("norm_x"):
            zx, seen["norm_x"] = norm_x.sequence(
                params["norm_x"], state["norm_x"], zx, mask=mask, **how["norm_x"]
            )
        inner = {place: norm for place, norm in norms.items() if place != "norm_x"}
        at = {p: n.unroll(params[p], state[p], x.shape[0]) for p, n in inner.items()}

        def body(carry: PyTree, xs: Any) -> tuple[PyTree, Any]:
            zx_t, mask_t, nudge_t, at_t = xs
            seen_t: dict[str, Any] = {}

            def norm(place: str, value: jax.Array) -> jax.Array:
                if place not in inner:
                    return value
                value, seen_t[place] = inner[place].step(
                    params[place], state[place], at_t[place], value, mask=mask_t, **how[place]
                )
                return value

            following, y = self.cell(params, norm, zx_t, carry)
            if nudge_t is not None:
                following, y = _with_h(following, y + nudge_t), y + nudge_t
            if mask_t is not None:
                following = jax.tree.map(lambda n, c: jnp.where(mask_t, n, c), following, carry)
                y = jnp.where(mask_t, y, 0)
            return following, (y, seen_t)

        carry, (y, seen_inner) = lax.scan(body, carry, (zx, mask, nudge, at))
        seen.update(seen_inner)
        state = {
            place: norm.commit(state[place], seen[place], stats=stats, hyper=how[place]["hyper"])
            for place, norm in norms.items()
        }
        return y, carry, state

    def _first_carry(
        self, params: PyTree, x: jax.Array, carry: PyTree | None, key: jax.Array | None
    ) -> PyTree:
        batch = x.shape[1]
        if carry is None:
            start = self.start_carry(batch, x.dtype)
            if self.learn_carry:
                learned = params["carry"]
                start = jax.tree.map(lambda c, z: jnp.broadcast_to(c, z.shape), learned, start)
        else:
            zero = self.start_carry(batch, x.dtype)
            start = _checks_carry(carry, zero)
        if self.h0_noise:
            if key is None:
                raise ValueError(
                    f"h0_noise={self.h0_noise} needs a PRNG key: write apply(..., key=key)"
                )
            start = self.add_noise(start, key)
        return _vary_like(start, x)

    def add_noise(self, carry: PyTree, key: jax.Array) -> PyTree:
        """Add Gaussian noise of `h0_noise` to the hidden state, and to nothing else."""
        h = hidden_of(carry)
        return _with_h(carry, h + self.h0_noise * jax.random.normal(key, h.shape, h.dtype))

    def _check_shapes(self, params: PyTree, x: jax.Array) -> None:
        order = "[time, batch, features]" if self.time_major else "[batch, time, features]"
        if x.ndim != 3:
            raise ValueError(f"{self.factory} takes x as {order} and got shape {x.shape}")
        if x.shape[-1] != params["w_x"].shape[0]:
            raise ValueError(
                f"x has {x.shape[-1]} features and the layer was made for "
                f"{params['w_x'].shape[0]}: x is {order}, of shape {x.shape}"
            )
        if 0 in x.shape:
            raise ValueError(f"x of shape {x.shape} is empty: {order} need at least 1 each")

    __repr__ = Norm.__repr__


def structure(layer: Recurrent) -> Recurrent:
    """Check a layer when it is made, and lift the norms that need no lift of their own."""
    _checks.positive_int("hidden", layer.hidden)
    _initializers.check("kernel_init", layer.kernel_init)
    _initializers.check("recurrent_init", layer.recurrent_init)
    _checks.positive("h0_noise", layer.h0_noise, zero=True)
    lifted: dict[str, Any] = {
        place: _lifts.lift(getattr(layer, place), place, stepwise=place != "norm_x")
        for place in layer.places
    }
    return dataclasses.replace(layer, **lifted)


def _padding(lengths: Array | None, steps: int, batch: int) -> jax.Array | None:
    """Return `[time, batch, 1]`, True on the steps of each sequence."""
    if lengths is None:
        return None
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"lengths must be integers, one a sequence, and are {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(
            f"lengths of shape {lengths.shape} must be [batch] = ({batch},): the number of steps "
            "of each sequence (a mask is written mask.sum(time_axis))"
        )
    if not isinstance(lengths, jax.core.Tracer) and batch:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > steps:
            raise ValueError(f"lengths from {low} to {high} do not fit sequences of {steps} steps")
    return (jnp.arange(steps)[:, None] < lengths[None, :])[..., None]


def hidden_of(carry: PyTree) -> jax.Array:
    """Return the hidden state of a carry, whatever the cell."""
    return carry.h if hasattr(carry, "h") else carry


def _with_h(carry: PyTree, h: jax.Array) -> PyTree:
    return carry._replace(h=h) if hasattr(carry, "h") else h


def _cast(params: PyTree, dtype: Any) -> PyTree:
    """Cast weights to the dtype of the computation; norms cast their own, at least float32."""
    return {
        name: value if name.startswith("norm") else jax.tree.map(lambda v: _as(v, dtype), value)
        for name, value in params.items()
    }


def _as(v: Array, dtype: Any) -> jax.Array:
    return jnp.asarray(v).astype(dtype)


def _checks_carry(carry: PyTree, zero: PyTree) -> PyTree:
    """Return a user's carry in the structure and dtype of ours; Flax's `(c, h)` tuple is fine."""
    want, got = jax.tree.leaves(zero), jax.tree.leaves(carry)
    if [jnp.shape(w) for w in want] != [jnp.shape(g) for g in got]:
        raise ValueError(
            f"carry has shapes {[jnp.shape(g) for g in got]} and must be "
            f"{type(zero).__name__} of shapes {[w.shape for w in want]}"
        )
    leaves = [_as(g, w.dtype) for g, w in zip(got, want, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(zero), leaves)


def _vary_like(tree: PyTree, x: jax.Array) -> PyTree:
    """Mark a carry as varying over the device axes of `x`, which a scan in `shard_map` needs."""
    kind = getattr(jax.typeof(x), "manual_axis_type", None)
    axes = tuple(getattr(kind, "varying", None) or ())

    def mark(leaf: jax.Array) -> jax.Array:
        have = getattr(getattr(jax.typeof(leaf), "manual_axis_type", None), "varying", None) or ()
        missing = tuple(a for a in axes if a not in have)
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, tree)
