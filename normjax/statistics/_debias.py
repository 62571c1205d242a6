r"""Running averages without their start: beside each, `weight` says how much of it is data.

After n updates of decay d, 1 - d^n of an exponential average is data and d^n still the start. With
the weight W of the data known, each batch enters with w / W' instead of w = 1 - d,

$$W' = w + (1 - w) W, \qquad r' = r + \tfrac{w}{W'}\,(m - r)$$

so that the average is that of the data alone at every time: the first batch replaces the start.
(Adam's correction of its start, kept in the average itself.)

With warmup the decay also grows with the number of batches: the n-th has at least the weight
9 / (n + 8), that of TensorFlow's `num_updates`, so that a young average follows weights that move
fast. W is as without it; n = log(1 - W) / log d is read from it.

A debiased type is a subclass of the one that it is made of: the same fields, and taken wherever
that one is. As a pytree it has one leaf more, `weight`, of the shape of the counts.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from normjax._internal._exportable import exportable_node
from normjax.statistics._compensated import Compensated, compensated_type, error_names
from normjax.statistics._types import Array, PyTree, Running, RunningCov, RunningMean

WEIGHT = "weight"


class Debiased:
    """What debiased types have in common; `biased` is the type that one is a subclass of."""

    biased: Any
    names: tuple[str, ...]
    _fields: tuple[str, ...]

    def __new__(cls, *values: Any, **named: Any) -> Any:
        """Make one of its fields and of `weight`; one that is not given is 1: all of it is data."""
        fields = dict(zip(cls.names, values, strict=False)) | named
        given = {WEIGHT: fields.pop(WEIGHT)} if WEIGHT in fields else {}
        self = cls.biased.__new__(cls, **fields)
        vars(self).update(given)
        return self

    @functools.cached_property
    def weight(self: Any) -> Any:
        """How much of the statistics is data, of the shape of the counts: 0 at the start."""
        return _ones_like_counts(self)

    def _asdict(self: Any) -> dict[str, Any]:
        """Return fields and weight by name."""
        return dict(zip(self.names, _children(self), strict=True))

    def _replace(self: Any, **changes: Any) -> Any:
        """Return one with other fields."""
        return type(self)(**self._asdict() | changes)

    def __repr__(self) -> str:
        """Return fields and weight by name."""
        inside = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
        return f"{type(self).__name__}({inside})"

    def __reduce__(self: Any) -> Any:
        """Pickle by the plain type."""
        plain = getattr(self.biased, "plain", self.biased)
        return _rebuild, (plain, plain is not self.biased, _children(self))


@functools.cache
def debiased_type(biased: Any) -> Any:
    """Return the debiased type of running statistics, plain or compensated."""
    errors = error_names(biased) if issubclass(biased, Compensated) else ()
    names = (*biased._fields, *errors, WEIGHT)
    body = {"biased": biased, "names": names, "__doc__": Debiased.__doc__}
    made = type(f"Debiased{biased.__name__}", (Debiased, biased), body)
    keys = [jax.tree_util.GetAttrKey(name) for name in names]
    jax.tree_util.register_pytree_with_keys(
        made,
        lambda self: (tuple(zip(keys, _children(self), strict=True)), None),
        lambda _, leaves: made(*leaves),
        lambda self: (_children(self), None),
    )
    return made


def _children(self: Any) -> tuple[PyTree, ...]:
    errors = self.error if isinstance(self, Compensated) else ()
    return (*self, *errors, self.weight)


def _rebuild(plain: type, compensated: bool, leaves: Any) -> Any:
    return debiased_type(compensated_type(plain) if compensated else plain)(*leaves)


# Made at once, so that one that was pickled can be a leaf of any tree.
for _plain in (Running, RunningCov, RunningMean):
    for _biased in (_plain, compensated_type(_plain)):
        exportable_node(debiased_type(_biased), lambda cls, leaves: cls(*leaves))


def _ones_like_counts(running: Any) -> jax.Array:
    """Return 1 for each set: the mean's shape, without the features of a covariance."""
    mean = jnp.asarray(running[0])
    extra = jnp.ndim(running[1]) - mean.ndim if len(running) > 1 else 0
    return jnp.ones(mean.shape[: mean.ndim - extra], jnp.finfo(mean.dtype).dtype)


def debias(running: PyTree) -> Any:
    """Return statistics of the start that will leave it out: no part of them is data."""
    errors = running.error if isinstance(running, Compensated) else ()
    biased: Any = type(running)
    return debiased_type(biased)(*running, *errors, jnp.zeros_like(_ones_like_counts(running)))


def data_weights(
    weight: jax.Array, w: Any, warmup: bool | Array = False
) -> tuple[jax.Array, jax.Array]:
    """Return the next weight of the data, and how much the new batch is of it.

    Args:
        weight: the weight of the data so far.
        w: 1 - decay.
        warmup: whether the n-th batch is at least 9 / (n + 8) of it; an array says where.
    """
    w = jnp.asarray(w).astype(weight.dtype)
    total = w + (1 - w) * weight  # exactly w at first, whose share is then exactly 1
    share = jnp.where(total > 0, w / jnp.where(total > 0, total, 1), 0)
    if isinstance(warmup, bool) and not warmup:
        return total, share
    # Kept from 0 and 1, where a logarithm has no value. The upper bound makes n at most 16 / w,
    # where w has long been more than 9 / (n + 8); at w = 0 nothing moves.
    eps = jnp.finfo(w.dtype).eps
    inside = [jnp.clip(v, eps, 1 - eps) for v in (total, w)]
    n = jnp.log1p(-inside[0]) / jnp.log1p(-inside[1])
    grows = (w > 0) & jnp.asarray(warmup).astype(bool)
    return total, jnp.where(grows, jnp.maximum(share, 9 / (n + 8)), share)
