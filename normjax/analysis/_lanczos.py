"""Approximates extreme eigenvalues of a loss's Hessian, from Hessian-vector products alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from normjax._internal import _checks
from normjax.analysis._tree_math import common_dtype
from normjax.statistics._types import Array, PyTree


class HessianSpectrum(NamedTuple):
    """Approximate eigenvalues of a loss's Hessian.

    Attributes:
        values: Ritz values, largest first; the first and last converge long before those between
            them; `[iterations]`.
        bound: bound on the error of each: some eigenvalue is at most this far away; `[iterations]`.
        vector: unit eigenvector of the first value, in the structure of the parameters.
    """

    values: Float[Array, " iterations"]
    bound: Float[Array, " iterations"]
    vector: PyTree


def hessian_spectrum(
    loss: Callable[[PyTree], jax.Array],
    params: PyTree,
    *,
    iterations: int = 20,
    key: jax.Array | None = None,
) -> HessianSpectrum:
    r"""Approximate the extreme eigenvalues of the Hessian of a loss by Lanczos' method.

    $$H q_j = \beta_{j-1} q_{j-1} + \alpha_j q_j + \beta_j q_{j+1}, \qquad
      |\lambda - \theta_i| \le \beta_m |s_{m i}|$$

    Theta and s are the eigenvalues and eigenvectors of the tridiagonal matrix of alpha and beta.
    The Hessian is never formed: each iteration is one forward-over-reverse product. Every new
    vector is orthogonalized twice against all previous ones, so that no eigenvalue appears more
    than once by rounding; this stores `iterations` vectors of the size of the parameters.

    The loss must be twice differentiable at `params`. A network with piecewise linear activations
    has the Hessian of its current linear piece.

    Args:
        loss: function of the parameters that returns one number; close over the batch.
        params: pytree of floating arrays.
        iterations: size of the Krylov space; at most the number of parameters is used.
        key: PRNG key of the first direction; `None` is `jax.random.key(0)`.

    Returns:
        `HessianSpectrum`.

    Raises:
        ValueError: `iterations` is not a positive integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from normjax import analysis
        >>> curved = lambda p: 0.5 * (5 * p["a"] ** 2 + 3 * p["b"][0] ** 2 - p["b"][1] ** 2)
        >>> spectrum = analysis.hessian_spectrum(curved, {"a": jnp.array(1.0), "b": jnp.ones(2)})
        >>> [round(v, 4) for v in spectrum.values.tolist()]
        [5.0, 3.0, -1.0]

    Reference:
        Lanczos, "An iteration method for the solution of the eigenvalue problem of linear
        differential and integral operators", 1950; Ghorbani, Krishnan, Xiao, "An Investigation
        into Neural Net Optimization via Hessian Eigenvalue Density", 2019.
    """
    _checks.positive_int("iterations", iterations)
    params = jax.tree.map(jnp.asarray, params)
    leaves, structure = jax.tree.flatten(params)
    wide = common_dtype(params)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    total = ends[-1]
    steps = min(iterations, total)
    key = jax.random.key(0) if key is None else key

    def flatten(tree: PyTree) -> jax.Array:
        return jnp.concatenate([leaf.astype(wide).ravel() for leaf in jax.tree.leaves(tree)])

    def unflatten(v: jax.Array) -> PyTree:
        parts = jnp.split(v, ends[:-1])
        return jax.tree.unflatten(
            structure,
            [
                p.reshape(leaf.shape).astype(leaf.dtype)
                for p, leaf in zip(parts, leaves, strict=True)
            ],
        )

    def product(v: jax.Array) -> jax.Array:
        _, hv = jax.jvp(jax.grad(loss), (params,), (unflatten(v),))
        return flatten(hv)

    def orthogonalize(v: jax.Array, basis: jax.Array) -> jax.Array:
        for _ in range(2):  # twice is enough
            coefficients = jnp.matmul(basis, v, precision=lax.Precision.HIGHEST)
            v = v - jnp.matmul(basis.T, coefficients, precision=lax.Precision.HIGHEST)
        return v

    def unit(v: jax.Array) -> jax.Array:
        size = jnp.linalg.norm(v)
        return v / jnp.where(size > 0, size, jnp.ones_like(size))

    def iterate(carry: tuple, j: jax.Array) -> tuple[tuple, tuple[jax.Array, jax.Array]]:
        # basis [iterations, parameters] has the vectors so far as rows; the others are 0.
        basis, q, largest = carry
        basis = basis.at[j].set(q)
        w = product(q)
        alpha = jnp.dot(q, w, precision=lax.Precision.HIGHEST)
        w = orthogonalize(w, basis)
        beta = jnp.linalg.norm(w)
        largest = jnp.maximum(largest, jnp.maximum(jnp.abs(alpha), beta))
        # If the space is closed under H (few distinct eigenvalues), continue in a new direction.
        closed = beta <= 10 * math.sqrt(total) * jnp.finfo(wide).eps * largest
        fresh = jax.random.normal(jax.random.fold_in(key, j + 1), (total,), wide)
        fresh = unit(orthogonalize(unit(orthogonalize(fresh, basis)), basis))
        q = jnp.where(closed, fresh, w / jnp.where(closed, jnp.ones_like(beta), beta))
        return (basis, q, largest), (alpha, jnp.where(closed, jnp.zeros_like(beta), beta))

    first = unit(jax.random.normal(jax.random.fold_in(key, 0), (total,), wide))
    start = (jnp.zeros((steps, total), wide), first, jnp.zeros((), wide))
    (basis, _, _), (alpha, beta) = lax.scan(iterate, start, jnp.arange(steps))
    # Eigenvalues of the tridiagonal matrix of alpha and beta.
    off = beta[:-1]
    values, vectors = jnp.linalg.eigh(jnp.diag(alpha) + jnp.diag(off, 1) + jnp.diag(off, -1))
    values, vectors = values[::-1], vectors[:, ::-1]
    top = jnp.matmul(vectors[:, 0], basis, precision=lax.Precision.HIGHEST)
    return HessianSpectrum(values, jnp.abs(beta[-1] * vectors[-1]), unflatten(unit(top)))
