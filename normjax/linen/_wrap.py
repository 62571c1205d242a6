"""The two generic Linen modules: `Normalize` for any norm, `Recurrent` for any recurrent layer.

They declare variables and pass them to the pure functions; nothing is computed here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax._flax import _padding
from normjax._flax._variables import (
    FILLED,
    accumulates,
    draws_noise,
    keep_running,
    named_leaves,
    nest,
    rebuild,
    separate,
    with_running,
)
from normjax._internal import _checks, _single
from normjax.base import Hyper, Norm, Stats
from normjax.linen._lifted import StaticArguments
from normjax.recurrent._checks import check_layer
from normjax.recurrent._newton import Solver
from normjax.statistics._types import Accumulator, Array, AxisName, PyTree

COLLECTION = "batch_stats"


class Normalize(StaticArguments, nn.Module):
    """Any `Norm` as a Linen module.

    Parameters carry the norm's own names (`scale`, `bias`), statistics are the variables
    `mean` and `var` of the collection `batch_stats`, as in Flax's layers. Evaluation needs
    no `mutable`.

    Attributes:
        norm: the norm.
        stats: `"batch"` or `"running"`; may be given at the call instead. Norms without
            state need neither.
        axis_name: device axis that the batch is split over.
        param_dtype: dtype of the parameters.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> from normjax import linen
        >>> module = linen.Normalize(nj.batch_norm())
        >>> x = jnp.ones((4, 3))
        >>> variables = module.init(jax.random.key(0), x, stats="running")
        >>> y, new = module.apply(variables, x, stats="batch", mutable=["batch_stats"])
        >>> y = module.apply(variables, x, stats="running")
    """

    norm: Norm
    stats: Stats | None = None
    axis_name: AxisName = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuse a norm that is not a `Norm`."""
        _checks.require_instance("norm", self.norm, Norm, "Normalize")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Array,
        stats: Stats | None = None,
        *,
        mask: Array | None = None,
        hyper: Hyper = None,
        segment_ids: Array | None = None,
        num_segments: int | None = None,
    ) -> jax.Array:
        """Normalize `x`.

        Args:
            x: input, as for the norm.
            stats: `"batch"` or `"running"`, if the module does not say.
            mask: True where a value counts; rank of `x`.
            hyper: numbers that may vary during training.
            segment_ids: segment of each position, of the shape of `x` without its last axis.
            num_segments: number of segments, a plain integer.

        Returns:
            Output of the shape and dtype of `x`.

        Raises:
            ValueError: no mode was given, or two; or mode `"batch"` without
                `mutable=["batch_stats"]`.
        """
        mode = _mode(self, stats, self.norm.stateful)
        params, state, read = _variables(
            self, lambda key: self.norm.start(x.shape, self.param_dtype, key), mode
        )
        with _start(self):
            y, new = self.norm.apply(
                params,
                read,
                x,
                stats=mode,
                mask=_padding.mask(mask, x.shape, "Normalize"),
                # There is no device axis yet while initializing.
                axis_name=None if self.is_initializing() else self.axis_name,
                hyper=hyper,
                segment_ids=segment_ids,
                num_segments=num_segments,
            )
        _store(self, new, state, mode)
        return y


