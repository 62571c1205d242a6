"""The two generic Linen modules: one for any norm, one for any recurrent layer.

They hold variables and pass them on; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax._flax import _padding
from normjax._internal import _checks
from normjax.base import Hyper, Norm, Stats
from normjax.recurrent._checks import check_layer
from normjax.state import _names
from normjax.statistics._types import Accumulator, Array, AxisName, PyTree, is_accumulator

COLLECTION = "batch_stats"


class Normalize(nn.Module):
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
        """Refuse what is no norm."""
        _checks.require_instance("norm", self.norm, Norm, "Normalize")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        stats: Stats | None = None,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Normalize `x`.

        Args:
            x: input, as for the norm.
            stats: `"batch"` or `"running"`, if the module does not say.
            mask: True where a value counts; rank of `x`.
            hyper: numbers that may vary during training.

        Returns:
            Output of the shape and dtype of `x`.

        Raises:
            ValueError: no mode was given, or two; or mode `"batch"` without
                `mutable=["batch_stats"]`.
        """
        mode = _mode(self, stats, self.norm.stateful)
        dtype = self.param_dtype
        params, state = _variables(self, lambda key: self.norm.init(x.shape, dtype, key=key))
        axis_name = None if self.is_initializing() else self.axis_name
        y, state = self.norm.apply(
            params,
            state,
            x,
            stats=mode,
            mask=_padding.mask(mask, x.shape, "Normalize"),
            axis_name=axis_name,
            hyper=hyper,
        )
        _store(self, state, mode)
        return y


class Recurrent(nn.Module):
    """Any layer of `normjax.recurrent` as a Linen module.

    Random numbers come from the stream `noise`: those of `h0_noise` in both modes, those of zoneout
    and dropout in mode `"batch"`.

    After few updates the running averages still hold some of the mean 0 and variance 1 that they
    start from, which is far more than the variances of the first steps: with `stats="running"` a
    BN-LSTM may then be near chance, however well it trains. Exact statistics from one pass over
    training data cure it, `linen.population_update`; or a decay that grows,
    `hyper={"decay": jnp.minimum(0.99, n / (n + 1))}` with n updates done, so that the first
    update forgets the start.

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
        """Refuse what is no layer."""
        check_layer(self.layer, "Recurrent")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        stats: Stats | None = None,
        lengths: Array | None = None,
        carry: PyTree | None = None,
        return_carry: bool = False,
        hyper: Hyper = None,
    ) -> Any:
        """Run the layer over a sequence.

        Args:
            x: `[batch, time, features]`, or time-major if the layer is.
            stats: `"batch"` or `"running"`, if the module does not say.
            lengths: `[batch]`, number of steps of each sequence.
            carry: start of the carry.
            return_carry: also return the last carry.
            hyper: numbers that may vary during training.

        Returns:
            Outputs of every step, or `(carry, outputs)` with `return_carry`, in the order of
            Flax's `RNN`.

        Raises:
            ValueError: as `Normalize`; or zoneout or dropout in mode `"batch"` without
                `rngs={"noise": key}`.
        """
        mode = _mode(self, stats, self.layer.stateful or self.layer.has_dropout)
        given = self.has_rng("noise")
        if self.layer.has_dropout and mode == "batch" and not (given or self.is_initializing()):
            raise ValueError(
                'Recurrent has zoneout or dropout, which draw in mode "batch": write apply(..., '
                'rngs={"noise": key})'
            )
        params, state = _variables(
            self, lambda key: self.layer.init(key, x.shape[-1], self.param_dtype)
        )
        (y, carry), state = self.layer.apply(
            params,
            state,
            x,
            stats=mode,
            lengths=lengths,
            carry=carry,
            key=self.make_rng("noise") if self.layer.needs_key or given else None,
            axis_name=None if self.is_initializing() else self.axis_name,
            hyper=hyper,
        )
        _store(self, state, mode)
        return (carry, y) if return_carry else y


def _mode(module: Any, stats: Stats | None, stateful: bool) -> Stats:
    if stats is not None and module.stats is not None and stats != module.stats:
        raise ValueError(
            f"{type(module).__name__} was made with stats={module.stats!r} and called with "
            f"stats={stats!r}: give it in one place"
        )
    mode = stats if stats is not None else module.stats
    if mode is None and stateful:
        raise ValueError(
            f'{type(module).__name__} needs a mode: call it with stats="batch" in training and '
            'stats="running" in evaluation'
        )
    return mode or "running"


def _variables(module: nn.Module, init: Callable[[jax.Array], Any]) -> tuple[PyTree, PyTree]:
    """Declare one parameter and one variable for each top-level name, and read them back."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    names = _stored(module, _names.to_dict(shapes[1]))
    for name in names:
        check_handed(module, name)
    made = init(module.make_rng("params")) if module.is_initializing() else shapes
    params = {
        name: module.param(name, lambda _key, v=value: _zeros_if_shapes(v))
        for name, value in _names.to_dict(made[0]).items()
    }
    state = {
        name: module.variable(COLLECTION, name, lambda v=value: _zeros_if_shapes(v)).value
        for name, value in _stored(module, _names.to_dict(made[1])).items()
        if module.is_initializing() or _there(module, name)
    }
    return _names.from_dict(shapes[0], params), _names.from_dict(shapes[1], state)


