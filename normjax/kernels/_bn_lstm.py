"""The BN-LSTM's recurrence as one program: weights and state stay on the chip over all steps.

The grid is the time axis, which a TPU walks in order. Recurrent weights, the whole batch's hidden
and cell state and the gradient of the weights are blocks that do not move; of each step the input
term comes in and h, c and the statistics go out, which the pipeline overlaps with the arithmetic.
The batch statistics of a step are sums over rows of what is on the chip already. The backward walk
makes a step again from h and c of the step before: nothing else is kept.

Gates have an axis of their own (`[4, batch, hidden]`), so that no slice cuts a register.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from normjax._internal._paired import Arrays, with_fast_vjp
from normjax.kernels import _pallas
from normjax.kernels._block_moments import centred

ON_CHIP = 12 * 2**20  # bytes; a core has 16 MiB or more for the blocks of a program


def fits(batch: int, hidden: int) -> bool:
    """Whether weights, their gradient and two steps of everything else stay on the chip."""
    if _pallas.backend() == "gpu":  # its grid is not walked in order
        return False
    # The pipeline has two of each block. Of a backward step there are 15, and 12 in between.
    weights, step = 4 * hidden * hidden, batch * hidden
    return 4 * (2 * 2 * weights + (2 * 15 + 12) * step) <= ON_CHIP


def run(
    term: jax.Array,
    w_h: jax.Array,
    scale_h: jax.Array,
    scale_c: jax.Array,
    bias_c: jax.Array,
    c: jax.Array,
    h: jax.Array,
    eps: tuple[float, float],
) -> tuple[jax.Array, jax.Array, Arrays, Arrays]:
    """Walk `term` `[time, batch, 4 * hidden]`, biases included, in float32.

    Returns h and c of every step `[time, batch, hidden]`, and mean and variance of the recurrent
    term `[time, 4 * hidden]` and of the cell `[time, hidden]`.
    """
    steps, batch, width = term.shape
    hidden = width // 4
    term = term.reshape(steps, batch, 4, hidden).swapaxes(1, 2)
    w_h = w_h.reshape(hidden, 4, hidden).swapaxes(0, 1)
    affine = scale_h.reshape(4, 1, hidden), scale_c[None], bias_c[None]
    built = _built(*eps, _pallas.backend())
    hs, cs, mean_h, var_h, mean_c, var_c = built(term, w_h, *affine, c, h)
    wide = mean_h.reshape(steps, width), var_h.reshape(steps, width)
    return hs, cs, wide, (mean_c.reshape(steps, hidden), var_c.reshape(steps, hidden))


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    how = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(
        a, b, how, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over the rows, `[1, features]`."""
    mean, d = centred(x, 0, x.shape[0])
    return mean, (d * d).mean(0, keepdims=True)


def _gate(term: jax.Array, w: jax.Array, scale: jax.Array, h: jax.Array, eps: float) -> Any:
    """One gate before its nonlinearity, with what it is made of."""
    product = _dot(h, w, (1, 0))
    mean, var = _moments(product)
    inverse = lax.rsqrt(var + jnp.float32(eps))
    hat = (product - mean) * inverse
    return term + hat * scale, mean, var, inverse, hat


def _back(g: jax.Array, hat: jax.Array, inverse: jax.Array, dmean: Any, dvar: Any) -> jax.Array:
    """From the gradient of normalized values and of their statistics to that of the values.

    With `d = hat / inverse`: `dvar * 2 d / n + dmean / n`.
    """
    inner = g - g.mean(0, keepdims=True) - hat * (g * hat).mean(0, keepdims=True)
    return inner * inverse + (dmean + 2 * dvar * hat / inverse) / g.shape[0]


def _update(z: Any, c: jax.Array) -> tuple[jax.Array, Any]:
    i, f, o = (jax.nn.sigmoid(z[k]) for k in (0, 1, 3))
    g = jnp.tanh(z[2])
    return f * c + i * g, (i, f, g, o)


