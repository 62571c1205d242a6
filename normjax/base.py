"""The contracts, written once: what a norm is, what it returns, what it keeps.

A `Norm` is a value: a frozen, hashable dataclass of static hyperparameters with pure
functions. Nothing here touches data; every average is taken in `normjax.statistics`.

A method of the library answers four questions and nothing else:
**which set** the statistics run over, **where they come from**, **what they do**, and
**the affine** after it. `Norm.apply` composes the answers in that order:

    measure (this batch)  ->  transform (use them)  ->  update (keep them)

so that a new method writes `start`, `measure` and `transform`, and inherits the rest.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Inexact, Num

from normjax._internal import _checks, _hints
from normjax.statistics._types import (
    Accumulator,
    Array,
    AxisName,
    BatchMeans,
    Means,
    Moments,
    PyTree,
    Running,
    RunningCov,
    RunningMean,
    SecondMoments,
    is_accumulator,
)

__all__ = [
    "Accumulator",
    "Affine",
    "Array",
    "AxisName",
    "BatchMeans",
    "Call",
    "DirectionAndGain",
    "Hyper",
    "Means",
    "Moments",
    "Norm",
    "PyTree",
    "Reparam",
    "Running",
    "RunningCov",
    "RunningMean",
    "SecondMoments",
    "Stats",
]

Stats = Literal["batch", "running"]
Hyper = Mapping[str, Any] | None


class Affine(NamedTuple):
    """The affine after the statistics, y = scale * x + bias; `None` where a norm has none."""

    scale: Num[Array, "*features"] | None
    bias: Num[Array, "*features"] | None


@dataclasses.dataclass(frozen=True)
class Call:
    """How a norm is called: what `apply` was given beside params, state and x, checked.

    Attributes:
        stats: `"batch"` or `"running"`.
        mask: True where a value counts; boolean, of the rank of x.
        axis_name: device axis or axes that the batch is split over.
        hyper: numbers that override static ones in this call.
    """

    stats: Stats = "batch"
    mask: Array | None = None
    axis_name: AxisName = None
    hyper: Hyper = None


@dataclasses.dataclass(frozen=True, repr=False)
class Norm(abc.ABC):
    """An activation normalization: static hyperparameters and pure functions.

    Users call `init`, `apply` and `moments`, which check their arguments. Subclasses are frozen
    dataclasses that define what these compose, and may trust what they are given: `start`,
    `measure` and `transform`, and `update` if they keep statistics. A subclass checks its own
    fields in `__post_init__`, so that `dataclasses.replace` is checked too. Two norms with equal
    fields are equal, hash alike and pickle, so `jax.jit` caches on them and a config can print
    them.

    Class attributes:
        factory: name of the public function that makes it, for `repr` and messages.
        stateful: whether it keeps statistics between calls.
        hyper_names: names that `hyper=` may carry, numbers that may vary during training.
    """

    factory: ClassVar[str] = "norm"
    stateful: ClassVar[bool] = False
    hyper_names: ClassVar[tuple[str, ...]] = ()

    # What users call.

    @_hints.with_hints()
    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Make `(params, state)` for inputs of `shape`; averaged dimensions may be of any size.

        Args:
            shape: shape of `x`, for example `(1, features)`.
            dtype: dtype of the parameters; statistics are kept in at least float32.
            key: PRNG key, for norms that start at random.

        Returns:
            `(params, state)`, pytrees; `state` is `()` for a norm that keeps nothing.

        Raises:
            TypeError: `shape` is a number or an array.
        """
        _checks.shape(shape, self.factory)
        return self.start(tuple(shape), dtype, key)

    def apply(
        self,
        params: PyTree,
        state: PyTree,
        x: Inexact[Array, "*shape"],
        *,
        stats: Stats,
        mask: Bool[Array, "..."] | None = None,
        axis_name: AxisName = None,
        hyper: Hyper = None,
    ) -> tuple[Inexact[jax.Array, "*shape"], PyTree]:
        """Normalize `x` and return the next state.

        Args:
            params: what `init` returned, or others of the same structure (conditional norms).
            state: what `init` or the last `apply` returned.
            x: input, any floating or complex dtype.
            stats: `"batch"`: this batch's statistics, and the state moves; `"running"`: the
                state's, and it stays. Norms without state accept both and ignore them.
            mask: True where a value counts; rank of `x`, broadcastable to it. Masked outputs
                are finite and otherwise unspecified.
            axis_name: device axis or axes that the batch is split over. Not needed under
                `jax.jit` with sharded arrays, where statistics are global anyway.
            hyper: numbers that may vary during training, by name.

        Returns:
            `(y, state)`, with `y` of the shape and dtype of `x`. To freeze the statistics,
            ignore the returned state.

        Raises:
            TypeError: `x` is not floating or complex, `mask` is not boolean, params and state are
                exchanged or those of a Flax module.
            ValueError: unknown `stats` or `hyper`, shapes that do not fit.
        """
        x, call = _checked_call(self, params, state, x, Call(stats, mask, axis_name, hyper))
        measured = None
        if stats == "batch" or not self.stateful or is_accumulator(state):
            measured = self.measure(params, x, call)
        y = self.transform(params, state, measured, x, call)
        return y, self.update(state, measured, call)

    def moments(
        self,
        params: PyTree,
        x: Inexact[Array, "*shape"],
        *,
        mask: Bool[Array, "..."] | None = None,
        axis_name: AxisName = None,
    ) -> Any:
        """Measure one batch: the statistics of `x` that `apply` normalizes with and keeps.

        Args:
            params: what `init` returned.
            x: input, any floating or complex dtype.
            mask: True where a value counts; rank of `x`, broadcastable to it.
            axis_name: device axis or axes that the batch is split over.

        Returns:
            `Moments`, or the method's own statistics; `None` if the method measures nothing.

        Raises:
            TypeError: `x` is not floating or complex, `mask` is not boolean.
            ValueError: shapes that do not fit.
        """
        x = _checks.floating(x, self.factory)
        return self.measure(params, x, Call("batch", _checks.mask(mask, x.shape), axis_name))

    # What a method defines; x is floating and the mask fits it.

    @abc.abstractmethod
    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[PyTree, PyTree]:
        """Make `(params, state)`; arguments as for `init`."""

    @abc.abstractmethod
    def measure(self, params: PyTree, x: jax.Array, call: Call) -> Any:
        """Measure this batch: what `transform` uses and `update` keeps; `None` is nothing."""

    @abc.abstractmethod
    def transform(
        self, params: PyTree, state: PyTree, measured: Any, x: jax.Array, call: Call
    ) -> jax.Array:
        """Normalize `x` with the statistics that `call.stats` names and apply the affine.

        Args:
            params: what `start` returned.
            state: what `start` or `update` returned.
            measured: what `measure` returned; `None` where the batch was not measured.
            x: input.
            call: mode, mask, device axis and hyper of this call.

        Returns:
            Output of the shape and dtype of `x`.
        """

    def update(self, state: PyTree, measured: Any, call: Call) -> PyTree:
        """Return the next state; a norm that keeps nothing returns `state`.

        Args:
            state: the present state.
            measured: what `measure` returned.
            call: mode and hyper of this call; statistics move in mode `"batch"` only.

        Returns:
            The next state, of the structure of `state`.
        """
        del measured, call
        return state

    def __repr__(self) -> str:
        """Show the call that makes it: `batch_norm(scale_init=0.1)`."""
        changed = (
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if f.default is dataclasses.MISSING or getattr(self, f.name) != f.default
        )
        return f"{self.factory}({', '.join(changed)})"


