"""Flax's weight norms over the numerical core."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from normjax._flax._semantics import axes_of, complement, layer_dtypes, normalize, promote
from normjax.statistics import _core
from normjax.statistics._types import Array, Moments


def weight_norm(
    v: Array, g: Array | None, feature_axes: Any, *, eps: float, dtype: Any = None
) -> jax.Array:
    r"""Return g v / ||v||, the norm over all axes but `feature_axes` (`None`: over all)."""
    v = jnp.asarray(v)
    features = axes_of(v.ndim, () if feature_axes is None else feature_axes)
    dtypes = layer_dtypes(v, g, None, dtype)
    m = squared_lengths(v, feature_axes)
    return normalize(v, m, complement(v.ndim, features), features, g, None, eps, dtypes)


def squared_lengths(v: Array, feature_axes: Any) -> Moments:
    """Squared length of the weights of each feature, where `normalize` looks for the variance."""
    v = jnp.asarray(v)
    features = axes_of(v.ndim, () if feature_axes is None else feature_axes)
    m = _core.mean_square(v.astype(promote(v, jnp.float32)), complement(v.ndim, features))
    return m._replace(var=m.var * m.count)


def spectral_norm(
    w: Array, u: Array, *, steps: int, eps: float, dtype: Any = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Return (w / sigma, u, sigma) after `steps` of power iteration; u and v carry no gradient.

    $$v = \widehat{u W^\top}, \quad u = \widehat{v W}, \quad \sigma = v W u^\top$$

    Reference:
        Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative Adversarial
        Networks", 2018, algorithm 1.
    """
    w = jnp.asarray(w)
    stored = promote(u, w)
    out = layer_dtypes(w, u, None, dtype).output
    wide = promote(u, w, jnp.float32)
    u = initial = jnp.asarray(u, wide)  # [1, features]
    matrix = w.astype(wide).reshape(-1, w.shape[-1])  # [inputs, features]
    constant = lax.stop_gradient(matrix)
    for _ in range(steps):
        # Rounded products would make sigma, and so every weight, as coarse as they are.
        v = weight_norm(_product(u, constant.T), None, None, eps=eps)
        u = weight_norm(_product(v, constant), None, None, eps=eps)
    u, v = lax.stop_gradient((u, v))
    sigma = _product(_product(v, matrix), u.T)[0, 0]
    normalized = w.astype(wide) / jnp.where(sigma != 0, sigma, 1)
    # A weight that starts at 0 (a bias of rank 2) gets u = 0 and is left alone from then on, as
    # in Flax: divided by its own small sigma it would jump to 1 at the first step.
    u = jnp.where(jnp.isfinite(sigma), u, initial)
    return jnp.asarray(normalized, out), u.astype(stored), sigma.astype(stored)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