class Recurrent(StaticArguments, nn.Module):
    """Any layer of `normjax.recurrent` as a Linen module.

    Random numbers come from the stream `noise`: those of `h0_noise` in both modes, those of zoneout
    and dropout in mode `"batch"`, or as `noise=True` or `noise=False` at the call says.

    With `debias="warmup"`, the default of the presets, running averages are those of the data
    alone, mostly of its latest batches; plain ones still hold some of the mean 0 and variance 1
    that they start from, and with `stats="running"` a BN-LSTM may then be near chance, however
    well it trains. What is left is
    that averages follow the weights with a delay, which exact statistics from one pass over
    training data have not, `linen.population_update`.

    Attributes:
        layer: the layer, such as `bn_lstm(100, max_steps=64)`.
        stats: `"batch"` or `"running"`; may be given at the call instead. Layers without state,
            zoneout and dropout need neither.
        axis_name: device axis that the batch is split over.
        param_dtype: dtype of the parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import linen, recurrent
        >>> module = linen.Recurrent(recurrent.bn_lstm(4, max_steps=5))
        >>> x = jnp.ones((2, 5, 3))
        >>> variables = module.init(jax.random.key(0), x, stats="running")
        >>> module.apply(variables, x, stats="running").shape
        (2, 5, 4)
    """

    layer: Any
    stats: Stats | None = None
    axis_name: AxisName = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuse a layer that is not a recurrent layer."""
        check_layer(self.layer, "Recurrent")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Array,
        stats: Stats | None = None,
        *,
        lengths: Array | None = None,
        resets: Array | None = None,
        mask: Array | None = None,
        carry: PyTree | None = None,
        return_carry: bool = False,
        hyper: Hyper = None,
        noise: bool | None = None,
        solver: Solver = "scan",
    ) -> Any:
        """Run the layer over a sequence.

        Args:
            x: `[batch, time, features]`, or time-major if the layer is.
            stats: `"batch"` or `"running"`, if the module does not say.
            lengths: `[batch]`, number of steps of each sequence.
            resets: `[batch, time]`, True where the carry starts again before the step.
            mask: `[batch, time]`, True on the steps that count; the others are skipped.
            carry: start of the carry.
            return_carry: also return the last carry.
            hyper: numbers that may vary during training.
            noise: whether zoneout and dropout draw; `None`: in mode `"batch"`.
            solver: `"newton"` in mode `"running"`: all steps at once; see `recurrent.newton`.

        Returns:
            Outputs of every step, or `(carry, outputs)` with `return_carry`, in the order of
            Flax's `RNN`.

        Raises:
            ValueError: no mode was given, or two; mode `"batch"` without
                `mutable=["batch_stats"]`; or zoneout or dropout that draw without
                `rngs={"noise": key}`.
        """
        mode = _mode(self, stats, self.layer.stateful or (self.layer.has_dropout and noise is None))
        has_key = self.has_rng("noise")
        if self.is_initializing() and not has_key:
            noise = False
        write = 'write apply(..., rngs={"noise": key})'
        noise = draws_noise(self.layer, mode, noise, has_key, write)
        params, state, read = _variables(
            self, lambda key: self.layer.init(key, x.shape[-1], self.param_dtype), mode
        )
        with _start(self):
            (y, carry), new = self.layer.apply(
                params,
                read,
                x,
                stats=mode,
                lengths=lengths,
                resets=resets,
                mask=mask,
                carry=carry,
                key=self.make_rng("noise") if self.layer.needs_key or noise else None,
                noise=noise,
                axis_name=None if self.is_initializing() else self.axis_name,
                hyper=hyper,
                solver=solver,
            )
        _store(self, new, state, mode)
        return (carry, y) if return_carry else y

    @nn.nowrap
    def output(self, carry: PyTree) -> jax.Array:
        """Return the last outputs `[batch, features]` from the last carry, as `layer.output`."""
        return self.layer.output(carry)


def _start(module: nn.Module) -> Any:
    """Return the context of a call: a batch of one may initialize a module, as in Flax."""
    return _single.allowed() if module.is_initializing() else contextlib.nullcontext()


def _mode(module: Any, stats: Stats | None, needed: bool) -> Stats:
    """Return the mode of a call, which is said in one place: by the module or at the call."""
    if stats is not None and module.stats is not None and stats != module.stats:
        raise ValueError(
            f"{type(module).__name__} was made with stats={module.stats!r} and called with "
            f"stats={stats!r}: give it in one place"
        )
    mode = stats if stats is not None else module.stats
    if mode is None and needed:
        raise ValueError(
            f'{type(module).__name__} needs a mode: call it with stats="batch" in training and '
            'stats="running" in evaluation'
        )
    return mode or "running"


def _variables(
    module: nn.Module, init: Callable[[jax.Array], Any], mode: Stats
) -> tuple[PyTree, PyTree, PyTree]:
    """Declare one parameter and one variable for each top-level name, and read them back.

    Returns:
        `(params, state, read)`: the state that the variables hold, and the one to be read in
        `mode`, which differs only inside a loop of ours; see `FILLED`.
    """
    shapes = jax.eval_shape(init, jax.random.key(0))
    initializing = module.is_initializing()
    made = init(module.make_rng("params")) if initializing else shapes
    params, state = (nest(named_leaves(tree)) for tree in made)
    for name, value in params.items():
        params[name] = module.param(name, lambda _key, v=value: _arrays(v))
    if initializing:
        for name, value in state.items():
            check_scanned(module, name)
            module.variable(COLLECTION, name, lambda v=value: v)
    elif state:
        # During `population_update` a norm's statistics have the names of an `Accumulator`.
        names = tuple(state)
        if module.has_variable(COLLECTION, "measured"):
            names = tuple(n for n in Accumulator._fields if module.has_variable(COLLECTION, n))
        state = {name: _read(module, name) for name in names}
        if module.has_variable(COLLECTION, FILLED):
            state[FILLED] = module.get_variable(COLLECTION, FILLED)
        state = nn.meta.unbox(state)  # Flax's metadata, such as names of axes
    own, filled = separate(state)
    state = read = rebuild(shapes[1], own)
    if mode == "running" and filled is not None:
        read = with_running(state, rebuild(shapes[1], filled))
    return rebuild(shapes[0], params), state, read


def _read(module: nn.Module, name: str) -> Any:
    if not module.has_variable(COLLECTION, name):
        check_scanned(module, name)
        raise ValueError(
            f"{type(module).__name__} found no statistics {name!r}: pass the {COLLECTION!r} that "
            f'init returned, apply({{"params": …, "{COLLECTION}": …}}, …)'
        )
    return module.get_variable(COLLECTION, name)


def _store(module: nn.Module, state: PyTree, before: PyTree, mode: Stats) -> None:
    """Write the next state to the variables, where the call moves it."""
    if module.is_initializing() or not (mode == "batch" or accumulates(state)):
        return
    if mode == "running":  # only what accumulates moves
        state = keep_running(state, before)
    values = nest(named_leaves(state))
    if values and not module.is_mutable_collection(COLLECTION):
        raise ValueError(
            'stats="batch" moves the running statistics: write apply(..., '
            f'mutable=["{COLLECTION}"]), and drop what it returns to keep them frozen'
        )
    for name, value in values.items():
        old: Any = module.get_variable(COLLECTION, name)
        module.put_variable(COLLECTION, name, renew(old, value))


def renew(old: Any, new: Any) -> Any:
    """Return `new` with the metadata of `old`, and with the names that it lacks."""
    boxed = nn.meta.AxisMetadata
    if isinstance(old, boxed) and not isinstance(new, boxed):
        return old.replace_boxed(new)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{name: renew(old.get(name), value) for name, value in new.items()}}
    return new


def _arrays(tree: PyTree) -> PyTree:
    """The values of a parameter, or zeros of its shapes: Flax compares shapes in every call."""
    return jax.tree.map(
        lambda v: jnp.zeros(v.shape, v.dtype) if isinstance(v, jax.ShapeDtypeStruct) else v, tree
    )


def check_scanned(module: nn.Module, name: str) -> None:
    """Refuse a scan that passes no statistics to its body, such as that of Flax's `RNN`.

    A statistic that is absent there can be neither read nor made, so it is an error in any case;
    this one says which.
    """
    if module.has_variable(COLLECTION, name) or module.is_mutable_collection(COLLECTION):
        return
    if _in_scan(module) and not _padding.in_step():
        raise ValueError(
            f"{type(module).__name__} is in a scan that passes no {COLLECTION!r} to its body. If "
            "that is flax.linen.RNN, write normjax.linen.RNN(cell) in its place: it keeps the "
            "statistics of each time step; in an nn.scan of your own, over layers, write "
            f"variable_axes={{'params': 0, '{COLLECTION}': 0}}"
        )


def _in_scan(module: nn.Module) -> bool:
    """Whether the module is in a lifted scan.

    Flax has no public way to ask. `Scope.debug_path`, which its error messages print, names the
    transformations around a module; without it an error is less precise, and nothing else.
    """
    return any("scan(" in part for part in getattr(module.scope, "debug_path", ()))
