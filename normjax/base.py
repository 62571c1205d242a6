"""The contracts, written once: what a norm is, what it returns, what it keeps.

A `Norm` is a value: a frozen, hashable dataclass of static hyperparameters with pure
functions. Nothing here touches data; every average is taken in `normjax.statistics`.

A method of the library answers four questions and nothing else:
**which set** the statistics run over, **where they come from**, **what they do**, and
**the affine** after it. `Norm.apply` composes the answers in that order:

    moments (measure this batch)  ->  transform (use them)  ->  update (keep them)

so that a new method writes `init`, `moments` and `transform`, and inherits the rest.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
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


@dataclasses.dataclass(frozen=True, repr=False)
class Norm(abc.ABC):
    """An activation normalization: static hyperparameters and pure functions.

    Subclasses are frozen dataclasses; they define `init`, `moments` and `transform`, and
    `update` if they keep statistics. Two norms with equal fields are equal, hash alike and
    pickle, so `jax.jit` caches on them and a config can print them.

    Class attributes:
        factory: name of the public function that makes it, for `repr` and messages.
        stateful: whether it keeps statistics between calls.
        hyper_names: names that `hyper=` may carry, numbers that may vary during training.
    """

    factory: ClassVar[str] = "norm"
    stateful: ClassVar[bool] = False
    hyper_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Let `init` of every norm, a user's too, say what to write for what is no shape."""
        super().__init_subclass__(**keywords)
        if "init" in vars(cls):
            cls.init = _hints.with_hints()(_of_a_shape(cls.init))  # type: ignore[method-assign]

    @abc.abstractmethod
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
        """

    @abc.abstractmethod
    def moments(
        self,
        params: PyTree,
        x: Inexact[Array, "*shape"],
        *,
        mask: Bool[Array, "..."] | None = None,
        axis_name: AxisName = None,
    ) -> Any:
        """Measure this batch: the statistics of `x` that `transform` uses and `update` keeps.

        Args:
            params: what `init` returned.
            x: input, any floating or complex dtype.
            mask: True where a value counts; rank of `x`, broadcastable to it.
            axis_name: device axis or axes that the batch is split over.

        Returns:
            `Moments`, or the method's own statistics; `None` if the method measures nothing.
        """

    @abc.abstractmethod
    def transform(
        self,
        params: PyTree,
        state: PyTree,
        measured: Any,
        x: Inexact[Array, "*shape"],
        *,
        stats: Stats,
        mask: Bool[Array, "..."] | None = None,
        hyper: Hyper = None,
    ) -> Inexact[jax.Array, "*shape"]:
        """Normalize `x` with the statistics that `stats` names and apply the affine.

        Args:
            params: what `init` returned.
            state: what `init` or `update` returned.
            measured: what `moments` returned; `None` where the batch was not measured.
            x: input.
            stats: `"batch"` or `"running"`.
            mask: as in `moments`.
            hyper: numbers that override static ones in this call.

        Returns:
            Output of the shape and dtype of `x`.
        """

    def update(self, state: PyTree, measured: Any, *, stats: Stats, hyper: Hyper = None) -> PyTree:
        """Return the next state after `measured`; a norm that keeps nothing returns `state`.

        Args:
            state: the present state.
            measured: what `moments` returned.
            stats: mode of the call; statistics move in mode `"batch"` only.
            hyper: numbers that override static ones in this call.

        Returns:
            The next state, of the structure of `state`.
        """
        del measured, stats, hyper
        return state

    @_hints.with_hints()
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
                `jax.jit` with sharded arrays, where statistics are global by themselves.
            hyper: numbers that may vary during training, by name.

        Returns:
            `(y, state)`, with `y` of the shape and dtype of `x`. To freeze the statistics,
            ignore the returned state.

        Raises:
            TypeError: `x` is not floating or complex, `mask` is not boolean, params and state are
                exchanged or those of a Flax module.
            ValueError: unknown `stats` or `hyper`, shapes that do not fit.
        """
        _checks.stats(stats)
        _checks.hyper(hyper, self.hyper_names, self.factory)
        x = _checks.floating(x, self.factory)
        mask = _checks.mask(mask, x.shape)
        _hints.refuse_flax_variables(params, self.factory)
        kept = isinstance(params, Running | RunningMean | RunningCov | Accumulator)
        if kept or (not self.stateful and jax.tree.leaves(state)):
            raise TypeError(
                f"{self.factory} was given {type(params).__name__} for its params and "
                f"{type(state).__name__} for its state: apply takes (params, state, x), in this "
                "order"
            )
        measured = None
        if stats == "batch" or not self.stateful or is_accumulator(state):
            measured = self.moments(params, x, mask=mask, axis_name=axis_name)
        y = self.transform(params, state, measured, x, stats=stats, mask=mask, hyper=hyper)
        return y, self.update(state, measured, stats=stats, hyper=hyper)

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


def _of_a_shape(init: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(init)
    def checked(self: Any, *args: Any, **keywords: Any) -> Any:
        _checks.shape(args[0] if args else keywords.get("shape", ()), self.factory)
        return init(self, *args, **keywords)

    return checked
