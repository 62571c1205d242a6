"""What dynamic tanh and dynamic erf share: a bounded function of each value, and no statistics."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from normjax._internal import _checks
from normjax.base import Affine, Call, Norm
from normjax.norms._affine import check_affine, initial_affine
from normjax.statistics import _formulas
from normjax.statistics._shapes import broadcast_affine, broadcast_parameter, widen
from normjax.statistics._types import PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Dynamic(Norm):
    """A bounded function with a learned slope, and an affine over the last axis."""

    alpha_init: float = 0.5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: float = 1.0
    bias_init: float = 0.0

    def __post_init__(self) -> None:
        """Check that the initial values are plain numbers."""
        check_affine(self.scale_init, self.bias_init)
        _checks.number("alpha_init", self.alpha_init)

    @abc.abstractmethod
    def params(self, alpha: jax.Array, affine: Affine) -> PyTree:
        """Return the initial parameters."""

    @abc.abstractmethod
    def squash(self, params: PyTree, x: jax.Array, alpha: jax.Array) -> jax.Array:
        """Return the bounded function of x, in at least float32; `alpha` broadcasts to it."""

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[PyTree, PyTree]:
        """Return `(params, ())`, the affine over the last axis."""
        del key
        affine = initial_affine(self, shape[-1:], dtype)
        return self.params(jnp.full((), self.alpha_init, dtype), affine), ()

    def measure(self, params: PyTree, x: jax.Array, call: Call) -> None:
        """Measure nothing."""

    def transform(
        self, params: PyTree, state: PyTree, measured: None, x: jax.Array, call: Call
    ) -> jax.Array:
        """Squash each value."""
        del state, measured
        alpha = broadcast_parameter(params.alpha, (), x.shape)
        squashed = self.squash(params, widen(x, call.mask), alpha)
        scale, bias = broadcast_affine(params, (x.ndim - 1,), x.shape)
        return _formulas.affine(squashed, scale, bias).astype(x.dtype)
