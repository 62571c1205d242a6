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
from normjax._internal._exportable import exportable
from normjax.base import DirectionAndGain, Reparam, Stats
from normjax.state._names import named
from normjax.statistics import _shapes
from normjax.statistics._types import Array, PyTree
from normjax.weights import _direction


@exportable
class SingularVectors(NamedTuple):
    """The latest estimate of the largest singular value of a weight matrix `[inputs, outputs]`.

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
        """Check the fields and bring `axes` into canonical form."""
        _checks.positive_int("iterations", self.iterations)
        _checks.set_field(self, "axes", _checks.axes(self.axes))

    def init(
        self, w: Array, *, key: jax.Array | None = None
    ) -> tuple[DirectionAndGain, SingularVectors]:
        """Return `(DirectionAndGain(w, sigma or None), SingularVectors)`; `key` is not used.

        Args:
            w: the initial weight, floating or complex.
            key: not used.

        Returns:
            `(params, state)`; the singular vectors are exact, from a decomposition of `w`.

        Raises:
            TypeError: `w` is not floating or complex.
            ValueError: `axes` do not fit `w` or leave no axis for the outputs.
        """
        del key
        w = _checks.floating(w, self.factory)
        matrix = self._matrix(w)
        u, s, vh = jnp.linalg.svd(matrix, full_matrices=False)
        left, right, sigma = u[:, 0], vh[0].conj(), s[0]
        # A zero matrix has no singular vectors; start from (1, ..., 1), which has no zero entry.
        ones = (jnp.full_like(a, a.size**-0.5) for a in (left, right))
        left, right = (jnp.where(sigma > 0, a, f) for a, f in zip((left, right), ones, strict=True))
        return DirectionAndGain(w, sigma if self.use_scale else None), SingularVectors(
            left, right, sigma
        )

    def apply(
        self, params: PyTree, state: PyTree, *, stats: Stats
    ) -> tuple[jax.Array, SingularVectors]:
        """Return `(g v / sigma, state)`; mode `"batch"` updates the singular vectors.

        Args:
            params: what `init` returned, after any number of optimizer steps.
            state: what `init` or the last `apply` returned.
            stats: `"batch"` runs the power iteration, `"running"` does not.

        Returns:
            `(w, state)`, with `w` of the shape and dtype of `v`.
        """
        _checks.stats(stats)
        params = named(DirectionAndGain, params, "v")
        state = named(SingularVectors, state, *SingularVectors._fields)
        v = jnp.asarray(params.v)
        matrix = self._matrix(v)
        # As in `_direction.unit`: a constant factor cancels in v / sigma, and no square overflows.
        size = _direction.size(matrix, (0, 1))
        matrix = matrix / size.astype(matrix.dtype)
        if stats == "batch":
            state = self._iterate(lax.stop_gradient(matrix), size[0, 0], state)
        left, right = lax.stop_gradient((state.left, state.right))
        # To first order sigma does not depend on the vectors, so they need no gradient.
        sigma = jnp.abs(jnp.real(_dot(left.conj(), _dot(matrix, right))))
        scale = 1 / jnp.where(sigma > 0, sigma, 1)
        if params.g is not None:
            scale = scale * jnp.asarray(params.g).astype(scale.dtype)
        scale = (scale / size[0, 0]).astype(matrix.dtype)
        return (v.astype(matrix.dtype) * scale).astype(v.dtype), state

    def _iterate(
        self, matrix: jax.Array, size: jax.Array, state: SingularVectors
    ) -> SingularVectors:
        """Run the power iteration on `matrix`, the weight divided by `size`."""
        left, right, _ = lax.stop_gradient(state)
        for _ in range(self.iterations):
            left = _direction.unit(_dot(matrix, right), (0,))
            right = _direction.unit(_dot(matrix.conj().T, left), (0,))
        sigma = size * jnp.real(_dot(left.conj(), _dot(matrix, right)))
        estimate = SingularVectors(left, right, sigma)
        # A zero or nonfinite matrix has no singular vectors: keep the previous ones.
        good = (estimate.sigma > 0) & jnp.isfinite(estimate.sigma)
        return jax.tree.map(
            lambda new, old: jnp.where(good, new, old), estimate, SingularVectors(*state)
        )

    def _matrix(self, w: jax.Array) -> jax.Array:
        """Return the weight as a matrix `[inputs, outputs]`, at least float32."""
        axes = _direction.resolve_reduced_axes(self.axes, w.ndim, self.factory)
        remaining = tuple(a for a in range(w.ndim) if a not in axes)
        if not remaining:
            raise ValueError(
                f"{self.factory}(axes={self.axes}) leaves no axis of a weight of shape {w.shape} "
                "for the outputs: name the input axes alone"
            )
        rows = 1
        for a in axes:
            rows *= w.shape[a]
        # [*inputs, *outputs], then each flattened.
        return w.transpose(axes + remaining).reshape(rows, -1).astype(_shapes.stat_dtype(w.dtype))


def _dot(a: Array, b: Array) -> jax.Array:
    """Multiply in full precision: products in bfloat16 would change sigma by percents."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


@_hints.with_hints()
def spectral_norm(
    *,
    axes: int | Sequence[int] | None = None,
    iterations: int = 1,
    use_scale: bool = False,
) -> Reparam:
    r"""Spectral normalization: divides the weight by its largest singular value.

    $$w = g\,\frac{v}{\sigma(v)}, \qquad \sigma(v) = l^T V r, \qquad
      l \leftarrow \frac{V r}{\|V r\|}, \quad r \leftarrow \frac{V^T l}{\|V^T l\|}$$

    V is v as a matrix, inputs by outputs. The state is l and r: they follow V by power iteration
    in mode `"batch"` and do not change in mode `"running"`. The gradient of sigma flows through V,
    not through l and r. Both are initially exact, from a singular value decomposition, so no
    warm-up is needed. Unless sigma is 1, the method changes the layer's function at
    initialization; with `use_scale` g is initially sigma and the function is preserved.

    Args:
        axes: axes of the inputs; `None` is all but the last. The others, flattened, are the
            outputs.
        iterations: steps of power iteration in each `apply` in mode `"batch"`; 1 in the paper.
        use_scale: learn g, one number, initially sigma. The Lipschitz constant is then g, not 1.

    Returns:
        A `Reparam` with params `DirectionAndGain(v, g or None)` and state
        `SingularVectors(left, right, sigma)`.

    Raises:
        ValueError: `iterations` is not positive, or `axes` are empty or repeat an axis.

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
