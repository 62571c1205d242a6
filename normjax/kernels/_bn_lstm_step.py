"""One step of the BN-LSTM and its gradient, as all its kernels and their plain twin compute it.

Arrays are `[batch, hidden]`, those of features `[1, hidden]`, and there is one for each gate:
input, forget, candidate, output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from normjax._internal._paired import Arrays
from normjax.kernels._block_moments import centred

GATES = 4


class Normalized(NamedTuple):
    """Values normalized over the batch, and what they were normalized with."""

    hat: jax.Array
    inverse: jax.Array  # 1 / deviation
    mean: jax.Array
    var: jax.Array


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Multiply matrices in full float32 along an axis of each."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(
        a, b, dimensions, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def normalize(
    x: jax.Array, eps: float, count: int | None = None, inside: jax.Array | None = None
) -> Normalized:
    """Normalize over the rows; `count` of them are `inside`, the others are 0 and stay 0."""
    count = x.shape[0] if count is None else count
    mean, d = centred(x, 0, count, inside)
    var = (d * d).sum(0, keepdims=True) / jnp.float32(count)
    inverse = lax.rsqrt(var + jnp.float32(eps))
    return Normalized(d * inverse, inverse, mean, var)


def sums(dy: jax.Array, hat: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of the bias and of the scale behind normalized values."""
    return dy.sum(0, keepdims=True), (dy * hat).sum(0, keepdims=True)


def back(
    dy: jax.Array,
    scale: jax.Array,
    x: Normalized,
    total: tuple[jax.Array, jax.Array],
    dstats: tuple[jax.Array, jax.Array],
    count: int,
) -> jax.Array:
    """From the gradient `dy` of scaled values and those of their statistics to that of the values.

    `total` are the `sums` of dy. With `d = hat / inverse`, the statistics add
    `dvar * 2 d / n + dmean / n`.
    """
    n = jnp.float32(count)
    inner = scale * (dy - total[0] / n - x.hat * (total[1] / n))
    dmean, dvar = dstats
    return inner * x.inverse + (dmean + 2 * dvar * (x.hat / x.inverse)) / n


def update(z: Sequence[jax.Array], c: jax.Array) -> tuple[jax.Array, Any]:
    """The new cell, and the gates after their nonlinearities."""
    i, f, o = (jax.nn.sigmoid(z[k]) for k in (0, 1, 3))
    g = jnp.tanh(z[2])
    return f * c + i * g, (i, f, g, o)


def gates_first(
    term: jax.Array, w: jax.Array, scale_h: jax.Array, scale_c: jax.Array, bias_c: jax.Array
) -> Arrays:
    """The arguments of `_bn_lstm.run` with an axis of gates in front of rows and features.

    `[time, 4, batch, hidden]`, `[4, hidden, hidden]`, `[4, 1, hidden]`, and `[1, hidden]` twice.
    """
    steps, batch, width = term.shape
    hidden = width // 4
    return (
        term.reshape(steps, batch, 4, hidden).swapaxes(1, 2),
        w.reshape(hidden, 4, hidden).swapaxes(0, 1),
        scale_h.reshape(4, 1, hidden),
        scale_c[None],
        bias_c[None],
    )


def gate(term: jax.Array, w: jax.Array, scale: jax.Array, h: jax.Array, eps: float) -> Any:
    """One gate before its nonlinearity, and its normalized recurrent term."""
    recurrent = normalize(dot(h, w, (1, 0)), eps)
    return term + recurrent.hat * scale, recurrent


def step(term: Any, w: Any, affine: Any, c: jax.Array, h: jax.Array, eps: Any) -> Any:
    """One step; `term`, `w` and the first of the scales have a leading axis of gates."""
    scale_h, scale_c, bias_c = affine
    gates = [gate(term[k], w[k], scale_h[k], h, eps[0]) for k in range(4)]
    c, (_, _, _, o) = update([z for z, _ in gates], c)
    cell = normalize(c, eps[1])
    h = o * jnp.tanh(cell.hat * scale_c + bias_c)
    return c, h, [r.mean for _, r in gates], [r.var for _, r in gates], cell.mean, cell.var


def flops(steps: int, batch: int, hidden: int) -> int:
    """Operations of the products of all steps, and of the norms and gates beside them."""
    return steps * batch * hidden * (8 * hidden + 60)
