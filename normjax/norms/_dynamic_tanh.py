"""Dynamic tanh: a replacement for layer norm that computes no statistics."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num

from normjax._internal import _checks, _hints
from normjax._internal._exportable import exportable
from normjax.base import Call, Norm
from normjax.norms._affine import check_affine, initial_affine
from normjax.statistics import _formulas
from normjax.statistics._shapes import broadcast_affine, broadcast_parameter, widen
from normjax.statistics._types import Array, PyTree


@exportable
class DynamicTanhParams(NamedTuple):
    """Parameters of `dynamic_tanh`.

    Attributes:
        alpha: slope at 0, a scalar.
        scale: gamma, one per feature, or `None`.
        bias: beta, one per feature, or `None`.
    """

    alpha: Num[Array, "*samples"]
    scale: Num[Array, "*features"] | None
    bias: Num[Array, "*features"] | None


@dataclasses.dataclass(frozen=True, repr=False)
class DynamicTanh(Norm):
    """Dynamic tanh as a value; made by `dynamic_tanh`."""

    factory: ClassVar[str] = "dynamic_tanh"

    alpha_init: float = 0.5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: float = 1.0
    bias_init: float = 0.0

    def __post_init__(self) -> None:
        """Check that the initial values are plain numbers."""
        check_affine(self.scale_init, self.bias_init)
        _checks.number("alpha_init", self.alpha_init)

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[DynamicTanhParams, PyTree]:
        """Return `(DynamicTanhParams, ())`, the affine over the last axis."""
        del key
        affine = initial_affine(self, shape[-1:], dtype)
        alpha = jnp.full((), self.alpha_init, dtype)
        return DynamicTanhParams(alpha, affine.scale, affine.bias), ()

    def measure(self, params: DynamicTanhParams, x: jax.Array, call: Call) -> None:
        """Measure nothing."""

    def transform(
        self, params: DynamicTanhParams, state: PyTree, measured: None, x: jax.Array, call: Call
    ) -> jax.Array:
        """Squash each value."""
        del state, measured
        alpha = broadcast_parameter(params.alpha, (), x.shape)
        squashed = jnp.tanh(_formulas.affine(widen(x, call.mask), alpha, None))
        scale, bias = broadcast_affine(params, (x.ndim - 1,), x.shape)
        return _formulas.affine(squashed, scale, bias).astype(x.dtype)


@_hints.with_hints()
def dynamic_tanh(
    *,
    alpha_init: float = 0.5,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
) -> Norm:
    r"""Dynamic tanh: squashes values as layer norm effectively does, without statistics.

    $$y = \gamma \odot \tanh(\alpha x) + \beta$$

    Args:
        alpha_init: initial value of the one learned slope; 0.5 in the paper. For large language
            models the paper recommends a larger one before attention than elsewhere (0.8 and 0.2
            at 7B).
        use_scale: whether there is a gain over the last axis.
        use_bias: whether there is a bias over the last axis.
        scale_init: initial gain.
        bias_init: initial bias.

    Returns:
        A `Norm` with params `DynamicTanhParams` and no state.

    Raises:
        TypeError: an initial value is not a plain number.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.dynamic_tanh()
        >>> params, state = norm.init((1, 2))
        >>> y, state = norm.apply(params, state, jnp.array([[-100.0, 1.0]]), stats="batch")
        >>> [round(v, 3) for v in y[0].tolist()]
        [-1.0, 0.462]

    Reference:
        Zhu, Chen, He, LeCun, Liu, "Transformers without Normalization", 2025.
    """
    return DynamicTanh(**locals())
