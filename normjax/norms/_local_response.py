"""Local response normalization."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Hyper, Norm, Stats
from normjax.norms._per_sample import widen
from normjax.statistics import _formulas, _measure
from normjax.statistics._types import Array, AxisName, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class LocalResponseNorm(Norm):
    """The value behind `local_response_norm`; see there."""

    factory: ClassVar[str] = "local_response_norm"

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    over: Literal["sum", "mean"] = "sum"

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Return `((), ())`: nothing is learned and nothing kept."""
        del shape, dtype, key
        return (), ()

    def moments(
        self, params: PyTree, x: Array, *, mask: Array | None = None, axis_name: AxisName = None
    ) -> jax.Array:
        """Return the sum of squares around each channel, of the shape of x."""
        del params, axis_name
        x = _checks.floating(x, self.factory)
        return _measure.window_square(x, self.size, mask=_checks.mask(mask, x.shape))

    def transform(
        self,
        params: PyTree,
        state: PyTree,
        measured: jax.Array,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Divide each response by the power of those around it."""
        del params, state, stats, hyper
        x = jnp.asarray(x)
        alpha = self.alpha / self.size if self.over == "mean" else self.alpha
        y = _formulas.affine(
            widen(x, mask), None, None, mul=(self.k + alpha * measured) ** -self.beta
        )
        return y.astype(x.dtype)


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

    The defaults are the paper's. Nothing is learned and nothing kept.

    Args:
        size: number n of channels in a window; beyond the edge they count as 0. For even n
            the window reaches one channel further down than up, as PyTorch's does.
        alpha: weight of the squares.
        beta: power of the denominator.
        k: constant of the denominator, positive (PyTorch's and TensorFlow's default is 1).
        over: what alpha weighs: `"sum"`, the sum over the window (the paper, TensorFlow), or
            `"mean"`, that sum over n (Caffe, PyTorch).

    Returns:
        A `Norm` without params and state, both `()`.

    Raises:
        ValueError: a number outside its range, unknown `over`.

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
    _checks.positive_int("size", size)
    _checks.positive("alpha", alpha, zero=True)
    _checks.positive("beta", beta, zero=True)
    _checks.positive("k", k)
    _checks.one_of("over", over, ("sum", "mean"))
    return LocalResponseNorm(size=size, alpha=alpha, beta=beta, k=k, over=over)
