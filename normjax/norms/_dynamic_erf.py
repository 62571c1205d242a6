"""Dynamic erf (Derf): dynamic tanh with the error function and a learned shift."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num

from normjax._internal import _checks, _hints
from normjax._internal._exportable import exportable
from normjax.base import Affine, Norm
from normjax.norms._channel_stats import require_real
from normjax.norms._dynamic import Dynamic
from normjax.statistics import _formulas
from normjax.statistics._shapes import broadcast_parameter
from normjax.statistics._types import Array


@exportable
class DynamicErfParams(NamedTuple):
    """Parameters of `dynamic_erf`.

    Attributes:
        alpha: slope of the argument, a scalar.
        shift: added to the argument, a scalar.
        scale: gamma, one per feature, or `None`.
        bias: beta, one per feature, or `None`.
    """

    alpha: Num[Array, "*samples"]
    shift: Num[Array, "*samples"]
    scale: Num[Array, "*features"] | None
    bias: Num[Array, "*features"] | None


@dataclasses.dataclass(frozen=True, repr=False)
class DynamicErf(Dynamic):
    """Dynamic erf as a value; made by `dynamic_erf`."""

    factory: ClassVar[str] = "dynamic_erf"

    shift_init: float = 0.0

    def __post_init__(self) -> None:
        """Check that the initial values are plain numbers."""
        super().__post_init__()
        _checks.number("shift_init", self.shift_init)

    def params(self, alpha: jax.Array, affine: Affine) -> DynamicErfParams:
        """Return the initial parameters."""
        shift = jnp.full((), self.shift_init, alpha.dtype)
        return DynamicErfParams(alpha, shift, affine.scale, affine.bias)

    def squash(self, params: DynamicErfParams, x: jax.Array, alpha: jax.Array) -> jax.Array:
        """Return erf(alpha x + shift)."""
        require_real(x, self.factory)
        shift = broadcast_parameter(params.shift, (), x.shape)
        return jax.lax.erf(_formulas.affine(x, alpha, shift))


@_hints.with_hints()
def dynamic_erf(
    *,
    alpha_init: float = 0.5,
    shift_init: float = 0.0,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
) -> Norm:
    r"""Dynamic erf (Derf): squashes values by the error function, without statistics.

    $$y = \gamma \odot \mathrm{erf}(\alpha x + s) + \beta$$

    Like `dynamic_tanh` it replaces the layer norms of a transformer. It approaches its bounds
    faster than tanh, and has a learned shift s before the function, one for the whole layer.

    Args:
        alpha_init: initial value of the one learned slope; 0.5 in the authors' code, and 1 in
            their language model.
        shift_init: initial value of the one learned shift; 0 in the authors' code.
        use_scale: whether there is a gain over the last axis.
        use_bias: whether there is a bias over the last axis.
        scale_init: initial gain.
        bias_init: initial bias.

    Returns:
        A `Norm` with params `DynamicErfParams` and no state.

    Raises:
        TypeError: an initial value is not a plain number.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.dynamic_erf()
        >>> params, state = norm.init((1, 2))
        >>> y, state = norm.apply(params, state, jnp.array([[-100.0, 1.0]]), stats="batch")
        >>> [round(v, 3) for v in y[0].tolist()]
        [-1.0, 0.52]

    Reference:
        Chen, Lu, Zhu, Sun, Liu, "Stronger Normalization-Free Transformers", 2025.
    """
    return DynamicErf(**locals())
