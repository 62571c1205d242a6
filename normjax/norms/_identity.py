"""A norm that does not normalize: the control of an ablation."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from normjax._internal import _hints
from normjax.base import Affine, Call, Norm
from normjax.norms._affine import check_affine, initial_affine
from normjax.statistics import _formulas
from normjax.statistics._shapes import broadcast_affine, widen
from normjax.statistics._types import PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Identity(Norm):
    """No normalization as a value; made by `identity`."""

    factory: ClassVar[str] = "identity"

    use_scale: bool = False
    use_bias: bool = False
    scale_init: float = 1.0
    bias_init: float = 0.0

    def __post_init__(self) -> None:
        """Check that the initial values are plain numbers."""
        check_affine(self.scale_init, self.bias_init)

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[Affine, PyTree]:
        """Return `(Affine, ())`, the affine over the last axis."""
        del key
        return initial_affine(self, shape[-1:], dtype), ()

    def measure(self, params: Affine, x: jax.Array, call: Call) -> None:
        """Measure nothing."""

    def transform(
        self, params: Affine, state: PyTree, measured: None, x: jax.Array, call: Call
    ) -> jax.Array:
        """Apply only the affine."""
        del state, measured
        scale, bias = broadcast_affine(params, (x.ndim - 1,), x.shape)
        return _formulas.affine(widen(x, call.mask), scale, bias).astype(x.dtype)


@_hints.with_hints()
def identity(
    *,
    use_scale: bool = False,
    use_bias: bool = False,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
) -> Norm:
    r"""Apply the affine of a norm without normalizing: the control of an ablation.

    $$y = \gamma \odot x + \beta$$

    The LSTM baseline of the recurrent batch norm paper has a bias on the cell,
    `identity(use_bias=True)`, so that only the statistics differ.

    Args:
        use_scale: whether there is a gain over the last axis.
        use_bias: whether there is a bias over the last axis.
        scale_init: initial gain.
        bias_init: initial bias.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        TypeError: an initial value is not a plain number.

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
    return Identity(**locals())
