"""`Recurrent`: a cell's equations, lifted norms by place, one scan.

A cell says which places its norms have and how one step follows from the last. All else is
here and the same for every cell: the input projection and its statistics, the scan (`_scan`),
padding, noise, the carry, and the update of the state after the scan.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Inexact, Integer

from normjax._internal import _checks, _hints
from normjax.base import Hyper, Norm, Stats
from normjax.recurrent import _initializers, _newton, _packed, _scan, _segments, _sequences, _shared
from normjax.recurrent._base import SATURATED, Gates, Info, Layer, NormAt
from normjax.recurrent._carry import hidden_of, with_hidden, with_noise, zoneout
from normjax.recurrent._checks import check_call, draws_noise
from normjax.recurrent._initializers import Initializer
from normjax.recurrent._input_terms import InputSchedule, input_terms
from normjax.recurrent._newton import Solver
from normjax.recurrent._scan import LayerCall, Run
from normjax.recurrent._seq_norm import SeqNorm
from normjax.state import _names
from normjax.state._population import start_accumulators
from normjax.statistics import _core
from normjax.statistics._types import Array, AxisName, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Recurrent(Layer):
    """A recurrent layer: static structure and the pure functions `init` and `apply`.

    `params` is a dictionary (`w_x`, `w_h`, `bias`, one entry for each norm, `carry` if
    learned), `state` one of the norms' states by place.

    Class attributes:
        gates: number of blocks of `hidden` columns in the weights.
        places: where there may be norms, and how many blocks wide each is.
        inputs: the places on the input term, and which of its blocks each normalizes.
    """

    factory: ClassVar[str] = "recurrent"
    gates: ClassVar[int] = 1
    places: ClassVar[dict[str, int]] = {}
    inputs: ClassVar[dict[str, tuple[int, int]]] = {}

    hidden: int
    norm_x: Norm | SeqNorm | None = None
    norm_h: Norm | SeqNorm | None = None
    kernel_init: Initializer = "lecun_normal"
    recurrent_init: Initializer = "orthogonal"
    learn_carry: bool = False
    h0_noise: float = 0.0
    zoneout_h: float = 0.0
    dropout_h: float = 0.0
    remat_steps: int | None = None
    time_major: bool = False
    input_schedule: InputSchedule | None = None

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges, lift norms that need no other lift."""
        _checks.positive_int("hidden", self.hidden)
        _initializers.check("kernel_init", self.kernel_init)
        _initializers.check("recurrent_init", self.recurrent_init)
        _checks.positive("h0_noise", self.h0_noise, zero=True)
        if self.remat_steps is not None:
            _checks.positive_int("remat_steps", self.remat_steps)
        if self.input_schedule is not None:
            _checks.one_of("input_schedule", self.input_schedule, get_args(InputSchedule))
        _checks.dropout_rate("zoneout_h", self.zoneout_h)
        _checks.dropout_rate("dropout_h", self.dropout_h)
        for place in self.places:
            norm = _shared.lift(getattr(self, place), place, stepwise=place not in self.inputs)
            _checks.set_field(self, place, norm)

    # What a cell defines.

    @property
    def input_places(self) -> dict[str, tuple[int, int]]:
        """The places of this layer's input term, whose blocks together are all of it."""
        return self.inputs

    @abc.abstractmethod
    def cell(
        self, params: PyTree, norm: NormAt, zx: jax.Array, h: jax.Array, carry: PyTree
    ) -> tuple[PyTree, Gates]:
        """One step: from the input term and the carry to the next carry, and the gates' values.

        Args:
            params: the weights, in the dtype of the computation.
            norm: `norm(place, value)` normalizes a value where there is a norm, and is the
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

    def run_at_once(
        self, params: PyTree, state: PyTree, x: jax.Array, carry: PyTree, call: LayerCall
    ) -> Run | None:
        """Run over x `[time, batch, features]` by a kernel or a library, or return `None`."""
        del params, state, x, carry, call
        return None

    def zoneout(self, key: jax.Array | None, old: PyTree, new: PyTree) -> PyTree:
        """Hold each hidden unit with probability `zoneout_h`; its expectation without a key."""
        return with_hidden(new, zoneout(key, self.zoneout_h, hidden_of(old), hidden_of(new)))

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

    def apply(
        self,
        params: PyTree,
        state: PyTree,
        x: Inexact[Array, "*batch_time features"],
        *,
        stats: Stats,
        lengths: Integer[Array, " batch"] | None = None,
        resets: Bool[Array, "*batch_time"] | None = None,
        mask: Bool[Array, "*batch_time"] | None = None,
        carry: PyTree | None = None,
        key: jax.Array | None = None,
        noise: bool | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
        hidden_perturbation: Inexact[Array, "*batch_time hidden"] | None = None,
        solver: Solver = "scan",
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
                enter no statistic, keep the carry and output 0. `None`: all steps count.
            resets: `[batch, time]` in the layout of x, True where the carry starts again before
                the step, from zeros or what was learned: a row is then several segments.
            mask: `[batch, time]`, True on the steps that count. The others are skipped as if
                they were not there, like padding; a reset at one still takes effect.
            carry: start of the carry, an `LSTMCarry(c=…, h=…)` of an LSTM and else an array
                `[batch, hidden]`; `None`: zeros, or what was learned.
            key: PRNG key. `h0_noise` needs it in both modes, zoneout and dropout where they draw.
            noise: whether zoneout and dropout draw; else they use their expectation. `None`:
                in mode `"batch"`. `True` with `stats="running"` trains on frozen statistics.
            axis_name: device axis or axes that the batch is split over.
            hyper: numbers that may vary during training, given to every norm that takes them.
            hidden_perturbation: added to the hidden state of every step, in the layout of the
                outputs. At 0 the gradient of a loss with respect to it is dLoss/dh_t.
            solver: `"scan"`, one step after the other; with `stats="running"` also `"newton"` or
                `newton(…)`, all steps at once.

        Returns:
            `((y, carry), state)`: outputs of every step `[batch, time, hidden]`, the carry
            after each sequence's last step, and the next state.

        Raises:
            TypeError: `x` is not floating, `lengths` not integer, `resets` or `mask` not boolean,
                an LSTM's carry a plain tuple, `params` the variables of a Flax module.
            ValueError: shapes that do not fit, a missing `key`, an unknown `stats` or `solver`.
            RuntimeError: `solver="newton"` does not converge, outside of `jit`.
        """
        solves = _newton.check(solver, stats, x)
        call = LayerCall(
            stats, None, axis_name, hyper, hidden_perturbation, key, noise, solver=solves
        )
        params, x, carry, call = self._checked(
            params, state, x, (lengths, mask, resets), carry, call
        )
        run = self._run(params, state, x, carry, call)
        return (run.y if self.time_major else jnp.swapaxes(run.y, 0, 1), run.carry), run.state

    def apply_with_info(
        self,
        params: PyTree,
        state: PyTree,
        x: Inexact[Array, "*batch_time features"],
        *,
        stats: Stats,
        lengths: Integer[Array, " batch"] | None = None,
        resets: Bool[Array, "*batch_time"] | None = None,
        mask: Bool[Array, "*batch_time"] | None = None,
        carry: PyTree | None = None,
        key: jax.Array | None = None,
        noise: bool | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
    ) -> tuple[jax.Array, Info]:
        """Run as `apply` and return the outputs and `Info`."""
        call = LayerCall(stats, None, axis_name, hyper, None, key, noise, with_info=True)
        params, x, carry, call = self._checked(
            params, state, x, (lengths, mask, resets), carry, call
        )
        run = self._run(params, start_accumulators(state), x, carry, call)
        y = run.y
        counts = jnp.ones((*y.shape[:2], 1), bool) if call.mask is None else call.mask

        def mean(values: jax.Array) -> jax.Array:
            """Mean of each step, `[time]`, over what is not padding."""
            mask = jnp.broadcast_to(counts, values.shape)
            return jnp.asarray(_core.means(values, (1, 2), mask, axis_name).mean)

        ends = {name: (g < SATURATED) | (g > 1 - SATURATED) for name, g in run.gates.items()}
        info = Info(
            moments={place: m for place, m in run.measured.items() if m is not None},
            gates={name: mean(g) for name, g in run.gates.items()},
            saturated={name: mean(e.astype(jnp.float32)) for name, e in ends.items()},
            hidden_norm=mean(jnp.linalg.norm(y, axis=-1, keepdims=True)),
        )
        return (y if self.time_major else jnp.swapaxes(y, 0, 1)), info

    def output(self, carry: PyTree) -> jax.Array:
        """Return the hidden state of a carry, `[batch, hidden]`."""
        return jnp.asarray(hidden_of(carry))

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
        """Whether there is zoneout or dropout: they draw in mode `"batch"`, and need a key."""
        return bool(self.zoneout_h or getattr(self, "zoneout_c", 0.0) or self.dropout_h)

    def norms(self) -> dict[str, SeqNorm]:
        """Return the lifted norm of each place that has one."""
        norms = [(place, getattr(self, place)) for place in self.places]
        return {place: norm for place, norm in norms if isinstance(norm, SeqNorm)}

    # One call, in steps.

    def _checked(
        self,
        params: PyTree,
        state: PyTree,
        x: Array,
        steps: tuple[Array | None, Any, Any],
        carry: PyTree | None,
        call: LayerCall,
    ) -> tuple[PyTree, jax.Array, PyTree, LayerCall]:
        """Check a call; return params, x, the first carry and the call as `_run` takes them.

        Sequences are then time-major, and weights in the dtype of the computation. `steps` are
        lengths, mask and resets.
        """
        if call.stats not in _checks.STATS:
            _checks.stats(call.stats)
        if call.hyper:
            _checks.hyper(call.hyper, sorted(self.hyper_names), self.factory)
        if jax.config.jax_debug_nans and jnp.ndim(x) == 3:  # type: ignore[attr-defined]
            _segments.refuse_nan(x, steps[:2], self.time_major)
        x = _checks.floating(x, self.factory)
        check_call(self, params, state, x)
        perturbation = call.hidden_perturbation
        if perturbation is not None:
            perturbation = jnp.asarray(perturbation).astype(x.dtype)
        if not self.time_major:
            x = jnp.swapaxes(x, 0, 1)
            perturbation = None if perturbation is None else jnp.swapaxes(perturbation, 0, 1)
        noise = draws_noise(self, call.stats, call.noise, call.key)
        mask = resets = None
        if any(given is not None for given in steps):
            mask, resets = _segments.steps_that_count(*steps, x, self.time_major)
        if mask is not None:
            # Whatever fills the padding, NaN too, must not meet a weight: 0 * NaN is its gradient.
            x = jnp.where(mask, x, 0)
        params = _cast(params, x.dtype)
        carry = self._first_carry(params, x, carry, call.key)
        call = dataclasses.replace(
            call,
            mask=mask,
            resets=resets,
            hidden_perturbation=perturbation,
            noise=noise,
            lengths=steps[0] if steps[1] is None else None,
        )
        return params, x, carry, call

    def _run(
        self, params: PyTree, state: PyTree, x: jax.Array, carry: PyTree, call: LayerCall
    ) -> Run:
        """Run over x `[time, batch, features]`: input terms, scan, update of the state."""
        norms = self.norms()
        params, state = self._norms_from_names(params, state)
        calls = call.of_norms(norms)
        run = self.run_at_once(params, state, x, carry, call)
        if run is not None:
            return run

        # Before the loop.
        steps = x.shape[0]
        by_segments = (call.mask is not None or call.resets is not None) and (
            _packed.goes_by_segments(norms.values())
        )
        inputs = input_terms(self, params, state, x, norms, calls, in_loop=by_segments)
        dropout, keys = self._noise(call.key if call.noise else None, x)
        fresh = reset_key = None
        if call.resets is not None:
            fresh = _sequences.vary_like(self._fresh_carry(params, x), x)
            if self.h0_noise and call.key is not None:
                reset_key = jax.random.fold_in(call.key, 2)

        # The loop. Input terms are normalized there even if they were measured before: a step is
        # in cache, and the normalized sequence need not be kept beside the plain one.
        in_loop = {place: norm for place, norm in norms.items() if norm.stepwise}
        step = _scan.Step(
            layer=self,
            params=params,
            state=state,
            norms=in_loop,
            calls=calls,
            weights=inputs.weights,
            dropout=dropout,
            with_info=call.with_info,
            fresh=fresh,
            solver=call.solver,
        )
        xs = _scan.StepInputs(
            x=x if any(term is None for term in inputs.terms.values()) else None,
            terms=inputs.terms,
            mask=call.mask,
            hidden_perturbation=call.hidden_perturbation,
            key=keys,
            norms={
                place: norm.per_step_inputs(
                    params[place],
                    norm.state_for_inference(state[place])
                    if call.stats == "running"
                    else state[place],
                    steps,
                )
                for place, norm in in_loop.items()
            },
            measured={place: m for place, m in inputs.measured.items() if place in in_loop},
            reset=call.resets,
            reset_key=None if reset_key is None else jax.random.split(reset_key, steps),
        )
        if by_segments:
            carry, outputs = _packed.over_segments(step, carry, xs, self.remat_steps, reset_key)
        else:
            carry, outputs = step.over(carry, xs, steps, self.remat_steps)

        # After the loop: statistics of all steps, [time, features], move the state.
        measured = {
            place: m if norms[place].norm.stateful else None
            for place, m in (inputs.measured | outputs.measured).items()
        }
        state = {
            place: norm.update_state(state[place], measured[place], calls[place])
            for place, norm in norms.items()
        }
        return Run(outputs.y, carry, state, measured, outputs.gates)

    def _norms_from_names(self, params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        """Return params and state with norms in their own types, where they are mappings."""
        params, state = dict(params), dict(state)
        for place, norm in self.norms().items():
            if not (isinstance(params[place], Mapping) or isinstance(state[place], Mapping)):
                continue
            shape = (1, self.places[place] * self.hidden)
            templates = jax.eval_shape(lambda n=norm, s=shape: n.init(s, key=jax.random.key(0)))
            for tree, template in zip((params, state), templates, strict=True):
                if isinstance(tree[place], Mapping):
                    tree[place] = _names.from_dict(template, tree[place])
        return params, state

    def _noise(self, key: jax.Array | None, x: jax.Array) -> tuple[jax.Array | None, Any]:
        """Return the dropout factor `[batch, hidden]`, one a sequence, and a zoneout key a step."""
        if key is None:
            return None, None
        key_drop, key_zone = jax.random.split(jax.random.fold_in(key, 1))
        factor = None
        if self.dropout_h:
            rate = 1 - self.dropout_h
            stays = jax.random.bernoulli(key_drop, rate, (x.shape[1], self.hidden))
            factor = stays.astype(x.dtype) / _as(rate, x.dtype)
        zones = self.zoneout_h or getattr(self, "zoneout_c", 0.0)
        return factor, jax.random.split(key_zone, x.shape[0]) if zones else None

    def _first_carry(
        self, params: PyTree, x: jax.Array, carry: PyTree | None, key: jax.Array | None
    ) -> PyTree:
        if carry is None:
            start = self._fresh_carry(params, x)
        else:
            start = _sequences.checked_carry(carry, self.start_carry(x.shape[1], x.dtype))
        if self.h0_noise:
            if key is None:
                raise ValueError(
                    f"h0_noise={self.h0_noise} needs a PRNG key: write apply(..., key=key)"
                )
            start = with_noise(start, self.h0_noise, key)
        return _sequences.vary_like(start, x)

    def _fresh_carry(self, params: PyTree, x: jax.Array) -> PyTree:
        """Return zeros, or the carry that was learned, `[batch, hidden]`."""
        start = self.start_carry(x.shape[1], x.dtype)
        if not self.learn_carry:
            return start
        learned = params["carry"]
        if isinstance(learned, Mapping):
            learned = _names.from_dict(start, learned)
        return jax.tree.map(lambda c, z: jnp.broadcast_to(c, z.shape), learned, start)


def _cast(params: PyTree, dtype: Any) -> PyTree:
    """Cast weights to the dtype of the computation; norms cast their own, at least float32."""
    norms = {name: value for name, value in params.items() if name.startswith("norm")}
    weights = {name: value for name, value in params.items() if name not in norms}
    return norms | jax.tree.map(lambda v: jnp.asarray(v).astype(dtype), weights)


def _as(v: Any, dtype: Any) -> jax.Array:
    return jnp.asarray(v).astype(dtype)