class DirectionAndGain(NamedTuple):
    """What a `Reparam` of this library stores in the place of a weight, w = g * f(v).

    Attributes:
        v: the weight that f normalizes, of the shape and dtype of w. Its size has no say in w,
            so weight decay on it only changes the step size.
        g: gain, at least float32, or its logarithm; `None` where there is none.
    """

    v: PyTree
    g: PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Reparam(abc.ABC):
    """A weight written in other parameters, `w = apply(params)`: a value, like `Norm`.

    `apply` never writes into what is stored, so an optimizer step moves the stored parameters
    and the next `apply` sees them. Weights are in Flax's layout, output features last.

    Class attributes:
        factory: name of the public function that makes it, for `repr` and messages.
        stateful: whether it keeps something between calls.
    """

    factory: ClassVar[str] = "reparam"
    stateful: ClassVar[bool] = False

    @abc.abstractmethod
    def init(
        self, w: Inexact[Array, "*shape"], *, key: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Write a weight in the other parameters; `apply` gives it back where that is promised.

        Args:
            w: the weight at the start.
            key: PRNG key, for methods that start at random; none of this library's does.

        Returns:
            `(params, state)`; `state` is `()` for a method that keeps nothing.
        """

    @abc.abstractmethod
    def apply(
        self, params: PyTree, state: PyTree, *, stats: Stats
    ) -> tuple[Inexact[jax.Array, "*shape"], PyTree]:
        """Make the weight.

        Args:
            params: what `init` returned, after any number of optimizer steps.
            state: what `init` or the last `apply` returned.
            stats: `"batch"`: the state moves; `"running"`: it stays. Methods without state
                accept both and ignore them.

        Returns:
            `(w, state)`, with `w` of the shape and dtype of the weight that `init` was given.
        """

    __repr__ = Norm.__repr__


def _checked_call(
    norm: Norm, params: PyTree, state: PyTree, x: Any, call: Call
) -> tuple[jax.Array, Call]:
    """Check what `Norm.apply` was given; a call that is right costs no further function."""
    if call.stats not in _checks.STATS:
        _checks.stats(call.stats)
    if call.hyper:
        _checks.hyper(call.hyper, norm.hyper_names, norm.factory)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        _checks.floating(x, norm.factory)
    if call.mask is not None:
        call = dataclasses.replace(call, mask=_checks.mask(call.mask, x.shape))
    if isinstance(params, Mapping):
        _hints.refuse_flax_variables(params, norm.factory)
    exchanged = isinstance(params, Running | RunningMean | RunningCov | Accumulator)
    if exchanged or (not norm.stateful and jax.tree.leaves(state)):
        raise TypeError(
            f"{norm.factory} was given {type(params).__name__} for its params and "
            f"{type(state).__name__} for its state: apply takes (params, state, x), in this order"
        )
    return x, call