def _stored(module: nn.Module, values: dict[str, Any]) -> dict[str, Any]:
    """Names of a norm's statistics; while they gather, those of `Accumulator`."""
    gathering = dict.fromkeys(Accumulator._fields)
    return gathering if values and module.has_variable(COLLECTION, "measured") else values


def check_handed(module: nn.Module, name: str) -> None:
    """Refuse a scan that hands no statistics to its body, such as that of Flax's `RNN`.

    Nothing can be read or made there, so it is an error in any case; this one says which.
    """
    if module.has_variable(COLLECTION, name) or module.is_mutable_collection(COLLECTION):
        return
    # Flax notes the transformations around a module in the path that it prints.
    scanned = module.scope is not None and any("scan(" in p for p in module.scope.debug_path)
    if scanned and not _padding.in_step():
        raise ValueError(
            f"{type(module).__name__} is in a scan that hands no {COLLECTION!r} to its body. If "
            "that is flax.linen.RNN, write normjax.linen.RNN(cell) in its place: it keeps the "
            "statistics of each time step; in an nn.scan of your own, over layers, write "
            f"variable_axes={{'params': 0, '{COLLECTION}': 0}}"
        )


def _there(module: nn.Module, name: str) -> bool:
    if module.has_variable(COLLECTION, name):
        return True
    raise ValueError(
        f"{type(module).__name__} found no statistics {name!r}: pass the {COLLECTION!r} that init "
        f'returned, apply({{"params": …, "{COLLECTION}": …}}, …)'
    )


def _store(module: nn.Module, state: PyTree, mode: Stats) -> None:
    values = _names.to_dict(state)
    moves = mode == "batch" or any(
        map(is_accumulator, jax.tree.leaves(state, is_leaf=is_accumulator))
    )
    if module.is_initializing() or not moves or not values:
        return
    if not module.is_mutable_collection(COLLECTION):
        raise ValueError(
            'stats="batch" moves the running statistics: write apply(..., '
            f'mutable=["{COLLECTION}"]), and drop what it returns to keep them frozen'
        )
    for name, value in values.items():
        module.put_variable(COLLECTION, name, value)


def _zeros_if_shapes(tree: PyTree) -> PyTree:
    """Flax asks an initializer for shapes even when the value is there already."""

    def fill(leaf: Any) -> Any:
        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        return jnp.zeros(leaf.shape, leaf.dtype) if is_shape else leaf

    return jax.tree.map(fill, tree)
