"""Defines the base classes `Norm` and `Reparam` and the types that they take and return.

A `Norm` is a value: a frozen, hashable dataclass of static hyperparameters with pure
functions. Nothing here computes on data; all averages are taken in `normjax.statistics`.

A norm defines **which set** of values its statistics are taken over, **where they come from**
(this batch or the running averages), **how they are used**, and **the affine** that follows.
`Norm.apply` runs three steps:

    measure (this batch)  ->  transform (normalize)  ->  update (the running statistics)

A new norm defines `start`, `measure` and `transform`, and inherits the rest.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Inexact, Integer, Num

from normjax._internal import _checks, _hints, _single
from normjax._internal._exportable import exportable
from normjax.state import _names
from normjax.statistics import _segments
from normjax.statistics._segments import Segments
from normjax.statistics._shapes import widen_half
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


@exportable
class Affine(NamedTuple):
    """Scale and bias of a norm, y = scale * x + bias; `None` if the norm has none.

    Attributes:
        scale: gain, of the shape of the features.
        bias: bias, of the shape of the features.
    """

    scale: Num[Array, "*features"] | None
    bias: Num[Array, "*features"] | None


@dataclasses.dataclass(frozen=True)
class Call:
    """The checked arguments of `apply` other than params, state and x.

    Attributes:
        stats: `"batch"` or `"running"`.
        mask: True where a value counts; boolean, of the rank of x.
        axis_name: device axis or axes that the batch is split over.
        hyper: numbers that replace hyperparameters of the norm in this call, by name.
        dtype: half-precision dtype of the x that the caller gave, where x was widened to float32;
            else `None`.
        segments: which segment each position belongs to, for norms that are `segmented`.
        at_once: number of steps that are measured at once, under `vmap`.
    """

    stats: Stats = "batch"
    mask: Array | None = None
    axis_name: AxisName = None
    hyper: Hyper = None
    dtype: Any = dataclasses.field(default=None, kw_only=True)
    segments: Segments | None = dataclasses.field(default=None, kw_only=True)
    at_once: int = dataclasses.field(default=1, kw_only=True)


@dataclasses.dataclass(frozen=True, repr=False)
class Norm(abc.ABC):
    """An activation normalization: static hyperparameters and pure functions.

    Users call `init`, `apply` and `moments`, which check their arguments. Subclasses are frozen
    dataclasses that define `start`, `measure` and `transform`, and `update` if they have running
    statistics; these methods receive checked arguments. A subclass checks its own fields in
    `__post_init__`, so that `dataclasses.replace` is checked too. Two norms with equal fields are
    equal and have equal hashes, and norms can be pickled and printed, so `jax.jit` can cache on
    them and a config can store them.

    Class attributes:
        factory: name of the public function that makes the norm, for `repr` and messages.
        stateful: whether the norm has running statistics.
        hyper_names: names that `hyper=` accepts: numbers that may vary during training.
        segmented: whether `apply` takes `segment_ids`.
    """

    factory: ClassVar[str] = "norm"
    stateful: ClassVar[bool] = False
    hyper_names: ClassVar[tuple[str, ...]] = ()
    segmented: ClassVar[bool] = False

    # The methods that users call.

    @_hints.with_hints()
    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Make `(params, state)` for inputs of `shape`; averaged dimensions may be of any size.

        Args:
            shape: shape of `x`, for example `(1, features)`.
            dtype: dtype of the parameters; statistics are kept in at least float32.
            key: PRNG key, for norms with random initial values.

        Returns:
            `(params, state)`, pytrees; `state` is `()` for a norm without running statistics.

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
        segment_ids: Integer[Array, "..."] | None = None,
        num_segments: int | None = None,
    ) -> tuple[Inexact[jax.Array, "*shape"], PyTree]:
        """Normalize `x` and return the next state.

        Args:
            params: what `init` returned, or others of the same structure (conditional norms). A
                mapping of the same names, such as a checkpoint that was restored without a
                target, is read by its names.
            state: what `init` or the last `apply` returned, or a mapping of the same names.
            x: input, any floating or complex dtype.
            stats: `"batch"` normalizes with this batch's statistics and updates the state;
                `"running"` normalizes with the state's and leaves it unchanged. Norms without
                state accept both and ignore them.
            mask: True where a value counts; rank of `x`, broadcastable to it. Masked outputs
                are finite and otherwise unspecified.
            axis_name: device axis or axes that the batch is split over. Not needed under
                `jax.jit` with sharded arrays, where statistics are global anyway.
            hyper: numbers that may vary during training, by name, such as `{"decay": 0.9}`.
            segment_ids: for `instance_norm`, `group_norm`, `layer_norm` and `rms_norm`: divides the
                positions that a statistic is taken over into segments, each with its own: graphs
                of one batch, or sequences packed into one row. Integers of the shape of `x` without
                its last axis; positions with an id outside of 0 to `num_segments` - 1 are masked.
            num_segments: number of segments, a plain integer.

        Returns:
            `(y, state)`, with `y` of the shape and dtype of `x`. To freeze the statistics,
            ignore the returned state.

        Raises:
            TypeError: `x` is not floating or complex, `mask` is not boolean, or params and state
                are swapped or those of a Flax module.
            ValueError: `stats` or a name in `hyper` is unknown, a mapping lacks a name or has
                another, shapes or segments do not fit, or a batch statistic is that of a single
                value (where shapes or a mask that is not traced tell it, and without
                `allow_single=True`).
        """
        x, call = checked_call(self, params, state, x, Call(stats, mask, axis_name, hyper))
        if segment_ids is not None or num_segments is not None:
            call = _with_segments(self, x, call, segment_ids, num_segments)
        if isinstance(params, Mapping) or isinstance(state, Mapping):
            params, state = _from_names(self, params, state, x)
        measured = None
        if stats == "batch" or not self.stateful or is_accumulator(state):
            measured = self.measure(params, x, call)
            if not getattr(self, "allow_single", True):
                _single.refuse(self, x.shape, measured, call)
        y = self.transform(params, state, measured, x, call)
        y = y if call.dtype is None else y.astype(call.dtype)
        return y, self.update(state, measured, call)

    def moments(
        self,
        params: PyTree,
        x: Inexact[Array, "*shape"],
        *,
        mask: Bool[Array, "..."] | None = None,
        axis_name: AxisName = None,
    ) -> Any:
        """Measure one batch: return the statistics of `x` that `apply` uses in mode `"batch"`.

        Args:
            params: what `init` returned.
            x: input, any floating or complex dtype.
            mask: True where a value counts; rank of `x`, broadcastable to it.
            axis_name: device axis or axes that the batch is split over.

        Returns:
            `Moments`, or the method's own statistics; `None` if the method measures nothing.

        Raises:
            TypeError: `x` is not floating or complex, `mask` is not boolean.
            ValueError: shapes do not fit.
        """
        x = _checks.floating(x, self.factory)
        if isinstance(params, Mapping):
            params, _ = _from_names(self, params, (), x)
        return self.measure(params, x, Call("batch", _checks.mask(mask, x.shape), axis_name))

    # The methods that a subclass defines; x is floating, at least float32, and the mask fits it.

    @abc.abstractmethod
    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[PyTree, PyTree]:
        """Make `(params, state)`.

        Args:
            shape: shape of x, a tuple.
            dtype: dtype of the parameters.
            key: PRNG key or `None`, for norms with random initial values.

        Returns:
            `(params, state)`; `state` is `()` for a norm without running statistics.
        """

    @abc.abstractmethod
    def measure(self, params: PyTree, x: jax.Array, call: Call) -> Any:
        """Measure this batch.

        Args:
            params: what `start` returned.
            x: input.
            call: mask and device axis of this call.

        Returns:
            Statistics for `transform` and `update`, or `None` if the method has none.
        """

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
            call: mode, mask, device axis and hyperparameters of this call.

        Returns:
            Output of the shape and dtype of `x`.
        """

    def update(self, state: PyTree, measured: Any, call: Call) -> PyTree:
        """Return the next state; by default `state` itself, for norms without running statistics.

        Args:
            state: the current state.
            measured: what `measure` returned.
            call: mode and hyperparameters of this call; running averages are updated in mode
                `"batch"` only.

        Returns:
            The next state, of the structure of `state`.
        """
        del measured, call
        return state

    def __repr__(self) -> str:
        """Return the call that makes the norm: `batch_norm(scale_init=0.1)`."""
        changed = (
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if f.default is dataclasses.MISSING or getattr(self, f.name) != f.default
        )
        return f"{self.factory}({', '.join(changed)})"


