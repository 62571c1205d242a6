"""What every recurrent layer answers to, what `info` returns, and how a carry is handled."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from normjax import _words
from normjax.base import Norm, PyTree

NormAt = Callable[[str, jax.Array], jax.Array]
Gates = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, repr=False)
class Layer(abc.ABC):
    """What a recurrent layer, a stack of them and a bidirectional pair have in common.

    Like a `Norm` each is a hashable value with equality, `repr` and pickle.
    """

    factory: ClassVar[str] = "layer"

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Size of the last axis of the outputs."""

    @property
    @abc.abstractmethod
    def hypers(self) -> frozenset[str]:
        """Names that `hyper` may carry, those of all norms."""

    @property
    @abc.abstractmethod
    def stateful(self) -> bool:
        """Whether any norm keeps statistics."""

    @property
    @abc.abstractmethod
    def noisy(self) -> bool:
        """Whether `apply` needs a PRNG key in every mode."""

    @property
    @abc.abstractmethod
    def drops(self) -> bool:
        """Whether zoneout or dropout is asked for: they draw in mode `"batch"`, given a key."""

    @property
    @abc.abstractmethod
    def time_first(self) -> bool:
        """Whether sequences are `[time, batch, features]`."""

    @abc.abstractmethod
    def init(self, key: jax.Array, features: int, dtype: Any = jnp.float32) -> Any:
        """Make `(params, state)`."""

    @abc.abstractmethod
    def apply(self, *args: Any, **keywords: Any) -> Any:
        """Run over a sequence: `apply(params, state, x, *, stats, …) -> ((y, carry), state)`."""

    @abc.abstractmethod
    def look(self, *args: Any, **keywords: Any) -> tuple[jax.Array, Any]:
        """Run as `apply` and return `(y, info)`: the outputs, and what `info` returns."""

    def info(self, *args: Any, **keywords: Any) -> Any:
        """Look inside a run: the same computation as `apply`, and what it otherwise drops.

        Args:
            args: `params`, `state` and `x`, as for `apply`.
            keywords: those of `apply`; padding counts nowhere.

        Returns:
            `Info` of one layer; of a stack or a bidirectional pair a dictionary with the entries
            of its `params`: an `Info` for each layer, and `Moments` for each norm between.

        Example:
            >>> import jax
            >>> from normjax import recurrent
            >>> net = recurrent.stack([recurrent.lstm(4), recurrent.bn_lstm(4, max_steps=5)])
            >>> params, state = net.init(jax.random.key(0), features=3)
            >>> x = jax.random.normal(jax.random.key(1), (8, 5, 3))
            >>> seen = net.info(params, state, x, stats="batch")
            >>> seen["layer_1"].moments["norm_h"].mean.shape
            (5, 16)
            >>> seen["layer_0"].saturated["forget"].shape
            (5,)
        """
        return self.look(*args, **keywords)[1]

    __repr__ = Norm.__repr__


class Info(NamedTuple):
    """What happened inside a recurrent layer, step by step.

    Attributes:
        moments: by place, what each norm measured: `Moments` with a leading axis of time, or of
            the whole sequence where the lift takes it so; stateless norms measure rows and are
            left out.
        gates: by name, mean value of each gate; `[time]`.
        saturated: by name, share of a gate's values below 0.05 or above 0.95; `[time]`.
        hidden_norm: L2 norm of the hidden state, mean over the batch; `[time]`.
    """

    moments: dict[str, Any]
    gates: dict[str, jax.Array]
    saturated: dict[str, jax.Array]
    hidden_norm: jax.Array


SATURATED = 0.05


def check_layer(layer: Any, who: str) -> None:
    """Accept a `Layer`, and what answers like one: a layer whose weights are written otherwise."""
    if isinstance(layer, type) or not all(
        hasattr(layer, name) for name in ("init", "apply", "width", "time_first")
    ):
        raise TypeError(f"{who} takes layers such as lstm(100) and got {layer!r}")


def check_single(layer: Any, who: str) -> None:
    """Refuse a stack or a bidirectional pair where the inside of one layer is looked at."""
    check_layer(layer, who)
    if not hasattr(layer, "hidden"):
        raise TypeError(
            f"{who} takes one layer such as lstm(100) and got {layer!r}: give it one of these "
            "layers, with its own entries of params and state, and its own input"
        )


