"""Starting weights by name, so that a layer stays a hashable, printable value.

Weights are made as `[rows, gates, hidden]` and used as `[rows, gates * hidden]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from normjax._internal import _checks
from normjax.statistics import _shapes

Initializer = str | Callable[..., jax.Array]

_LSTM_CANDIDATE = 2  # gate order i, f, g, o; a GRU's candidate is its last block, r, z, n


def _by_gate(init: Callable, key: jax.Array, shape: tuple[int, int, int], dtype: Any) -> jax.Array:
    rows, gates, hidden = shape
    keys = jax.random.split(key, gates)
    return jnp.stack([init(k, (rows, hidden), dtype) for k in keys], axis=1)


def _jointly(init: Callable, key: jax.Array, shape: tuple[int, int, int], dtype: Any) -> jax.Array:
    rows, gates, hidden = shape
    return init(key, (rows, gates * hidden), dtype).reshape(shape)


def _identity(key: jax.Array, shape: tuple[int, int, int], dtype: Any) -> jax.Array:
    """Identity for the candidate; an LSTM's gates share one matrix with orthonormal rows.

    That is what the recurrent batch norm authors' sequential MNIST script does, where the
    paper says "identity". With a single block, a plain RNN, it is the identity.
    """
    rows, gates, hidden = shape
    eye = jnp.eye(rows, hidden, dtype=dtype)[:, None]
    if gates == 1:
        return eye
    candidate = _LSTM_CANDIDATE if gates == 4 else gates - 1
    rest = _jointly(initializers.orthogonal(), key, (rows, gates - 1, hidden), dtype)
    return jnp.concatenate([rest[:, :candidate], eye, rest[:, candidate:]], axis=1)


_NAMED: dict[str, Callable[..., jax.Array]] = {
    "zeros": lambda key, shape, dtype: jnp.zeros(shape, dtype),
    "lecun_normal": lambda *a: _by_gate(initializers.lecun_normal(), *a),
    "glorot_uniform": lambda *a: _by_gate(initializers.glorot_uniform(), *a),
    "glorot_normal": lambda *a: _by_gate(initializers.glorot_normal(), *a),
    "he_normal": lambda *a: _by_gate(initializers.he_normal(), *a),
    "orthogonal": lambda *a: _by_gate(initializers.orthogonal(), *a),
    "orthogonal_joint": lambda *a: _jointly(initializers.orthogonal(), *a),
    "identity": _identity,
}

NAMES = tuple(_NAMED)


def check(name: str, value: Initializer) -> None:
    """Refuse an unknown name, when the layer is made."""
    if not callable(value):
        _checks.one_of(name, value, NAMES)


def make(
    init: Initializer, key: jax.Array, rows: int, gates: int, hidden: int, dtype: Any
) -> jax.Array:
    """Make a `[rows, gates * hidden]` matrix; a callable gets the key, that shape, the dtype."""
    if callable(init):
        return init(key, (rows, gates * hidden), dtype)
    # LAPACK has no half precision, and a rounded orthogonal matrix is as good.
    wide = _shapes.stat_dtype(dtype)
    w = _NAMED[init](key, (rows, gates, hidden), wide)
    return w.reshape(rows, gates * hidden).astype(dtype)
