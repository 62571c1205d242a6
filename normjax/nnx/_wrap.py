"""The two generic NNX modules: `Normalize` for any norm, `Recurrent` for any recurrent layer.

They hold variables and pass them to the pure functions; nothing is computed here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax._flax import _padding
from normjax._flax._variables import (
    FILLED,
    Path,
    draws_noise,
    keep_running,
    named_leaves,
    nest,
    with_running,
)
from normjax._internal import _checks
from normjax.base import Hyper, Norm, Stats
from normjax.recurrent._checks import check_layer
from normjax.recurrent._newton import Solver
from normjax.statistics._types import Array, AxisName, PyTree, Running


class ModuleState(nnx.BatchStat):
    """A module's whole state while it accumulates: a pytree with `Accumulator` nodes."""


class FilledState(nnx.BatchStat):
    """What mode `"running"` reads, while a `PerStepCell` runs the module's step."""


class Normalize(nnx.Module):
    """Any `Norm` as an NNX module.

    Parameters carry the norm's own names (`scale`, `bias`) as `nnx.Param`s, statistics (`mean`,
    `var`) as `nnx.BatchStat`s, as in Flax's layers. `train()` and `eval()` set the mode.

    Args:
        norm: the norm.
        shape: number of features, or the whole shape of x; dimensions averaged over may be of
            any size.
        rngs: random keys; the norm starts from `rngs.params()`.
        stats: `"batch"` or `"running"`; may also be given at the call, or by `train()` and
            `eval()`. Norms without state need none.
        axis_name: device axis that the batch is split over.
        param_dtype: dtype of the parameters.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> layer = nn.Normalize(nj.batch_norm(decay=0.5), 3, rngs=nnx.Rngs(0))
        >>> layer.train()
        >>> y = layer(jnp.full((4, 3), 2.0))
        >>> layer.mean[...].tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        norm: Norm,
        shape: int | tuple[int, ...],
        *,
        rngs: nnx.Rngs,
        stats: Stats | None = None,
        axis_name: AxisName = None,
        param_dtype: Any = jnp.float32,
    ):
        _checks.require_instance("norm", norm, Norm, "Normalize")
        self.norm = norm
        self.shape = (1, shape) if isinstance(shape, int) else tuple(shape)
        self.axis_name = axis_name
        self.param_dtype = param_dtype
        self.use_running_average = _flag(stats)
        _declare(self, *norm.init(self.shape, param_dtype, key=rngs.params()))

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
            stats: `"batch"` or `"running"`; overrides the module's.
            mask: True where a value counts; rank of `x`.
            hyper: numbers that may vary during training.
            segment_ids: segment of each position, of the shape of `x` without its last axis.
            num_segments: number of segments, a plain integer.

        Returns:
            Output of the shape and dtype of `x`.

        Raises:
            ValueError: no mode was given.
        """
        mode = normalizes_with(self) or _mode(self, stats, self.norm.stateful)
        params_shape, state_shape = _shapes(self)
        params, state = _read(self, params_shape), statistics(self, state_shape)
        y, new = self.norm.apply(
            params,
            to_read(self, state) if mode == "running" else state,
            x,
            stats=mode,
            mask=_padding.mask(mask, x.shape, "Normalize"),
            axis_name=self.axis_name,
            hyper=hyper,
            segment_ids=segment_ids,
            num_segments=num_segments,
        )
        _store(self, new, state, mode)
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Set the mode of a view, for `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average


class Recurrent(nnx.Module):
    """Any layer of `normjax.recurrent` as an NNX module.

    With `debias="warmup"`, the default of the presets, running averages are those of the data
    alone, mostly of its latest batches; plain ones still hold some of the mean 0 and variance 1
    that they start from, and with `stats="running"` a BN-LSTM may then be near chance, however
    well it trains. What is left is
    that averages follow the weights with a delay, which exact statistics from one pass over
    training data have not, `normjax.nnx.population_update`.

    Args:
        layer: the layer, such as `bn_lstm(100, max_steps=64)`.
        features: size of the last axis of the inputs.
        rngs: random keys; the stream `noise`, or else the default one, serves `h0_noise`, and in
            mode `"batch"` zoneout and dropout.
        stats: `"batch"` or `"running"`; may also be given at the call, or by `train()` and
            `eval()`. Layers without state, zoneout and dropout need none.
        axis_name: device axis that the batch is split over.
        param_dtype: dtype of the parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from normjax import nnx as nn, recurrent
        >>> layer = nn.Recurrent(recurrent.bn_lstm(4, max_steps=5), 3, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 5, 3)), stats="batch").shape
        (2, 5, 4)
    """

    def __init__(
        self,
        layer: Any,
        features: int,
        *,
        rngs: nnx.Rngs,
        stats: Stats | None = None,
        axis_name: AxisName = None,
        param_dtype: Any = jnp.float32,
    ):
        check_layer(layer, "Recurrent")
        self.layer = layer
        self.features = features
        self.axis_name = axis_name
        self.param_dtype = param_dtype
        self.use_running_average = _flag(stats)
        # A stream of its own, so that a step does not change the keys of other modules.
        draws = layer.needs_key or (layer.has_dropout and "default" in rngs)
        self.noise = rngs.noise.fork() if draws or "noise" in rngs else None
        _declare(self, *layer.init(rngs.params(), features, param_dtype))

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
            stats: `"batch"` or `"running"`; overrides the module's.
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
            ValueError: no mode was given; or zoneout or dropout that draw without random keys.
        """
        upstream = normalizes_with(self)
        # In a pass over data the model's own mode still decides about noise, and may be missing.
        draws = self.layer.has_dropout and noise is None
        needed = (self.layer.stateful or draws) and upstream is None
        own = _mode(self, stats, needed)
        mode = upstream or own
        noise = draws_noise(
            self.layer,
            own,
            noise,
            self.noise is not None,
            "make it with rngs=nnx.Rngs(params=0, noise=1), or nnx.Rngs(0)",
        )
        params_shape, state_shape = _shapes(self)
        params, state = _read(self, params_shape), statistics(self, state_shape)
        (y, last), new = self.layer.apply(
            params,
            to_read(self, state) if mode == "running" else state,
            x,
            stats=mode,
            lengths=lengths,
            resets=resets,
            mask=mask,
            carry=carry,
            key=self.noise()
            if self.noise is not None and (self.layer.needs_key or noise)
            else None,
            noise=noise,
            axis_name=self.axis_name,
            hyper=hyper,
            solver=solver,
        )
        _store(self, new, state, mode)
        return (last, y) if return_carry else y

    def output(self, carry: PyTree) -> jax.Array:
        """Return the last outputs `[batch, features]` from the last carry, as `layer.output`."""
        return self.layer.output(carry)

    set_view = Normalize.set_view


def _flag(stats: Stats | None) -> bool | None:
    if stats is None:
        return None
    _checks.stats(stats)
    return stats == "running"


def normalizes_with(module: Any) -> Stats | None:
    """The mode that `population_update` sets for the norms of a model during its pass."""
    return getattr(module, "upstream", None)


def _mode(module: Any, stats: Stats | None, needed: bool) -> Stats:
    """Return the mode of a call: its own, or that of the module."""
    if stats is not None:
        return stats
    if module.use_running_average is None and needed:
        raise ValueError(
            f"{type(module).__name__} needs a mode: write module.train() or module.eval(), or "
            'give stats="batch" or stats="running" at the call'
        )
    return "batch" if module.use_running_average is False else "running"


def _declare(module: Any, params: PyTree, state: PyTree) -> None:
    """Make variables of the names of the trees; a norm of a layer has both kinds in it."""
    variables: dict[Path, nnx.Variable[Any]] = {}
    variables |= {path: nnx.Param(value) for path, value in named_leaves(params).items()}
    variables |= {path: nnx.BatchStat(value) for path, value in named_leaves(state).items()}
    for name, value in nest(variables).items():
        setattr(module, name, nnx.data(value))


def statistics(module: Any, template: PyTree = None) -> PyTree:
    """State of a module of ours that keeps statistics, in the norm's or layer's own structure."""
    accumulator = getattr(module, "accumulator", None)
    if isinstance(accumulator, ModuleState):
        return accumulator.get_value()
    if isinstance(module, nnx.BatchNorm):
        return Running(module.mean[...], module.var[...])
    return _read(module, _shapes(module)[1] if template is None else template)


def write(module: Any, state: PyTree) -> None:
    """Write the state of a module of ours back to its variables."""
    accumulator = getattr(module, "accumulator", None)
    if isinstance(accumulator, ModuleState):
        accumulator.set_value(state)
        return
    for path, value in named_leaves(state).items():
        _variable(module, path)[...] = value


def to_read(module: Any, state: PyTree) -> PyTree:
    """Return the state that mode `"running"` reads, which differs in a `PerStepCell`."""
    filled = getattr(module, FILLED, None)
    return with_running(state, filled.get_value()) if isinstance(filled, FilledState) else state


def _store(module: Any, state: PyTree, before: PyTree, mode: Stats) -> None:
    if hasattr(module, "accumulator"):
        write(module, keep_running(state, before))
    elif mode == "batch":
        write(module, state)


def _shapes(module: Any) -> tuple[PyTree, PyTree]:
    """Structure of `(params, state)`."""
    key, dtype = jax.random.key(0), module.param_dtype
    if isinstance(module, Recurrent):
        return jax.eval_shape(lambda: module.layer.init(key, module.features, dtype))
    return jax.eval_shape(lambda: module.norm.start(module.shape, dtype, key))


def _read(module: Any, template: PyTree) -> PyTree:
    """Return the variables of a module in the structure of `template`."""
    leaves = [_variable(module, path)[...] for path in named_leaves(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _variable(module: Any, path: Path) -> Any:
    variable = getattr(module, path[0])
    for name in path[1:]:
        variable = variable[name]
    return variable