def check_made(
    who: str, params: Any, state: Any, both: Collection[str], weights: Collection[str] = ()
) -> None:
    """Refuse what `init` of another layer returned: `both` are the entries of params and state."""
    _words.no_variables(params, who)
    of, kept = (set(tree) if isinstance(tree, Mapping) else set() for tree in (params, state))
    norms = {name for name in of if name.startswith("norm_")}
    if not {*both, *weights} <= of or not norms <= {*both} or kept != {*both}:
        raise ValueError(
            f"params have {sorted(of)}, the state has {sorted(kept)}, and {who} needs "
            f"{sorted([*both, *weights])} in params and {sorted(both)} in the state: pass the "
            "(params, state) that init of this layer returned"
        )


def check_call(layer: Any, params: PyTree, state: PyTree, x: jax.Array) -> None:
    """Refuse params, state or x that are not those of a recurrent `layer`, saying what is."""
    order = "[time, batch, features]" if layer.time_major else "[batch, time, features]"
    if x.ndim != 3:
        raise ValueError(f"{layer.factory} takes x as {order} and got shape {x.shape}")
    norms = layer.norms()
    check_made(layer.factory, params, state, norms, ("w_x", "w_h"))
    for name in ("w_x", "w_h"):
        if not hasattr(params[name], "shape"):
            raise ValueError(
                f"{name} is a {type(params[name]).__name__} and this {layer.factory} takes an "
                "array: params of a reparametrized layer (wn_lstm(…), nj.reparam(layer, rules)) "
                "are applied by that layer"
            )
    shape, width = params["w_h"].shape, layer.gates * layer.hidden
    if shape[0] != layer.hidden:
        raise ValueError(
            f"params are those of {shape[0]} units and this {layer.factory} has {layer.hidden}: "
            "pass the (params, state) that init of this layer returned"
        )
    if shape[1:] != (width,):
        # Without norms two cells' params may have the same names.
        of = {1: "an rnn", 3: "a gru", 4: "an lstm"}.get(shape[-1] / shape[0], "another cell")
        raise ValueError(
            f"params look like those of {of}, with w_h of shape {shape}, and that of this "
            f"{layer.factory} is {(layer.hidden, width)}: pass the (params, state) that init of "
            "this layer returned"
        )
    biases = jax.eval_shape(lambda: layer.start_bias(x.dtype))
    weights = ("w_x", "w_h", *biases, *(("carry",) if layer.learn_carry else ()))
    check_made(layer.factory, params, state, norms, weights)
    for place, norm in norms.items():
        if bool(jax.tree.leaves(state[place])) != norm.norm.stateful:
            keeps = "keeps statistics" if norm.norm.stateful else "keeps none"
            raise ValueError(
                f"{place}={norm!r} {keeps} and was given {type(state[place]).__name__}: pass "
                "the (params, state) that init of this layer returned"
            )
    if x.shape[-1] != params["w_x"].shape[0]:
        raise ValueError(
            f"x has {x.shape[-1]} features and the layer was made for "
            f"{params['w_x'].shape[0]}: x is {order}, of shape {x.shape}"
        )
    if 0 in x.shape:
        raise ValueError(f"x of shape {x.shape} is empty: {order} need at least 1 each")


def hidden_of(carry: PyTree) -> jax.Array:
    """Return the hidden state of a carry, whatever the cell."""
    return carry.h if hasattr(carry, "h") else carry


def with_hidden(carry: PyTree, h: jax.Array) -> PyTree:
    """Return a carry with another hidden state."""
    return carry._replace(h=h) if hasattr(carry, "h") else h


def hold(key: jax.Array | None, rate: float, old: jax.Array, new: jax.Array) -> jax.Array:
    """Keep each old value with probability `rate`, or mix by it where there is no key."""
    if not rate:
        return new
    if key is None:
        share = jnp.asarray(rate, new.dtype)
        return share * old + (1 - share) * new
    return jnp.where(jax.random.bernoulli(key, rate, new.shape), old, new)
