"""Computes inverse square roots of covariances, by eigenvalues and by Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from normjax.statistics._types import Array


def inverse_root(a: Array, floor: float) -> jax.Array:
    r"""Return the symmetric inverse square root of Hermitian matrices with eigenvalues >= `floor`.

    $$W = A^{-1/2} = U R^{-1} U^*, \qquad R = \Lambda^{1/2}, \qquad
      (U^*\,dW\,U)_{ij} = -\frac{(U^*\,dA\,U)_{ij}}{r_i\,r_j\,(r_i + r_j)}$$

    The derivative divides by sums of positive numbers, while that of eigenvectors divides by
    differences of eigenvalues. So it is finite at equal eigenvalues, as are all higher ones.

    It stays in the eigenbasis between the two changes of basis. Its entries differ by the factor
    (largest / smallest eigenvalue)^1.5; a product with W^2 in the basis of A would spread the
    rounding of the largest entries over all others, in float32 beyond their size.

    One case is left: the gradient of a gradient, by reverse mode twice, in a direction in which
    a batch has no variance. The cotangent of A itself, then of size floor^-1.5, is rounded. Forward
    over reverse, `jax.jvp(jax.grad(f), ...)`, does not form it.

    Args:
        a: `[..., n, n]`.
        floor: smaller eigenvalues are rounding errors and are replaced by it.

    Returns:
        `[..., n, n]`.
    """
    a = jnp.asarray(a)
    a = (a + _adjoint(a)) / 2
    # The basis is a constant here: the derivative rules below account for its changes.
    values, basis = jnp.linalg.eigh(lax.stop_gradient(a))
    return _inverse_root(a, basis, jnp.sqrt(jnp.maximum(values, floor)))


@jax.custom_jvp
def _inverse_root(a: jax.Array, basis: jax.Array, roots: jax.Array) -> jax.Array:
    """Return W, from the eigenvectors of A and the roots of its eigenvalues."""
    del a
    return _dot(basis / roots.astype(basis.dtype)[..., None, :], _adjoint(basis))


@_inverse_root.defjvp
def _inverse_root_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Differentiate W^-2 = A: with X = -U^* dW U, R (X R + R X) R = U^* dA U."""
    _, basis, roots = primals
    r = _root_in_basis(*primals)
    rows, columns = _pairs(basis, roots)
    inner = _solve(
        lambda x: _dot(r, _dot(_dot(x, r) + _dot(r, x), r)),
        _dot(_adjoint(basis), _dot(tangents[0], basis)),
        # One factor after the other: the product of all three is beyond float32 from 1e13 on.
        lambda b: b / rows / columns / (rows + columns),
    )
    return _inverse_root(*primals), -_dot(basis, _dot(inner, _adjoint(basis)))


@jax.custom_jvp
def _root_in_basis(a: jax.Array, basis: jax.Array, roots: jax.Array) -> jax.Array:
    """Return R = U^* A^(1/2) U as a function of A for a constant U: diagonal, its tangent not."""
    del a
    eye = jnp.broadcast_to(jnp.eye(roots.shape[-1], dtype=basis.dtype), basis.shape)
    return eye * roots.astype(basis.dtype)[..., None, :]


@_root_in_basis.defjvp
def _root_in_basis_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Differentiate R^2 = U^* A U: dR R + R dR = U^* dA U."""
    _, basis, roots = primals
    r = _root_in_basis(*primals)
    rows, columns = _pairs(basis, roots)
    return r, _solve(
        lambda x: _dot(x, r) + _dot(r, x),
        _dot(_adjoint(basis), _dot(tangents[0], basis)),
        lambda b: b / (rows + columns),
    )


def _pairs(basis: jax.Array, roots: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return r_i and r_j for the entries ij of a matrix, in the dtype of the basis."""
    roots = roots.astype(basis.dtype)
    return roots[..., :, None], roots[..., None, :]


def _solve(
    equation: Callable[[jax.Array], jax.Array],
    b: jax.Array,
    divide: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Solve `equation(x) = b`, linear in x, by `divide(b)`, its inverse where R is diagonal.

    Higher derivatives are those of the equation, in which R is a function of A. Written as
    `divide(b)` alone, or by another `custom_jvp`, whose body is inlined when it is transposed,
    the solution would not depend on A and Hessians would silently miss that.
    """
    # A diagonal map is its own transpose; the derivative of the equation is transposed by JAX.
    return lax.custom_linear_solve(
        equation, b, solve=lambda _, b: divide(b), transpose_solve=lambda _, b: divide(b)
    )


def newton_inverse_root(a: Array, iterations: int) -> jax.Array:
    """Approximate the inverse square root by Newton's method, starting from the identity.

    The trace bounds the largest eigenvalue, so dividing by it makes the iteration converge.

    Args:
        a: `[..., n, n]`, Hermitian and positive.
        iterations: number of steps.

    Returns:
        `[..., n, n]`.
    """
    a = jnp.asarray(a)
    trace = jnp.trace(a, axis1=-2, axis2=-1).real[..., None, None]
    # Twice the root: the derivative of 1 / trace has its square, beyond float32 from 1e20 on.
    root = (1 / lax.sqrt(trace)).astype(a.dtype)
    s = a * root * root
    p = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
    for _ in range(iterations):
        p = 1.5 * p - 0.5 * _dot(_dot(p, _dot(p, p)), s)
    return p * root


def _adjoint(a: jax.Array) -> jax.Array:
    """Return the conjugate transpose of the last two axes."""
    return jnp.swapaxes(a, -1, -2).conj()


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply matrices in full precision."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
