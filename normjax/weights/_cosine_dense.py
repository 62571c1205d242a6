"""Cosine normalization: a dense layer whose outputs depend on angles only."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Inexact

from normjax._internal import _checks, _hints
from normjax.base import Norm, Stats
from normjax.statistics import _formulas, _moments, _shapes
from normjax.statistics._types import Array, PyTree
from normjax.weights import _direction


@dataclasses.dataclass(frozen=True, repr=False)
class CosineDense:
    """A cosine-normalized dense layer as a value; made by `cosine_dense`."""

    factory: ClassVar[str] = "cosine_dense"

    hidden: int
    centered: bool = False
    eps: float = 1e-12
    use_scale: bool = False
    use_bias: bool = False
    scale_init: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        _checks.positive_int("hidden", self.hidden)
        _checks.positive("eps", self.eps, zero=True)
        _checks.number("scale_init", self.scale_init)

    def init(
        self, key: jax.Array, features: int, dtype: Any = jnp.float32
    ) -> tuple[dict[str, jax.Array], PyTree]:
        """Make `(params, ())`: `kernel` `[features, hidden]`, and `scale` and `bias` if used.

        Args:
            key: PRNG key.
            features: size of the last axis of the inputs.
            dtype: dtype of the parameters.

        Returns:
            `(params, state)`. The kernel's directions are uniform; its lengths make no difference.

        Raises:
            TypeError: `features` is an array or a shape.
            ValueError: `features` is not a positive integer.
        """
        _checks.features(features)
        kernel = jax.nn.initializers.lecun_normal()(key, (features, self.hidden), dtype)
        params = {"kernel": kernel}
        if self.use_scale:
            params["scale"] = jnp.full((self.hidden,), self.scale_init, dtype)
        if self.use_bias:
            params["bias"] = jnp.zeros((self.hidden,), dtype)
        return params, ()

    def apply(
        self,
        params: PyTree,
        state: PyTree,
        x: Inexact[Array, "*batch features"],
        *,
        stats: Stats,
    ) -> tuple[Inexact[jax.Array, "*batch hidden"], PyTree]:
        """Return `(y, state)`; both modes are the same.

        Args:
            params: what `init` returned.
            state: `()`.
            x: floating, features last.
            stats: `"batch"` or `"running"`.

        Returns:
            Outputs of the dtype of `x`, within [-1, 1] before the affine, and the state.

        Raises:
            TypeError: `x` is not floating.
            ValueError: the features of `x` are not those of the kernel.
        """
        _checks.stats(stats)
        x = _checks.floating(x, self.factory)
        kernel = jnp.asarray(params["kernel"])
        if x.ndim < 1 or x.shape[-1] != kernel.shape[0]:
            raise ValueError(
                f"x of shape {x.shape} does not end in the {kernel.shape[0]} features that the "
                f"layer was made for: write init(key, features={x.shape[-1] if x.ndim else 1})"
            )
        dtype = _shapes.stat_dtype(x.dtype)
        # Rows [*batch, features] and columns [features, hidden], each brought to length 1.
        rows, columns = x.astype(dtype), kernel.astype(dtype)
        if self.centered:
            rows, columns = _centre(rows, x.ndim - 1), _centre(columns, 0)
        rows = _direction.unit(rows, (x.ndim - 1,), eps=self.eps)
        columns = _direction.unit(columns, (0,))
        y = jnp.matmul(rows.astype(x.dtype), columns.astype(x.dtype), preferred_element_type=dtype)
        y = _formulas.affine(y, params.get("scale"), params.get("bias"))
        return y.astype(x.dtype), state

    __repr__ = Norm.__repr__


def _centre(x: jax.Array, axis: int) -> jax.Array:
    """Subtract the mean over one axis."""
    remaining = [a for a in range(x.ndim) if a != axis]
    return x - _shapes.expand(_moments.moments(x, axis).mean, remaining, x.ndim)


@_hints.with_hints()
def cosine_dense(
    hidden: int,
    *,
    centered: bool = False,
    eps: float = 1e-12,
    use_scale: bool = False,
    use_bias: bool = False,
    scale_init: float = 1.0,
) -> CosineDense:
    r"""Cosine normalization: a dense layer that computes cosines instead of dot products.

    $$y_j = \frac{w_j \cdot x}{\|w_j\|\,\|x\|}, \qquad \text{centered: } \;
      y_j = \frac{(w_j - \bar w_j) \cdot (x - \bar x)}
                 {\|w_j - \bar w_j\|\,\|x - \bar x\|}$$

    It normalizes weights and inputs at once, so it is a layer, not a `Norm` or a `Reparam`.
    Outputs lie within [-1, 1]. A zero input or weight vector gives 0, with a finite gradient.

    Args:
        hidden: number of outputs.
        centered: subtract the means over the input features first: Pearson's correlation.
        eps: added to the squared length of the input; it bounds the gradient by 1/sqrt(eps).
            The paper has none.
        use_scale: learn a gain for each output, which the last layer of a classifier needs.
        use_bias: learn a bias.
        scale_init: initial gain.

    Returns:
        A hashable layer with `init(key, features, dtype) -> (params, state)` and
        `apply(params, state, x, *, stats) -> (y, state)`.

    Raises:
        TypeError: `scale_init` is not a plain number.
        ValueError: a number is outside its range.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> layer = nj.cosine_dense(2)
        >>> params = {"kernel": jnp.array([[2.0, 0.0], [0.0, 5.0]])}
        >>> y, state = layer.apply(params, (), jnp.array([[3.0, 4.0]]), stats="batch")
        >>> [round(v, 3) for v in y[0].tolist()]
        [0.6, 0.8]

    Reference:
        Luo, Zhan, Wang, Yang, "Cosine Normalization: Using Cosine Similarity Instead of Dot
        Product in Neural Networks", 2018.
    """
    return CosineDense(**locals())
