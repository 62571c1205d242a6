"""`Recurrent`: a cell's equations, lifted norms by place, one scan.

A cell says which places its norms have and how one step follows from the last. All else is
here and the same for every cell: the input projection and its statistics (for all steps at once,
but for what a single CPU does better step by step), the scan, padding, noise, the carry, and the
state's move after the scan.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Inexact, Integer

from normjax._internal import _checks, _hints
from normjax.base import Hyper, Stats
from normjax.recurrent import _initializers, _scan, _sequences, _shared
from normjax.recurrent._base import SATURATED, Gates, Info, Layer, NormAt
from normjax.recurrent._carry import hidden_of, with_hidden, zoneout
from normjax.recurrent._checks import check_call
from normjax.recurrent._initializers import Initializer
from normjax.recurrent._seq_norm import SeqNorm
from normjax.state._population import accumulate_statistics
from normjax.statistics import _measure
from normjax.statistics._types import Array, AxisName, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Recurrent(Layer):
    """A recurrent layer: static structure and the pure functions `init` and `apply`.

    `params` is a dictionary (`w_x`, `w_h`, `bias`, one entry for each norm, `carry` if
    learned), `state` one of the norms' states by place.

    Class attributes:
        gates: number of blocks of `hidden` columns in the weights.
        places: where norms may stand, and how many blocks wide each is.
        inputs: the places on the input term, and which of its blocks each normalizes.
    """

    factory: ClassVar[str] = "recurrent"
    gates: ClassVar[int] = 1
    places: ClassVar[dict[str, int]] = {}
    inputs: ClassVar[dict[str, tuple[int, int]]] = {}

    hidden: int
    norm_x: SeqNorm | None = None
    norm_h: SeqNorm | None = None
    kernel_init: Initializer = "lecun_normal"
    recurrent_init: Initializer = "orthogonal"
    learn_carry: bool = False
    h0_noise: float = 0.0
    zoneout_h: float = 0.0
    dropout_h: float = 0.0
    remat_steps: int | None = None
    time_major: bool = False

    # What a cell defines.

    @abc.abstractmethod
    def cell(
        self, params: PyTree, norm: NormAt, zx: jax.Array, h: jax.Array, carry: PyTree
    ) -> tuple[PyTree, Gates]:
        """One step: from the input term and the carry to the next carry, and the gates' values.

        Args:
            params: the weights, in the dtype of the computation.
            norm: `norm(place, value)` normalizes a value where a norm stands, and is the
                identity elsewhere.
            zx: `[batch, gates * hidden]`, the input term, already normalized.
            h: `[batch, hidden]`, what the recurrent weights see: the hidden state, less what
                dropout took.
            carry: `[batch, hidden]` arrays.
        """

    @abc.abstractmethod
    def start_carry(self, batch: int, dtype: Any) -> PyTree:
        """Return the zero carry."""

    def start_bias(self, dtype: Any) -> dict[str, jax.Array]:
        """Return the biases before training, by name."""
        return {"bias": jnp.zeros((self.gates * self.hidden,), dtype)}

    def by_kernel(
        self, params: PyTree, state: PyTree, x: jax.Array, carry: PyTree, how: dict[str, Any]
    ) -> Any:
        """Run over x `[time, batch, features]` as one program, or `None` where that is not served.

        It is asked where each batch has its own statistics, on one device, and nothing is padded,
        nudged or looked at. `how` and what is returned are as in `_run`.
        """
        del params, state, x, carry, how
        return None

    # What a user calls.

    @_hints.with_hints()
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
            TypeError: `features` is x or its shape.
            ValueError: `features` is not a positive integer.
        """
        _checks.features(features)
        key_x, key_h, key_norms = jax.random.split(key, 3)
        width = (self.gates, self.hidden)
        params: dict[str, Any] = {
            "w_x": _initializers.make(self.kernel_init, key_x, features, *width, dtype),
            "w_h": _initializers.make(self.recurrent_init, key_h, self.hidden, *width, dtype),
            **self.start_bias(dtype),
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

    @_hints.with_hints()
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
        hidden_perturbation: Inexact[Array, "*batch_time hidden"] | None = None,
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
            carry: start of the carry, an `LSTMCarry(c=…, h=…)` of an LSTM and else an array
                `[batch, hidden]`; `None`: zeros, or what was learned.
            key: PRNG key for noise. `h0_noise` needs it in both modes; zoneout and dropout act
                in mode `"batch"` where it is given, and else put out their expectation.
            axis_name: device axis or axes that the batch is split over.
            hyper: numbers that may vary during training, given to every norm that takes them.
            hidden_perturbation: added to the hidden state of every step, in the layout of the
                outputs. At 0 the gradient of a loss with respect to it is dLoss/dh_t.

        Returns:
            `((y, carry), state)`: outputs of every step `[batch, time, hidden]`, the carry
            after each sequence's last step, and the next state.

        Raises:
            TypeError: `x` is not floating, `lengths` not integer, an LSTM's carry a plain tuple,
                `params` the variables of a Flax module.
            ValueError: shapes that do not fit, a missing `key`, an unknown `stats`.
        """
        params, x, carry, mask, hidden_perturbation = self._ready(
            params, state, x, stats, lengths, carry, key, hyper, hidden_perturbation
        )
        y, carry, state, _ = self._run(
            params,
            state,
            x,
            carry,
            mask,
            hidden_perturbation,
            key,
            stats,
            axis_name,
            hyper,
            look=False,
        )
        return (y if self.time_major else jnp.swapaxes(y, 0, 1), carry), state

    def apply_with_info(
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
    ) -> tuple[jax.Array, Info]:
        """Run as `apply` and return the outputs and `Info`."""
        params, x, carry, mask, _ = self._ready(
            params, state, x, stats, lengths, carry, key, hyper, None
        )
        gathering = accumulate_statistics(state)
        y, _, _, (measured, gates) = self._run(
            params, gathering, x, carry, mask, None, key, stats, axis_name, hyper, look=True
        )
        live = jnp.ones((*y.shape[:2], 1), bool) if mask is None else mask

        def mean(values: jax.Array) -> Any:
            whole = jnp.broadcast_to(live, values.shape)
            return _measure.means(values, (1, 2), mask=whole, axis_name=axis_name).mean

        ends = {name: (g < SATURATED) | (g > 1 - SATURATED) for name, g in gates.items()}
        found = Info(
            moments={place: m for place, m in measured.items() if m is not None},
            gates={name: mean(g) for name, g in gates.items()},
            saturated={name: mean(e.astype(jnp.float32)) for name, e in ends.items()},
            hidden_norm=mean(jnp.linalg.norm(y, axis=-1, keepdims=True)),
        )
        return (y if self.time_major else jnp.swapaxes(y, 0, 1)), found

    def _ready(
        self,
        params: PyTree,
        state: PyTree,
        x: Array,
        stats: Any,
        lengths: Array | None,
        carry: PyTree | None,
        key: jax.Array | None,
        hyper: Hyper,
        hidden_perturbation: Array | None,
    ) -> tuple[PyTree, jax.Array, PyTree, jax.Array | None, jax.Array | None]:
        """Check a call and return its arguments time-major, in the dtype of the computation."""
        _checks.stats(stats)
        _checks.hyper(hyper, sorted(self.hyper_names), self.factory)
        x = _checks.floating(x, self.factory)
        check_call(self, params, state, x)
        hidden_perturbation = (
            None
            if hidden_perturbation is None
            else jnp.asarray(hidden_perturbation).astype(x.dtype)
        )
        if not self.time_major:
            x = jnp.swapaxes(x, 0, 1)
            hidden_perturbation = (
                None if hidden_perturbation is None else jnp.swapaxes(hidden_perturbation, 0, 1)
            )
        mask = _sequences.padding(lengths, x.shape[0], x.shape[1])
        if mask is not None:
            # Whatever fills the padding, NaN too, must not meet a weight: 0 * NaN is its gradient.
            x = jnp.where(mask, x, 0)
        params = _cast(params, x.dtype)
        return params, x, self._first_carry(params, x, carry, key), mask, hidden_perturbation

    @property
    def features_out(self) -> int:
        """Size of the last axis of the outputs: the number of units."""
        return self.hidden

    @property
    def hyper_names(self) -> frozenset[str]:
        """Names that `hyper` may carry, those of all norms."""
        return frozenset(name for n in self.norms().values() for name in n.norm.hyper_names)

    @property
    def stateful(self) -> bool:
        """Whether any norm keeps statistics."""
        return any(n.norm.stateful for n in self.norms().values())

    @property
    def needs_key(self) -> bool:
        """Whether `apply` needs a PRNG key in every mode."""
        return self.h0_noise > 0

    @property
    def has_dropout(self) -> bool:
        """Whether zoneout or dropout is asked for: they draw in mode `"batch"`, given a key."""
        return bool(self.zoneout_h or getattr(self, "zoneout_c", 0.0) or self.dropout_h)

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
        hidden_perturbation: jax.Array | None,
        key: jax.Array | None,
        stats: Stats,
        axis_name: AxisName,
        hyper: Hyper,
        look: bool,
    ) -> tuple[jax.Array, PyTree, PyTree, tuple[dict[str, Any], Gates]]:
        """Return outputs, carry, state, and the statistics by place with the gates by name."""
        norms, how = self.norms(), self._how(stats, axis_name, hyper)
        plain = mask is None and hidden_perturbation is None and axis_name is None and not look
        if plain and stats == "batch":
            found = self.by_kernel(params, state, x, carry, how)
            if found is not None:
                return found
        # The input term never needs the recurrence: one matmul for all steps, and one set of
        # statistics, in one exchange between devices. It is normalized in the scan all the same:
        # there it is in cache, and the normalized sequence need not be kept beside the plain one.
        measured: dict[str, Any] = {}
        terms: list[jax.Array | None] = []
        ahead = _scan.makes_ahead()
        late = not ahead and _scan.makes_late(x.shape)
        weights = {
            place: params["w_x"][:, first * self.hidden : last * self.hidden]
            for place, (first, last) in self.inputs.items()
        }
        for place, weight in weights.items():
            stepwise = place not in norms or norms[place].stepwise
            term = None if late and stepwise else x @ weight
            if place in norms and term is not None:
                given = (params[place], state[place], term)
                if not stepwise:
                    term, measured[place] = norms[place].sequence(*given, mask=mask, **how[place])
                elif ahead:
                    measured[place] = norms[place].measure(*given, mask=mask, **how[place])
            terms.append(term)

        at = {
            place: (
                norm.per_step_inputs(params[place], state[place], x.shape[0]),
                measured.get(place),
            )
            for place, norm in norms.items()
            if norm.stepwise
        }
        kept, keys = self._noise(key if stats == "batch" else None, x)
        still: dict[str, Any] = {}

        def body(carry: PyTree, xs: Any) -> tuple[PyTree, Any]:
            x_t, terms_t, mask_t, nudge_t, key_t, at_t = xs
            measured_t: dict[str, Any] = {}

            def norm(place: str, value: jax.Array) -> jax.Array:
                if place not in at:
                    return value
                own, moments_t = at_t[place]
                there: dict[str, Any] = {"mask": mask_t, **how[place]}
                if place in measured:
                    return norms[place].transform_step(
                        params[place], state[place], own, moments_t, value, **there
                    )
                value, measured_t[place] = norms[place].normalize_step(
                    params[place], state[place], own, value, **there
                )
                return value

            zx = [
                norm(place, _scan.product(x_t, weights[place]) if term is None else term)
                for place, term in zip(self.inputs, terms_t, strict=True)
            ]
            h = hidden_of(carry)
            h = h if kept is None else h * kept
            following, gates_t = self.cell(params, norm, jnp.concatenate(zx, axis=-1), h, carry)
            following = self.zoneout(key_t, carry, following)
            if nudge_t is not None:
                following = with_hidden(following, hidden_of(following) + nudge_t)
            y = hidden_of(following)
            if mask_t is not None:
                following = jax.tree.map(lambda n, c: jnp.where(mask_t, n, c), following, carry)
                y = jnp.where(mask_t, y, 0)
            still["measured"], moving = _scan.apart(measured_t)
            return following, (y, moving, gates_t if look else {})

        step = jax.checkpoint(body, prevent_cse=False, policy=_scan.worth_keeping)
        xs = (x if late else None, terms, mask, hidden_perturbation, keys, at)
        carry, out = _scan.walk(step, carry, xs, x.shape[0], self.remat_steps)
        y, seen_inner, gates = out
        measured = {p: found if norms[p].norm.stateful else None for p, found in measured.items()}
        measured.update(_scan.together(still["measured"], seen_inner, x.shape[0]))
        state = {
            place: norm.update_state(
                state[place], measured[place], stats=stats, hyper=how[place]["hyper"]
            )
            for place, norm in norms.items()
        }
        return y, carry, state, (measured, gates)

    def _how(self, stats: Stats, axis_name: AxisName, hyper: Hyper) -> dict[str, dict[str, Any]]:
        """How each norm is called, by place: a number of `hyper` goes to the norms that take it."""
        given = hyper or {}
        return {
            place: {
                "stats": stats,
                "axis_name": axis_name,
                "hyper": {k: v for k, v in given.items() if k in norm.norm.hyper_names},
            }
            for place, norm in self.norms().items()
        }

    def zoneout(self, key: jax.Array | None, old: PyTree, new: PyTree) -> PyTree:
        """Hold each hidden unit with probability `zoneout_h`; its expectation without a key."""
        return with_hidden(new, zoneout(key, self.zoneout_h, hidden_of(old), hidden_of(new)))

    def _noise(self, key: jax.Array | None, x: jax.Array) -> tuple[jax.Array | None, Any]:
        """Return the dropout factor of the hidden state, one a sequence, and a key a step."""
        if key is None:
            return None, None
        key_drop, key_zone = jax.random.split(jax.random.fold_in(key, 1))
        kept = None
        if self.dropout_h:
            rate = 1 - self.dropout_h
            shape = (x.shape[1], self.hidden)
            kept = jax.random.bernoulli(key_drop, rate, shape).astype(x.dtype) / _as(rate, x.dtype)
        zones = self.zoneout_h or getattr(self, "zoneout_c", 0.0)
        return kept, jax.random.split(key_zone, x.shape[0]) if zones else None

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
            start = _sequences.given_carry(carry, zero)
        if self.h0_noise:
            if key is None:
                raise ValueError(
                    f"h0_noise={self.h0_noise} needs a PRNG key: write apply(..., key=key)"
                )
            # On the hidden state, and on nothing else.
            h = hidden_of(start)
            noise = _as(self.h0_noise, h.dtype) * jax.random.normal(key, h.shape, h.dtype)
            start = with_hidden(start, h + noise)
        return _sequences.vary_like(start, x)


def build_layer(kind: type[Recurrent], **fields: Any) -> Any:
    """Check what a layer is made of, lift the norms that need no lift of their own, make it."""
    _checks.positive_int("hidden", fields["hidden"])
    _initializers.check("kernel_init", fields["kernel_init"])
    _initializers.check("recurrent_init", fields["recurrent_init"])
    _checks.positive("h0_noise", fields["h0_noise"], zero=True)
    if fields["remat_steps"] is not None:
        _checks.positive_int("remat_steps", fields["remat_steps"])
    for name in ("zoneout_h", "zoneout_c", "dropout_h"):
        _checks.dropout_rate(name, fields.get(name, 0.0))
    for place in kind.places:
        fields[place] = _shared.lift(fields[place], place, stepwise=place not in kind.inputs)
    return kind(**fields)


def _cast(params: PyTree, dtype: Any) -> PyTree:
    """Cast weights to the dtype of the computation; norms cast their own, at least float32."""
    return {
        name: value if name.startswith("norm") else jax.tree.map(lambda v: _as(v, dtype), value)
        for name, value in params.items()
    }


def _as(v: Any, dtype: Any) -> jax.Array:
    return jnp.asarray(v).astype(dtype)
