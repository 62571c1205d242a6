"""Local response normalization, over neighbouring channels."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Call, Norm
from normjax.statistics import _core, _formulas
from normjax.statistics._shapes import widen
from normjax.statistics._types import PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class LocalResponseNorm(Norm):
    """Local response normalization as a value; made by `local_response_norm`."""

    factory: ClassVar[str] = "local_response_norm"

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    over: str = "sum"

    def __post_init__(self) -> None:
        """Check the fields."""
        _checks.positive_int("size", self.size)
        _checks.positive("alpha", self.alpha, zero=True)
        _checks.positive("beta", self.beta, zero=True)
        _checks.positive("k", self.k)
        _checks.one_of("over", self.over, ("sum", "mean"))

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[PyTree, PyTree]:
        """Return `((), ())`: there are no parameters and no state."""
        del shape, dtype, key
        return (), ()

    def measure(self, params: PyTree, x: jax.Array, call: Call) -> jax.Array:
        """Return the sum of squares in a window around each channel, of the shape of x."""
        del params
        return _core.window_square(x, self.size, call.mask)

    def transform(
        self, params: PyTree, state: PyTree, measured: jax.Array, x: jax.Array, call: Call
    ) -> jax.Array:
        """Divide each value by (k + alpha * sum of squares) to the power beta."""
        del params, state
        alpha = self.alpha / self.size if self.over == "mean" else self.alpha
        # NaN where the sum is beyond float32: the power would be 0, and the output with it.
        measured = jnp.where(measured < jnp.inf, measured, jnp.nan)
        power = (self.k + alpha * measured) ** -self.beta
        return _formulas.affine(widen(x, call.mask), None, None, mul=power).astype(x.dtype)


@_hints.with_hints()
def local_response_norm(
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    over: Literal["sum", "mean"] = "sum",
) -> Norm:
    r"""Local response normalization over neighbouring channels; channels are last.

    $$y_c = x_c \Big/ \Big(k + \alpha \sum_{c' = c - \lfloor n/2 \rfloor}
      ^{c + \lfloor (n-1)/2 \rfloor} x_{c'}^2\Big)^{\beta}$$

    The defaults are the paper's. There are no parameters and there is no state.

    Args:
        size: number n of channels in a window; channels beyond the edge count as 0. For even n
            the window reaches one channel further down than up, as PyTorch's does.
        alpha: weight of the squares.
        beta: power of the denominator.
        k: constant of the denominator, positive (PyTorch's and TensorFlow's default is 1).
        over: what alpha multiplies: `"sum"`, the sum over the window (the paper, TensorFlow), or
            `"mean"`, the sum divided by n (Caffe, PyTorch).

    Returns:
        A `Norm` whose params and state are `()`.

    Raises:
        ValueError: a number is outside its range, or `over` is unknown.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.local_response_norm(size=3, alpha=1.0, beta=1.0, k=1.0)
        >>> y, _ = norm.apply((), (), jnp.array([[1.0, 2.0, 0.0]]), stats="batch")
        >>> [round(v, 3) for v in y[0].tolist()]
        [0.167, 0.333, 0.0]

    Reference:
        Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural
        Networks", 2012.
    """
    return LocalResponseNorm(**locals())
