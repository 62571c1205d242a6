"""Spectral normalization: a weight matrix divided by its largest singular value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Inexact

from normjax._internal import _checks, _hints
from normjax.base import DirectionAndGain, Reparam, Stats
from normjax.statistics import _shapes
from normjax.statistics._types import Array
from normjax.weights import _direction


class SingularVectors(NamedTuple):
    """The largest singular value of a weight matrix `[inputs, outputs]`, as last estimated.

    Attributes:
        left: `[inputs]`, unit left vector.
        right: `[outputs]`, unit right vector.
        sigma: the singular value, for logs; `apply` recomputes it from the current weight.
    """

    left: Inexact[Array, " inputs"]
    right: Inexact[Array, " outputs"]
    sigma: Inexact[Array, ""]


@dataclasses.dataclass(frozen=True, repr=False)
class SpectralNorm(Reparam):
    """Spectral normalization as a value; made by `spectral_norm`."""

    factory: ClassVar[str] = "spectral_norm"
    stateful: ClassVar[bool] = True

    axes: int | Sequence[int] | None = None
    iterations: int = 1
    use_scale: bool = False

    def __post_init__(self) -> None:
        """Refuse a number of iterations below 1 and axes that name nothing."""
        _checks.positive_int("iterations", self.iterations)
        _checks.set_field(self, "axes", _checks.axes(self.axes))

    def init(
        self, w: Array, *, key: jax.Array | None = None
    ) -> tuple[DirectionAndGain, SingularVectors]:
        """Return `(DirectionAndGain(w, sigma or None), SingularVectors)`, exact; no `key`."""
        del key
        w = _checks.floating(w, self.factory)
        matrix = self._matrix(w)
        u, s, vh = jnp.linalg.svd(matrix, full_matrices=False)
        left, right, sigma = u[:, 0], vh[0].conj(), s[0]
        # A zero matrix has no singular vectors; (1, ..., 1) is blind to no single input.
        flat = (jnp.full_like(a, a.size**-0.5) for a in (left, right))
        left, right = (jnp.where(sigma > 0, a, f) for a, f in zip((left, right), flat, strict=True))
        return DirectionAndGain(w, sigma if self.use_scale else None), SingularVectors(
            left, right, sigma
        )

    def apply(
        self, params: DirectionAndGain, state: SingularVectors, *, stats: Stats
    ) -> tuple[jax.Array, SingularVectors]:
        """Return `(g v / sigma, state)`; mode `"batch"` moves the singular vectors."""
        _checks.stats(stats)
        v = jnp.asarray(params.v)
        matrix = self._matrix(v)
        # As in `unit`: v / sigma is that of every constant multiple, and no square overflows.
        size = _direction._size(matrix, (0, 1))
        matrix = matrix / size.astype(matrix.dtype)
        if stats == "batch":
            state = self._iterate(lax.stop_gradient(matrix), size[0, 0], state)
        left, right = lax.stop_gradient((state.left, state.right))
        # To first order the vectors do not move sigma, so they need no gradient.
        sigma = jnp.abs(jnp.real(_dot(left.conj(), _dot(matrix, right))))
        scale = 1 / jnp.where(sigma > 0, sigma, 1)
        if params.g is not None:
            scale = scale * jnp.asarray(params.g).astype(scale.dtype)
        scale = (scale / size[0, 0]).astype(matrix.dtype)
        return (v.astype(matrix.dtype) * scale).astype(v.dtype), state

    def _iterate(
        self, matrix: jax.Array, size: jax.Array, state: SingularVectors
    ) -> SingularVectors:
        left, right, _ = lax.stop_gradient(state)
        for _ in range(self.iterations):
            left = _direction.unit(_dot(matrix, right), (0,))
            right = _direction.unit(_dot(matrix.conj().T, left), (0,))
        sigma = size * jnp.real(_dot(left.conj(), _dot(matrix, right)))
        found = SingularVectors(left, right, sigma)
        # A zero or a broken matrix has no singular vectors: the last ones wait for a better one.
        good = (found.sigma > 0) & jnp.isfinite(found.sigma)
        return jax.tree.map(
            lambda new, old: jnp.where(good, new, old), found, SingularVectors(*state)
        )

    def _matrix(self, w: jax.Array) -> jax.Array:
        """Return `[inputs, outputs]`, at least float32."""
        axes = _direction.resolve_reduced_axes(self.axes, w.ndim, self.factory)
        kept = tuple(a for a in range(w.ndim) if a not in axes)
        if not kept:
            raise ValueError(
                f"{self.factory}(axes={self.axes}) leaves no axis of a weight of shape {w.shape} "
                "for the outputs: name the input axes alone"
            )
        rows = 1
        for a in axes:
            rows *= w.shape[a]
        return w.transpose(axes + kept).reshape(rows, -1).astype(_shapes.stat_dtype(w.dtype))


def _dot(a: Array, b: Array) -> jax.Array:
    # An accelerator's default rounds products to bfloat16, and sigma would be off by percents.
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


@_hints.with_hints()
def spectral_norm(
    *,
    axes: int | Sequence[int] | None = None,
    iterations: int = 1,
    use_scale: bool = False,
) -> Reparam:
    r"""Spectral normalization: the weight over its largest singular value.

    $$w = g\,\frac{v}{\sigma(v)}, \qquad \sigma(v) = l^T V r, \qquad
      l \leftarrow \frac{V r}{\|V r\|}, \quad r \leftarrow \frac{V^T l}{\|V^T l\|}$$

    V is v as a matrix, inputs by outputs; l and r are the state, follow V by power iteration
    in mode `"batch"` and stay in mode `"running"`. The gradient flows through V in sigma and
    not through l and r. They start exact, by a singular value decomposition, so no warm-up is
    needed. The method changes the function at the start unless sigma is 1: with `use_scale`
    a learned g starts at sigma and nothing changes.

    Args:
        axes: axes of the inputs; `None` is all but the last. The others, flattened, are the
            outputs.
        iterations: steps of power iteration at each `apply` in mode `"batch"`; the paper's is 1.
        use_scale: learn g, one number, which starts at sigma. The Lipschitz bound is then g.

    Returns:
        A `Reparam` with params `DirectionAndGain(v, g or None)` and state `Singular(left, right,
        sigma)`.

    Raises:
        ValueError: `iterations` not positive, axes that name nothing.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.spectral_norm()
        >>> params, state = norm.init(jnp.diag(jnp.array([4.0, 2.0])))
        >>> w, state = norm.apply(params, state, stats="batch")
        >>> w.diagonal().tolist(), float(state.sigma)
        ([1.0, 0.5], 4.0)

    Reference:
        Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative Adversarial
        Networks", 2018, algorithm 1.
    """
    return SpectralNorm(**locals())
