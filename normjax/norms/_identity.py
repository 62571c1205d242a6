"""The norm that does nothing."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Affine, Hyper, Norm, Stats
from normjax.norms._affine import broadcast_affine, initial_affine
from normjax.norms._per_sample import widen
from normjax.statistics import _formulas
from normjax.statistics._types import Array, AxisName, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Identity(Norm):
    """The value behind `identity`; see there."""

    factory: ClassVar[str] = "identity"

    use_scale: bool = False
    use_bias: bool = False
    scale_init: float = 1.0
    bias_init: float = 0.0

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[Affine, PyTree]:
        """Return `(Affine, ())`, the affine over the last axis; `key` is not used."""
        del key
        return initial_affine(self, shape[-1:], dtype), ()

    def moments(
        self, params: Affine, x: Array, *, mask: Array | None = None, axis_name: AxisName = None
    ) -> None:
        """Measure nothing."""
        del params, x, mask, axis_name

    def transform(
        self,
        params: Affine,
        state: PyTree,
        measured: None,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Apply the affine alone."""
        del state, measured, stats, hyper
        x = jnp.asarray(x)
        at = broadcast_affine(params, (x.ndim - 1,), x.shape)
        return _formulas.affine(widen(x, mask), at.scale, at.bias).astype(x.dtype)


@_hints.with_hints()
def identity(
    *,
    use_scale: bool = False,
    use_bias: bool = False,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
) -> Norm:
    r"""No normalization, with the affine of one: the control of every ablation.

    $$y = \gamma \odot x + \beta$$

    The recurrent paper's LSTM baseline keeps a bias on the cell, `identity(use_bias=True)`,
    so that only the statistics differ.

    Args:
        use_scale: whether there is a gain over the last axis.
        use_bias: whether there is a bias over the last axis.
        scale_init: start of the gain.
        bias_init: start of the bias.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        TypeError: a start that is not a plain number.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.identity(use_bias=True, bias_init=1.0)
        >>> params, state = norm.init((1, 2))
        >>> norm.apply(params, state, jnp.zeros((1, 2)), stats="batch")[0].tolist()
        [[1.0, 1.0]]

    Reference:
        Cooijmans, Ballas, Laurent, Gulcehre, Courville, "Recurrent Batch Normalization", 2017
        (the baseline of its experiments).
    """
    _checks.number("scale_init", scale_init)
    _checks.number("bias_init", bias_init)
    return Identity(use_scale, use_bias, scale_init, bias_init)
