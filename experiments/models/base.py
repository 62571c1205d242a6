"""Defines `Model`, the contract between a network and the task that trains it, and its parts.

A model is a frozen dataclass with pure functions. It has every norm from `NormConfig`, and passes
it the mode, the mask and the device axis of the call, so that batch statistics, padding and
population statistics work for every norm in every place.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import normjax

Tree = Any


class Data(NamedTuple):
    """What a data set's examples look like.

    Attributes:
        kind: "image", "sequence" (with a label each), or "text" (predict the next token).
        shape: of one example as the model gets it: `[H, W, C]`, `[T, features]`, or `[T]` for
            tokens and words.
        outputs: classes, or tokens of a text.
        vocabulary: how many tokens or words there are; 0 for numbers.
    """

    kind: str
    shape: tuple[int, ...]
    outputs: int
    vocabulary: int = 0

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of a batch of two examples."""
        dtype = jnp.int32 if self.vocabulary else jnp.float32
        return jax.ShapeDtypeStruct((2, *self.shape), dtype)


class Call(NamedTuple):
    """How a model is called.

    Attributes:
        stats: "batch" or "running", as for a norm.
        train: whether dropout draws.
        mask: True where a value counts: `[batch]` for images, `[batch, time]` for sequences; None
            if all do.
        key: PRNG key of this step; None where nothing is drawn.
        axis_name: device axis that the batch is split over.
    """

    stats: str = "batch"
    train: bool = False
    mask: jax.Array | None = None
    key: jax.Array | None = None
    axis_name: str | None = None

    def norm(self, norm: Any, params: Tree, state: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
        """Normalize x, whose first axes are those of the mask; without a norm return it."""
        if norm is None:
            return x, state
        mask = self.mask
        if mask is not None:
            mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
        how: dict[str, Any] = {"stats": self.stats, "mask": mask, "axis_name": self.axis_name}
        return norm.apply(params, state, x, **how)

    def dropout(self, x: jax.Array, rate: float, number: int) -> jax.Array:
        """Set values to 0 with a probability, in training; `number` tells places apart."""
        if not rate or not self.train or self.key is None:
            return x
        kept = jax.random.bernoulli(jax.random.fold_in(self.key, number), 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))

    def average(self, x: jax.Array) -> jax.Array:
        """Average over the axes between the first and the last, without what is masked."""
        axes = tuple(range(1, x.ndim - 1))
        if self.mask is None or self.mask.ndim == 1:
            return x.mean(axes)
        mask = self.mask[..., None]  # [batch, time, 1]
        total = jnp.where(mask, x, jnp.zeros((), x.dtype)).sum(1)
        return total / jnp.maximum(mask.sum(1), 1).astype(x.dtype)


class Model(abc.ABC):
    """A network as pure functions; subclasses are frozen dataclasses."""

    @classmethod
    def of(cls, model: Mapping[str, Any], norms: Mapping[str, Any], data: Data) -> Model:
        """Build a model whose fields are the keys of `config.model`, its norms and `data`."""
        keys = {k: tuple(v) if isinstance(v, list) else v for k, v in model.items()}
        return cls(**{**keys, **norms, "data": data})

    @abc.abstractmethod
    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Return `(params, state)`, nested dictionaries; the state is that of the norms."""

    @abc.abstractmethod
    def apply(self, params: Tree, state: Tree, x: jax.Array, call: Call) -> tuple[jax.Array, Tree]:
        """Return logits and the next state.

        Logits are `[batch, outputs]`, for a text `[batch, time, outputs]`.
        """


def he(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw a kernel of variance 2 / fan in, for ReLU and its like."""
    return _normal(key, shape, 2.0)


def lecun(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw a kernel of variance 1 / fan in."""
    return _normal(key, shape, 1.0)


def _normal(key: jax.Array, shape: tuple[int, ...], gain: float) -> jax.Array:
    fan = 1
    for size in shape[:-1]:
        fan *= size
    return (gain / fan) ** 0.5 * jax.random.normal(key, shape)


def dense(key: jax.Array, inputs: int, outputs: int, *, bias: bool = True) -> Tree:
    """Return the parameters of a dense layer."""
    params = {"kernel": lecun(key, (inputs, outputs))}
    return params | {"bias": jnp.zeros((outputs,))} if bias else params


def linear(params: Tree, x: jax.Array) -> jax.Array:
    """Apply a dense layer to the last axis."""
    y = x @ params["kernel"]
    return y + params["bias"] if "bias" in params else y


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, *, groups: int = 1) -> jax.Array:
    """Convolve `[n, h, w, c]` with `[kh, kw, c / groups, out]`; the side shrinks by the stride."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def init_norm(norm: normjax.Norm | None, shape: tuple[int, ...], key: Any) -> tuple:
    """Return `(params, state)` of a norm for inputs of a shape; empty without one."""
    return ((), ()) if norm is None else norm.init(shape, key=key)


def starts_at_zero(norm: normjax.Norm | None) -> normjax.Norm | None:
    """Return the norm with an initial scale of 0, if it has a scale."""
    names = {field.name for field in dataclasses.fields(norm)} if norm is not None else set()
    if norm is None or "scale_init" not in names or not getattr(norm, "use_scale", True):
        return norm
    return dataclasses.replace(norm, scale_init=0.0)  # type: ignore[call-arg]
