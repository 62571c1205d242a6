"""Computes inverse square roots of covariances, by eigenvalues and by Newton's method."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from normjax.statistics._types import Array


def inverse_root(a: Array, floor: float) -> jax.Array:
    r"""Return the symmetric inverse square root of Hermitian matrices with eigenvalues >= `floor`.

    $$W = A^{-1/2} = U \Lambda^{-1/2} U^*, \qquad
      dW\,W + W\,dW = -W^2\,dA\,W^2$$

    The derivative solves this Sylvester equation, which follows from $W^2 A = I$. In the
    eigenbasis the solution divides by sums of positive numbers, while the derivative of
    eigenvectors divides by differences of eigenvalues. So it is finite at equal eigenvalues, as
    are all higher derivatives.

    Args:
        a: `[..., n, n]`.
        floor: smaller eigenvalues are rounding errors and are replaced by it.

    Returns:
        `[..., n, n]`.
    """
    a = jnp.asarray(a)
    a = (a + _adjoint(a)) / 2
    # The basis is a constant here: the derivative rule below accounts for its changes.
    values, basis = jnp.linalg.eigh(lax.stop_gradient(a))
    roots = lax.rsqrt(jnp.maximum(values, floor))
    return _inverse_root(a, basis, roots)


@jax.custom_jvp
def _inverse_root(a: jax.Array, basis: jax.Array, roots: jax.Array) -> jax.Array:
    del a
    return _dot(basis * roots.astype(basis.dtype)[..., None, :], _adjoint(basis))


@_inverse_root.defjvp
def _inverse_root_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Differentiate: dW solves dW W + W dW = -W^2 dA W^2."""
    a, basis, roots = primals
    w = _inverse_root(a, basis, roots)
    square = _dot(w, w)
    return w, _sylvester(w, -_dot(square, _dot(tangents[0], square)), basis, roots)


def _sylvester(w: jax.Array, c: jax.Array, basis: jax.Array, roots: jax.Array) -> jax.Array:
    """Solve Y W + W Y = C, with the eigenvectors and eigenvalues of W.

    This is a linear solve and not another `custom_jvp`: transposing a `custom_jvp` inlines its
    body, in which W does not occur, and Hessians would silently miss the derivative in W.
    """
    # In the eigenbasis of W: (U^* Y U)_ij = (U^* C U)_ij / (roots_i + roots_j).
    sums = (roots[..., :, None] + roots[..., None, :]).astype(c.dtype)

    def solve(u: jax.Array, b: jax.Array) -> jax.Array:
        inner = _dot(_adjoint(u), _dot(b, u)) / sums
        return _dot(u, _dot(inner, _adjoint(u)))

    return lax.custom_linear_solve(
        lambda y: _dot(y, w) + _dot(w, y),
        c,
        solve=lambda _, b: solve(basis, b),
        transpose_solve=lambda _, b: solve(basis.conj(), b),
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
