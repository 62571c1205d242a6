"""Defines what every recurrent layer has, `Layer`, and what `info` returns, `Info`."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from normjax._internal._exportable import exportable
from normjax.base import Norm
from normjax.statistics._types import PyTree

NormAt = Callable[[str, jax.Array], jax.Array]
Gates = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, repr=False)
class Layer(abc.ABC):
    """A recurrent layer, a stack of them, a bidirectional pair, or one reparametrized.

    Like a `Norm` each is a hashable value with equality, `repr` and pickle.
    """

    factory: ClassVar[str] = "layer"

    @property
    @abc.abstractmethod
    def features_out(self) -> int:
        """Size of the last axis of the outputs."""

    @property
    @abc.abstractmethod
    def hyper_names(self) -> frozenset[str]:
        """Names that `hyper` may carry, those of all norms."""

    @property
    @abc.abstractmethod
    def stateful(self) -> bool:
        """Whether any norm keeps statistics."""

    @property
    @abc.abstractmethod
    def needs_key(self) -> bool:
        """Whether `apply` needs a PRNG key in every mode."""

    @property
    @abc.abstractmethod
    def has_dropout(self) -> bool:
        """Whether there is zoneout or dropout: they draw in mode `"batch"`, and need a key."""

    @property
    @abc.abstractmethod
    def time_major(self) -> bool:
        """Whether sequences are `[time, batch, features]`."""

    @abc.abstractmethod
    def init(self, key: jax.Array, features: int, dtype: Any = jnp.float32) -> Any:
        """Make `(params, state)`."""

    @abc.abstractmethod
    def apply(self, *args: Any, **keywords: Any) -> Any:
        """Run over a sequence: `apply(params, state, x, *, stats, …) -> ((y, carry), state)`."""

    @abc.abstractmethod
    def apply_with_info(self, *args: Any, **keywords: Any) -> tuple[jax.Array, Any]:
        """Run as `apply` and return `(y, info)`: the outputs, and what `info` returns."""

    @abc.abstractmethod
    def output(self, carry: PyTree) -> jax.Array:
        """Return the last outputs `[batch, features]` from the carry that `apply` returned.

        They are those of each sequence's last step: `recurrent.last(y, lengths)`, but that a
        bidirectional pair gives each direction's last step, where it has read the whole sequence.
        """

    def info(self, *args: Any, **keywords: Any) -> Any:
        """Run as `apply` and return what happened inside: statistics, gates, hidden norms.

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
            >>> measured = net.info(params, state, x, stats="batch")
            >>> measured["layer_1"].moments["norm_h"].mean.shape
            (5, 16)
            >>> measured["layer_0"].saturated["forget"].shape
            (5,)
        """
        return self.apply_with_info(*args, **keywords)[1]

    __repr__ = Norm.__repr__


@exportable
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