@exportable
class DirectionAndGain(NamedTuple):
    """The parameters that a `Reparam` of this library stores instead of a weight, w = g * f(v).

    Attributes:
        v: the weight that f normalizes, of the shape and dtype of w. Its length does not change w,
            so weight decay on it only changes the effective step size.
        g: gain, at least float32, or its logarithm; `None` if the method has none.
    """

    v: PyTree
    g: PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Reparam(abc.ABC):
    """A reparametrization of a weight, `w = apply(params)`: a value, like `Norm`.

    An optimizer updates the stored parameters, and the next `apply` computes the weight from
    them. Weights are in Flax's layout, output features last.

    Class attributes:
        factory: name of the public function that makes it, for `repr` and messages.
        stateful: whether the method has a state, such as a power iteration's vectors.
    """

    factory: ClassVar[str] = "reparam"
    stateful: ClassVar[bool] = False

    @abc.abstractmethod
    def init(
        self, w: Inexact[Array, "*shape"], *, key: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Convert an initial weight to parameters, from which `apply` computes the weight.

        Some methods preserve the weight, so that `apply` first returns `w`; others, such as weight
        standardization, do not.

        Args:
            w: the initial weight.
            key: PRNG key, for methods with random initial values; this library has none.

        Returns:
            `(params, state)`; `state` is `()` for a method without state.
        """

    @abc.abstractmethod
    def apply(
        self, params: PyTree, state: PyTree, *, stats: Stats
    ) -> tuple[Inexact[jax.Array, "*shape"], PyTree]:
        """Compute the weight from the parameters.

        Args:
            params: what `init` returned, after any number of optimizer steps, or a mapping of the
                same names.
            state: what `init` or the last `apply` returned.
            stats: `"batch"` updates the state, `"running"` leaves it unchanged. Methods without
                state accept both and ignore them.

        Returns:
            `(w, state)`, with `w` of the shape and dtype of the initial weight.
        """

    __repr__ = Norm.__repr__


def _from_names(norm: Norm, params: PyTree, state: PyTree, x: jax.Array) -> tuple[PyTree, PyTree]:
    """Return params and state, where they are mappings, in the structure that `init` returns."""
    shapes = jax.eval_shape(lambda: norm.start(x.shape, x.dtype, jax.random.key(0)))
    return tuple(
        _names.from_dict(template, values) if isinstance(values, Mapping) else values
        for template, values in zip(shapes, (params, state), strict=True)
    )


def _with_segments(norm: Norm, x: jax.Array, call: Call, ids: Any, number: Any) -> Call:
    """Return the call with its segments; raise if the norm takes none."""
    if not norm.segmented:
        raise TypeError(
            f"{norm.factory} takes no segment_ids: write instance_norm(axes=…), group_norm, "
            "layer_norm or rms_norm, whose statistics are those of one sample"
        )
    if call.axis_name is not None or getattr(norm, "feature_axis_name", None) is not None:
        raise ValueError(
            "segment_ids are those of one device: keep each segment on one, and leave axis_name out"
        )
    segments = _segments.checked(ids, number, x.shape)
    mask = _segments.full_mask(call.mask, x, segments)
    return dataclasses.replace(call, mask=mask, segments=segments)


def checked_call(
    norm: Norm, params: PyTree, state: PyTree, x: Any, call: Call
) -> tuple[jax.Array, Call]:
    """Check the arguments of `Norm.apply`; return x as an array and the call with its mask.

    The conditions are inline, so that a correct call makes few further Python calls.
    """
    if call.stats not in _checks.STATS:
        _checks.stats(call.stats)
    if call.hyper:
        _checks.hyper(call.hyper, norm.hyper_names, norm.factory)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        _checks.floating(x, norm.factory)
    if call.mask is not None:
        call = dataclasses.replace(call, mask=_checks.mask(call.mask, x.shape))
    if x.dtype.itemsize < 4:
        call = dataclasses.replace(call, dtype=x.dtype)
        x = widen_half(x)
    if isinstance(params, Mapping):
        _hints.refuse_flax_variables(params, norm.factory)
    swapped = isinstance(params, Running | RunningMean | RunningCov | Accumulator)
    if swapped or (not norm.stateful and jax.tree.leaves(state)):
        raise TypeError(
            f"{norm.factory} was given {type(params).__name__} for its params and "
            f"{type(state).__name__} for its state: apply takes (params, state, x), in this order"
        )
    return x, call
