"""Fits whitening matrices to moments and applies them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Inexact

from normjax._internal import _checks
from normjax._internal._exportable import exportable
from normjax.norms._inverse_root import inverse_root
from normjax.statistics import _formulas, _shapes
from normjax.statistics._types import Array, RunningCov, SecondMoments


@exportable
class Whitening(NamedTuple):
    """A fitted whitening, y = matrix (x - mean) for each vector x.

    Attributes:
        matrix: `[*sets, outputs, features]`.
        mean: `[*sets, features]`.
    """

    matrix: Inexact[Array, "*sets outputs features"]
    mean: Inexact[Array, "*sets features"]


def zca_whitening(m: SecondMoments | RunningCov, eps: float) -> Whitening:
    r"""Fit the whitening by the symmetric inverse root: the whitening whose output is closest to x.

    $$W = (\Sigma + \epsilon I)^{-1/2}$$

    Its gradient is finite even at equal eigenvalues.

    Args:
        m: mean and covariance, such as `second_moments(x)` returns.
        eps: added to the variances, positive.

    Returns:
        `Whitening`.

    Raises:
        ValueError: `eps` is not positive.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> x = jax.random.normal(jax.random.key(0), (64, 2)) @ jnp.array([[2.0, 0.0], [1.0, 1.0]])
        >>> y = nj.whiten(x, nj.zca_whitening(nj.second_moments(x), 1e-6))
        >>> bool(jnp.allclose(nj.second_moments(y).cov, jnp.eye(2), atol=1e-4))
        True

    Reference:
        Bell, Sejnowski, "The independent components of natural scenes are edge filters", 1997;
        Kessy, Lewin, Strimmer, "Optimal Whitening and Decorrelation", 2018.
    """
    _checks.positive("eps", eps)
    return Whitening(inverse_root(_ridge(m.cov, eps), eps), m.mean)


def pca_whitening(m: SecondMoments | RunningCov, eps: float) -> Whitening:
    r"""Fit the whitening onto the principal axes, the axis of largest variance first.

    $$W = (\Lambda + \epsilon I)^{-1/2} U^*, \qquad \Sigma = U \Lambda U^*$$

    The sign of an axis is chosen so that its largest entry is positive. It carries no gradient,
    because axes of equal eigenvalues are not a function of the covariance. For a smooth whitening
    use `zca_whitening`.

    Args:
        m: mean and covariance, such as `second_moments(x)` returns.
        eps: added to the variances, positive.

    Returns:
        `Whitening`; the first k rows of its matrix are the whitened projection on k axes.

    Raises:
        ValueError: `eps` is not positive.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> x = jnp.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> y = nj.whiten(x, nj.pca_whitening(nj.second_moments(x), 1e-6))
        >>> [round(v, 3) for v in y[0].tolist()]
        [1.414, 0.0]

    Reference:
        Kessy, Lewin, Strimmer, "Optimal Whitening and Decorrelation", 2018.
    """
    _checks.positive("eps", eps)
    values, axes = jnp.linalg.eigh(lax.stop_gradient(jnp.asarray(m.cov)))
    values, axes = values[..., ::-1], axes[..., ::-1]  # descending; axes are columns
    largest = jnp.argmax(jnp.abs(axes), axis=-2, keepdims=True)
    pivot = jnp.take_along_axis(axes, largest, axis=-2)
    axes = axes * (pivot.conj() / jnp.abs(pivot).astype(pivot.dtype))
    root = jnp.sqrt(jnp.maximum(values, 0) + eps).astype(axes.dtype)
    return Whitening(jnp.swapaxes(axes.conj(), -1, -2) / root[..., None], lax.stop_gradient(m.mean))


def whiten(
    x: Inexact[Array, "*shape"],
    whitening: Whitening,
    axes: int | Sequence[int] | None = None,
    *,
    mask: Bool[Array, "..."] | None = None,
) -> Inexact[jax.Array, "..."]:
    r"""Apply a fitted whitening to the vectors on the last axis.

    $$y = W (x - \mu)$$

    Args:
        x: floating or complex, features last.
        whitening: what `zca_whitening` or `pca_whitening` returned.
        axes: the axes that its statistics were averaged over; `None` is all but the last.
        mask: True where a value counts; masked outputs are finite and otherwise unspecified.

    Returns:
        Output of the dtype of `x`, with `outputs` features.

    Raises:
        TypeError: `x` is not floating or complex, `mask` is not boolean.
        ValueError: `whitening`, `axes` or `mask` do not fit `x`.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> fit = nj.Whitening(matrix=jnp.eye(2) * 2, mean=jnp.ones(2))
        >>> nj.whiten(jnp.array([[1.0, 2.0]]), fit).tolist()
        [[0.0, 2.0]]

    Reference:
        Kessy, Lewin, Strimmer, "Optimal Whitening and Decorrelation", 2018.
    """
    x = _checks.floating(x, "whiten")
    mask = _checks.mask(mask, x.shape)
    axes = _checks.resolve_axes(axes, x.ndim)
    remaining = [a for a in range(x.ndim) if a not in axes]
    expected = tuple(x.shape[a] for a in remaining)
    if jnp.shape(whitening.mean) != expected:
        raise ValueError(
            f"a whitening with a mean of shape {jnp.shape(whitening.mean)} does not fit x of shape "
            f"{x.shape} averaged over axes {axes}, which leaves {expected}"
        )
    d = _formulas.center(x, _shapes.expand(whitening.mean, remaining, x.ndim), mask)
    vectors, back = _shapes.as_vectors(d, axes)  # [*sets, vectors, features]
    matrix = jnp.asarray(whitening.matrix).astype(d.dtype)
    # In full precision: rounded products would introduce correlations.
    y = jnp.einsum("...ni,...oi->...no", vectors, matrix, precision=lax.Precision.HIGHEST)
    return back(y).astype(x.dtype)


def _ridge(cov: Array, eps: float) -> jax.Array:
    """Return `cov + eps I`."""
    cov = jnp.asarray(cov)
    return cov + _shapes.expand(
        eps * jnp.eye(cov.shape[-1], dtype=cov.dtype), (cov.ndim - 2, cov.ndim - 1), cov.ndim
    )
