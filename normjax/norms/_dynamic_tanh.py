"""Dynamic Tanh: a layer in the place of a norm that averages nothing."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num

from normjax._internal import _checks, _hints
from normjax.base import Affine, Hyper, Norm, Stats
from normjax.norms._affine import broadcast_affine, broadcast_one, initial_affine
from normjax.norms._per_sample import widen
from normjax.statistics import _formulas
from normjax.statistics._types import Array, AxisName, PyTree


class DynamicTanhParams(NamedTuple):
    """Parameters of `dynamic_tanh`.

    Attributes:
        alpha: slope at 0, a scalar.
        scale: gamma, one a feature, or `None`.
        bias: beta, one a feature, or `None`.
    """

    alpha: Num[Array, "*samples"]
    scale: Num[Array, "*features"] | None
    bias: Num[Array, "*features"] | None


@dataclasses.dataclass(frozen=True, repr=False)
class DynamicTanh(Norm):
    """The value behind `dynamic_tanh`; see there."""

    factory: ClassVar[str] = "dynamic_tanh"

    alpha_init: float = 0.5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: float = 1.0
    bias_init: float = 0.0

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[DynamicTanhParams, PyTree]:
        """Return `(Tanh, ())`, the affine over the last axis; `key` is not used."""
        del key
        affine = initial_affine(self, shape[-1:], dtype)
        return DynamicTanhParams(
            jnp.full((), self.alpha_init, dtype), affine.scale, affine.bias
        ), ()

    def moments(
        self,
        params: DynamicTanhParams,
        x: Array,
        *,
        mask: Array | None = None,
        axis_name: AxisName = None,
    ) -> None:
        """Measure nothing."""
        del params, x, mask, axis_name

    def transform(
        self,
        params: DynamicTanhParams,
        state: PyTree,
        measured: None,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Squash each value by itself."""
        del state, measured, stats, hyper
        x = jnp.asarray(x)
        alpha = broadcast_one(params.alpha, (), x.shape)
        squashed = jnp.tanh(_formulas.affine(widen(x, mask), alpha, None))
        at = broadcast_affine(Affine(params.scale, params.bias), (x.ndim - 1,), x.shape)
        return _formulas.affine(squashed, at.scale, at.bias).astype(x.dtype)


@_hints.with_hints()
def dynamic_tanh(
    *,
    alpha_init: float = 0.5,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
) -> Norm:
    r"""Dynamic tanh: the squashing that layer norm amounts to, without its statistics.

    $$y = \gamma \odot \tanh(\alpha x) + \beta$$

    Args:
        alpha_init: start of the one learned slope; 0.5, the paper's. For large language models
            it advises more in front of attention than elsewhere (0.8 and 0.2 at 7B).
        use_scale: whether there is a gain over the last axis.
        use_bias: whether there is a bias over the last axis.
        scale_init: start of the gain.
        bias_init: start of the bias.

    Returns:
        A `Norm` with params `Tanh` and no state.

    Raises:
        TypeError: a start that is not a plain number.

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
    for name, value in (
        ("alpha_init", alpha_init),
        ("scale_init", scale_init),
        ("bias_init", bias_init),
    ):
        _checks.number(name, value)
    return DynamicTanh(alpha_init, use_scale, use_bias, scale_init, bias_init)
