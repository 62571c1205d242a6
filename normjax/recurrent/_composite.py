"""What stacks and bidirectional pairs share: one call over several layers."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from normjax._internal import _checks
from normjax.base import Hyper, Stats
from normjax.recurrent import _segments
from normjax.recurrent._base import Layer
from normjax.recurrent._checks import check_made, draws_noise
from normjax.recurrent._newton import Solver
from normjax.statistics._types import Array, AxisName, PyTree


@dataclasses.dataclass(frozen=True)
class CompositeCall:
    """How several layers run over one sequence: what `apply` was given, checked.

    Attributes:
        stats: `"batch"` or `"running"`.
        lengths: `[batch]`, number of steps of each sequence.
        resets: where carries start again, in the layout of x.
        mask: which steps count, in the layout of x.
        carries: by part, the start of its carry or `None`.
        key: PRNG key of all noise.
        noise: whether zoneout and dropout draw.
        axis_name: device axis or axes that the batch is split over.
        hyper: numbers that may vary during training.
        perturbations: by part, what is added to its hidden states or `None`.
        solver: what solves the recurrences.
        with_info: whether each part is looked into.
    """

    stats: Stats
    lengths: Array | None
    resets: Array | None
    mask: Array | None
    carries: Mapping[str, PyTree]
    key: jax.Array | None
    noise: bool
    axis_name: AxisName
    hyper: Hyper
    perturbations: Mapping[str, Any]
    solver: Solver = "scan"
    with_info: bool = False


class PartRun(NamedTuple):
    """What one part makes of its sequence: outputs, and last carry and state, or its info."""

    y: jax.Array
    carry: PyTree = None
    state: PyTree = None
    info: Any = None


class CompositeRun(NamedTuple):
    """What all parts make of a sequence.

    Attributes:
        y: outputs of the whole.
        parts: by name, what each layer made.
        between: by name, the next states of norms between layers.
    """

    y: jax.Array
    parts: dict[str, PartRun]
    between: dict[str, PyTree]


@dataclasses.dataclass(frozen=True, repr=False)
class Composite(Layer):
    """Several layers as one; params and state have an entry for each.

    Class attributes:
        part_names: what messages call the parts.
    """

    part_names: ClassVar[str] = "layers"

    @property
    @abc.abstractmethod
    def parts(self) -> dict[str, Layer]:
        """The layers, by the names of their params."""

    @property
    def hyper_names(self) -> frozenset[str]:
        """Names that `hyper` may carry, those of all norms."""
        return frozenset().union(*(layer.hyper_names for layer in self.parts.values()))

    @property
    def stateful(self) -> bool:
        """Whether any norm keeps statistics."""
        return any(layer.stateful for layer in self.parts.values())

    @property
    def needs_key(self) -> bool:
        """Whether `apply` needs a PRNG key in every mode."""
        return any(layer.needs_key for layer in self.parts.values())

    @property
    def has_dropout(self) -> bool:
        """Whether there is zoneout or dropout: they draw in mode `"batch"`, and need a key."""
        return any(layer.has_dropout for layer in self.parts.values())

    @property
    def time_major(self) -> bool:
        """Whether sequences are `[time, batch, features]`."""
        return next(iter(self.parts.values())).time_major

    def apply(
        self,
        params: PyTree,
        state: PyTree,
        x: Array,
        *,
        stats: Stats,
        lengths: Array | None = None,
        resets: Bool[Array, "_ _"] | None = None,
        mask: Bool[Array, "_ _"] | None = None,
        carry: Sequence[PyTree] | None = None,
        key: jax.Array | None = None,
        noise: bool | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
        hidden_perturbation: Sequence[Any] | None = None,
        solver: Solver = "scan",
    ) -> tuple[tuple[jax.Array, tuple[PyTree, ...]], PyTree]:
        """Run all layers; arguments as for one layer, `carry` and `hidden_perturbation` one each.

        Returns:
            `((y, carry), state)`, `carry` a tuple of one each.

        Raises:
            ValueError: as a single layer; carries for another number of layers.
        """
        call = CompositeCall(
            stats=stats,
            lengths=lengths,
            resets=resets,
            mask=mask,
            carries=self._one_each("carry", carry),
            key=key,
            noise=draws_noise(self, stats, noise, key),
            axis_name=axis_name,
            hyper=hyper,
            perturbations=self._one_each("hidden_perturbation", hidden_perturbation),
            solver=solver,
        )
        self._check(params, state, call)
        if jax.config.jax_debug_nans and jnp.ndim(x) == 3:  # type: ignore[attr-defined]
            _segments.refuse_nan(x, (lengths, mask), self.time_major)
        run = self.run(params, state, jnp.asarray(x), call)
        carries = tuple(part.carry for part in run.parts.values())
        states = {name: part.state for name, part in run.parts.items()}
        return (run.y, carries), states | run.between

    def apply_with_info(
        self,
        params: PyTree,
        state: PyTree,
        x: Array,
        *,
        stats: Stats,
        lengths: Array | None = None,
        resets: Bool[Array, "_ _"] | None = None,
        mask: Bool[Array, "_ _"] | None = None,
        carry: Sequence[PyTree] | None = None,
        key: jax.Array | None = None,
        noise: bool | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Run as `apply` and return the outputs and what was measured, by the names of `params`."""
        call = CompositeCall(
            stats=stats,
            lengths=lengths,
            resets=resets,
            mask=mask,
            carries=self._one_each("carry", carry),
            key=key,
            noise=draws_noise(self, stats, noise, key),
            axis_name=axis_name,
            hyper=hyper,
            perturbations=self._one_each("hidden_perturbation", None),
            with_info=True,
        )
        self._check(params, state, call)
        run = self.run(params, self.accumulating(state), jnp.asarray(x), call)
        infos = {name: part.info for name, part in run.parts.items()}
        return run.y, infos | self.info_between(run.between)

    @abc.abstractmethod
    def run(self, params: PyTree, state: PyTree, x: jax.Array, call: CompositeCall) -> CompositeRun:
        """Run all parts over x, in the layout of the layers."""

    def entries(self) -> list[str]:
        """Names of the entries of params and state."""
        return list(self.parts)

    def accumulating(self, state: PyTree) -> PyTree:
        """Return the state of a run whose norms between layers report what they measure."""
        return state

    def info_between(self, between: Mapping[str, PyTree]) -> dict[str, Any]:
        """What the norms between layers measured, from their states after such a run."""
        del between
        return {}

    def run_part(
        self,
        name: str,
        params: PyTree,
        state: PyTree,
        x: jax.Array,
        key: jax.Array | None,
        call: CompositeCall,
    ) -> PartRun:
        """Run one layer on its own entries of params, state and call."""
        layer = self.parts[name]
        # A layer of a user's own may take none of these.
        solver = None if call.solver == "scan" else call.solver
        options = {"resets": call.resets, "mask": call.mask, "solver": solver}
        keywords: dict[str, Any] = {
            "stats": call.stats,
            "lengths": call.lengths,
            **{name: given for name, given in options.items() if given is not None},
            "carry": call.carries[name],
            "key": key,
            "noise": call.noise,
            "axis_name": call.axis_name,
            "hyper": known_hyper(call.hyper, layer.hyper_names),
        }
        if call.with_info:
            y, info = layer.apply_with_info(params[name], state[name], x, **keywords)
            return PartRun(y, info=info)
        if call.perturbations[name] is not None:
            keywords["hidden_perturbation"] = call.perturbations[name]
        (y, carry), next_state = layer.apply(params[name], state[name], x, **keywords)
        return PartRun(y, carry, next_state)

    def _check(self, params: PyTree, state: PyTree, call: CompositeCall) -> None:
        _checks.hyper(call.hyper, sorted(self.hyper_names), self.factory)
        check_made(self.factory, params, state, self.entries())

    def _one_each(self, name: str, values: Sequence[Any] | None) -> dict[str, Any]:
        """Give each part its own of `values`."""
        parts = list(self.parts)
        values = (None,) * len(parts) if values is None else tuple(values)
        if len(values) != len(parts):
            raise ValueError(
                f"{name} has {len(values)} entries for {len(parts)} {self.part_names}: give one "
                "each"
            )
        return dict(zip(parts, values, strict=True))


def known_hyper(hyper: Hyper, names: Collection[str]) -> dict[str, Any]:
    """Return the part of `hyper` that has one of `names`."""
    return {name: value for name, value in (hyper or {}).items() if name in names}