def _step(term: Any, w: Any, affine: Any, c: jax.Array, h: jax.Array, eps: Any) -> Any:
    """One step; `term`, `w` and the scales have a leading axis of gates."""
    scale_h, scale_c, bias_c = affine
    gates = [_gate(term[k], w[k], scale_h[k], h, eps[0]) for k in range(4)]
    c, (_, _, _, o) = _update([g[0] for g in gates], c)
    mean, var = _moments(c)
    shown = (c - mean) * lax.rsqrt(var + jnp.float32(eps[1])) * scale_c + bias_c
    h = o * jnp.tanh(shown)
    return c, h, [g[1] for g in gates], [g[2] for g in gates], mean, var


@functools.lru_cache(maxsize=16)
def _built(eps_h: float, eps_c: float, backend: str) -> Any:
    del backend
    eps = eps_h, eps_c

    def plain(term: Any, w: Any, scale_h: Any, scale_c: Any, bias_c: Any, c: Any, h: Any) -> Arrays:
        def body(carry: Any, term_t: Any) -> Any:
            given = scale_h, scale_c, bias_c
            c, h, mean_h, var_h, *cell = _step(term_t, w, given, carry[0], carry[1], eps)
            return (c, h), (h, c, jnp.stack(mean_h), jnp.stack(var_h), *cell)

        return lax.scan(body, (c, h), term)[1]

    def forward(term: Any, w: Any, *rest: Any) -> tuple[Arrays, Arrays]:
        *affine, c, h = rest
        steps, _, batch, hidden = term.shape

        def kernel(*refs: Any) -> None:
            (
                term_ref, w_ref, scale_h_ref, scale_c_ref, bias_c_ref, c_ref, h_ref,
                hs_ref, cs_ref, mean_h_ref, var_h_ref, mean_c_ref, var_c_ref, c_now, h_now,
            ) = refs  # fmt: skip

            @pl.when(pl.program_id(0) == 0)
            def start() -> None:
                c_now[...], h_now[...] = c_ref[...], h_ref[...]

            given = scale_h_ref, scale_c_ref[...], bias_c_ref[...]
            blocks = [term_ref[0, k] for k in range(4)]
            c, h, mean_h, var_h, mean_c, var_c = _step(
                blocks, w_ref, given, c_now[...], h_now[...], eps
            )
            c_now[...], h_now[...] = c, h
            hs_ref[0], cs_ref[0] = h, c
            for k in range(4):
                mean_h_ref[0, k], var_h_ref[0, k] = mean_h[k], var_h[k]
            mean_c_ref[0], var_c_ref[0] = mean_c, var_c

        row = _at((1, batch, hidden), steps)
        wide = (steps, 4, 1, hidden), jnp.float32, *_at((1, 4, 1, hidden), steps)
        narrow = (steps, 1, hidden), jnp.float32, *_at((1, 1, hidden), steps)
        each = (steps, batch, hidden), jnp.float32, *row
        found = _pallas.pallas_call(
            kernel,
            term,
            w,
            *affine,
            c,
            h,
            grid=(steps,),
            take=[_at((1, 4, batch, hidden), steps), *map(_whole, (w, *rest))],
            give=[each, each, wide, wide, narrow, narrow],
            scratch_shapes=[tpu.VMEM((batch, hidden), jnp.float32)] * 2,
        )
        return tuple(found), tuple(found)

    def backward(args: Arrays, kept: Arrays, cotangents: Arrays) -> Arrays:
        term, w, scale_h, scale_c, bias_c, c, h = args
        hs, cs = kept[:2]
        steps, _, batch, hidden = term.shape
        before = [jnp.concatenate([a[None], b[:-1]]) for a, b in ((c, cs), (h, hs))]

        def kernel(*refs: Any) -> None:
            (
                term_ref, c_ref, h_ref, new_ref, w_ref, scale_h_ref, scale_c_ref, bias_c_ref,
                dhs_ref, dcs_ref, dmean_h_ref, dvar_h_ref, dmean_c_ref, dvar_c_ref,
                dterm_ref, dw_ref, dscale_h_ref, dscale_c_ref, dbias_c_ref, dc_ref, dh_ref,
            ) = refs  # fmt: skip

            @pl.when(pl.program_id(0) == 0)
            def start() -> None:
                for ref in (dw_ref, dscale_h_ref, dscale_c_ref, dbias_c_ref, dc_ref, dh_ref):
                    ref[...] = jnp.zeros(ref.shape, ref.dtype)

            c, h = c_ref[0], h_ref[0]
            gates = [_gate(term_ref[0, k], w_ref[k], scale_h_ref[k], h, eps_h) for k in range(4)]
            _, (i, f, g, o) = _update([z[0] for z in gates], c)
            new = new_ref[0]
            mean, var = _moments(new)
            inverse = lax.rsqrt(var + jnp.float32(eps_c))
            hat = (new - mean) * inverse
            shown = jnp.tanh(hat * scale_c_ref[...] + bias_c_ref[...])
            dh = dhs_ref[0] + dh_ref[...]
            dshown = dh * o * (1 - shown * shown)
            dscale_c_ref[...] += (dshown * hat).sum(0, keepdims=True)
            dbias_c_ref[...] += dshown.sum(0, keepdims=True)
            dnew = dcs_ref[0] + dc_ref[...]
            dnew += _back(dshown * scale_c_ref[...], hat, inverse, dmean_c_ref[0], dvar_c_ref[0])
            dc_ref[...] = dnew * f
            dz = (
                dnew * g * i * (1 - i),
                dnew * c * f * (1 - f),
                dnew * i * (1 - g * g),
                dh * shown * o * (1 - o),
            )
            back = jnp.zeros((batch, hidden), jnp.float32)
            for k in range(4):
                _, _, _, inverse, hat = gates[k]
                dterm_ref[0, k] = dz[k]
                dscale_h_ref[k] += (dz[k] * hat).sum(0, keepdims=True)
                moved = dmean_h_ref[0, k], dvar_h_ref[0, k]
                dr = _back(dz[k] * scale_h_ref[k], hat, inverse, *moved)
                dw_ref[k] += _dot(h, dr, (0, 0))
                back += _dot(dr, w_ref[k], (1, 1))
            dh_ref[...] = back

        four, row = ((1, 4, batch, hidden), (1, batch, hidden))
        wide, narrow = (1, 4, 1, hidden), (1, 1, hidden)
        sums = w, scale_h, scale_c, bias_c, c, h
        back_at = functools.partial(_at, steps=steps, reverse=True)
        dterm, *rest = _pallas.pallas_call(
            kernel,
            term,
            *before,
            cs,
            w,
            scale_h,
            scale_c,
            bias_c,
            *cotangents,
            grid=(steps,),
            take=[
                *map(back_at, (four, row, row, row)),
                *map(_whole, (w, scale_h, scale_c, bias_c)),
                *map(back_at, (row, row, wide, wide, narrow, narrow)),
            ],
            give=[
                (term.shape, jnp.float32, *back_at(four)),
                *((s.shape, jnp.float32, *_whole(s)) for s in sums),
            ],
        )
        return (dterm, *rest)

    return with_fast_vjp(plain, forward, backward, _pallas.applicable)


def _at(block: tuple[int, ...], steps: int, reverse: bool = False) -> Any:
    """A block of one step, of the last step first where the walk is `reverse`."""
    rest = (0,) * (len(block) - 1)
    return block, lambda t: (steps - 1 - t if reverse else t, *rest)


def _whole(x: jax.Array) -> Any:
    """All of x, in every step."""
    return x.shape, lambda t: (0,) * x.ndim
