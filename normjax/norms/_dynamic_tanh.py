"""Dynamic tanh: a replacement for layer norm that computes no statistics."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num

from normjax._internal import _hints
from normjax._internal._exportable import exportable
from normjax.base import Affine, Norm
from normjax.norms._dynamic import Dynamic
from normjax.statistics import _formulas
from normjax.statistics._types import Array


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
class DynamicTanh(Dynamic):
    """Dynamic tanh as a value; made by `dynamic_tanh`."""

    factory: ClassVar[str] = "dynamic_tanh"

    def params(self, alpha: jax.Array, affine: Affine) -> DynamicTanhParams:
        """Return the initial parameters."""
        return DynamicTanhParams(alpha, affine.scale, affine.bias)

    def squash(self, params: DynamicTanhParams, x: jax.Array, alpha: jax.Array) -> jax.Array:
        """Return tanh(alpha x)."""
        return jnp.tanh(_formulas.affine(x, alpha, None))


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
