"""The BN-LSTM's recurrence on a TPU: weights and state stay on the chip over all steps.

The grid is the time axis, which a TPU walks in order. Recurrent weights, the whole batch's hidden
and cell state and the gradient of the weights are blocks that do not move; of each step the input
term comes in and h, c and the statistics go out, which the pipeline overlaps with the arithmetic.
The batch statistics of a step are sums over rows of what is on the chip already. The backward walk
makes a step again from h and c of the step before: nothing else is kept.

Gates have an axis of their own (`[4, batch, hidden]`), so that no slice cuts a register.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from normjax._internal._paired import Arrays
from normjax.kernels import _bn_lstm_step as one
from normjax.kernels import _pallas
from normjax.kernels._registry import Backend

ON_CHIP = 12 * 2**20  # bytes; a core has 16 MiB or more for the blocks of a program


def fits(batch: int, hidden: int) -> bool:
    """Whether weights, their gradient and two steps of everything else stay on the chip."""
    # The pipeline has two of each block. Of a backward step there are 15, and 12 in between.
    weights, step = 4 * hidden * hidden, batch * hidden
    return 4 * (2 * 2 * weights + (2 * 15 + 12) * step) <= ON_CHIP


class _ForwardRefs(NamedTuple):
    """Blocks of a step forward: what it reads, what it writes, what stays on the chip."""

    term: Any  # [1, 4, batch, hidden]
    w: Any  # [4, hidden, hidden]
    scale_h: Any  # [4, 1, hidden]
    scale_c: Any  # [1, hidden]
    bias_c: Any  # [1, hidden]
    c_first: Any  # [batch, hidden]
    h_first: Any  # [batch, hidden]

    h: Any  # [1, batch, hidden]
    c: Any  # [1, batch, hidden]
    mean_h: Any  # [1, 4, 1, hidden]
    var_h: Any  # [1, 4, 1, hidden]
    mean_c: Any  # [1, 1, hidden]
    var_c: Any  # [1, 1, hidden]

    c_now: Any  # [batch, hidden]
    h_now: Any  # [batch, hidden]


def _forward_kernel(*refs: Any, eps: tuple[float, float]) -> None:
    """One step forward; `c_now` and `h_now` carry the state from step to step."""
    r = _ForwardRefs(*refs)

    @pl.when(pl.program_id(0) == 0)
    def start() -> None:
        r.c_now[...], r.h_now[...] = r.c_first[...], r.h_first[...]

    terms = [r.term[0, k] for k in range(4)]
    affine = r.scale_h, r.scale_c[...], r.bias_c[...]
    c, h, mean_h, var_h, mean_c, var_c = one.step(
        terms, r.w, affine, r.c_now[...], r.h_now[...], eps
    )
    r.c_now[...], r.h_now[...] = c, h
    r.h[0], r.c[0] = h, c
    for k in range(4):
        r.mean_h[0, k], r.var_h[0, k] = mean_h[k], var_h[k]
    r.mean_c[0], r.var_c[0] = mean_c, var_c


def _back_update(
    gates: Any, c: jax.Array, dc: jax.Array, do: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The gradients of the cell before the step, and of the gates before their nonlinearities."""
    i, f, g, o = gates
    dz = (
        dc * g * i * (1 - i),
        dc * c * f * (1 - f),
        dc * i * (1 - g * g),
        do * o * (1 - o),
    )
    return dc * f, dz


class _BackwardRefs(NamedTuple):
    """Blocks of a step backward: what it reads, and the gradients that it writes or adds to."""

    term: Any  # [1, 4, batch, hidden]
    c_before: Any  # [1, batch, hidden], as the next two
    h_before: Any
    c: Any
    w: Any  # [4, hidden, hidden]
    scale_h: Any  # [4, 1, hidden]
    scale_c: Any  # [1, hidden]
    bias_c: Any  # [1, hidden]

    # Cotangents of the outputs, in their shapes.
    dh_out: Any
    dc_out: Any
    dmean_h: Any
    dvar_h: Any
    dmean_c: Any
    dvar_c: Any

    # Gradients in the shapes of the arguments. All but the first stay on the chip: sums over
    # steps, and dc and dh of the state, which at the end are those of the first state.
    dterm: Any
    dw: Any
    dscale_h: Any
    dscale_c: Any
    dbias_c: Any
    dc: Any
    dh: Any


def _backward_kernel(*refs: Any, eps: tuple[float, float]) -> None:
    """One step backward, which computes the step again from the state before it."""
    r = _BackwardRefs(*refs)

    @pl.when(pl.program_id(0) == 0)
    def start() -> None:
        for ref in (r.dw, r.dscale_h, r.dscale_c, r.dbias_c, r.dc, r.dh):
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    # The step again. [batch, hidden]
    c, h = r.c_before[0], r.h_before[0]
    count = h.shape[0]
    gates = [one.gate(r.term[0, k], r.w[k], r.scale_h[k], h, eps[0]) for k in range(4)]
    _, opened = one.update([z for z, _ in gates], c)
    o = opened[3]
    cell = one.normalize(r.c[0], eps[1])
    squashed = jnp.tanh(cell.hat * r.scale_c[...] + r.bias_c[...])

    # The output, and the norm of the cell.
    dh = r.dh_out[0] + r.dh[...]
    dnormalized = dh * o * (1 - squashed * squashed)
    total = one.sums(dnormalized, cell.hat)
    r.dbias_c[...] += total[0]
    r.dscale_c[...] += total[1]
    dstats = r.dmean_c[0], r.dvar_c[0]
    dc = r.dc_out[0] + r.dc[...]
    dc += one.back(dnormalized, r.scale_c[...], cell, total, dstats, count)

    # The gates, and the norm of each one's recurrent term.
    r.dc[...], dz = _back_update(opened, c, dc, dh * squashed)
    dh_before = jnp.zeros(h.shape, jnp.float32)
    for k in range(4):
        r.dterm[0, k] = dz[k]
        recurrent = gates[k][1]
        total = one.sums(dz[k], recurrent.hat)
        r.dscale_h[k] += total[1]
        dstats = r.dmean_h[0, k], r.dvar_h[0, k]
        dproduct = one.back(dz[k], r.scale_h[k], recurrent, total, dstats, count)
        r.dw[k] += one.dot(h, dproduct, (0, 0))
        dh_before += one.dot(dproduct, r.w[k], (1, 1))
    r.dh[...] = dh_before


def kernel_forward(*args: jax.Array, eps: tuple[float, float], backend: Backend) -> Arrays:
    """All steps by the kernel; the outputs are also all that backward needs."""
    steps, batch, width = args[0].shape
    hidden = width // 4
    operands = *one.gates_first(*args[:5]), *args[5:]
    rows = (steps, batch, hidden), jnp.float32, *_at((1, batch, hidden), steps)
    wide = (steps, 4, 1, hidden), jnp.float32, *_at((1, 4, 1, hidden), steps)
    narrow = (steps, 1, hidden), jnp.float32, *_at((1, 1, hidden), steps)
    h, c, *stats = _pallas.pallas_call(
        functools.partial(_forward_kernel, eps=eps),
        *operands,
        backend=backend,
        flops=one.flops(steps, batch, hidden),
        transcendentals=5 * steps * batch * hidden,
        grid=(steps,),
        take=[_at((1, 4, batch, hidden), steps), *map(_whole, operands[1:])],
        give=[rows, rows, wide, wide, narrow, narrow],
        scratch_shapes=[tpu.VMEM((batch, hidden), jnp.float32)] * 2,
    )
    return h, c, *(s.reshape(steps, -1) for s in stats)


def kernel_backward(*operands: jax.Array, eps: tuple[float, float], backend: Backend) -> Arrays:
    """Gradients of all arguments, from the last step to the first.

    The operands are the seven arguments, the six outputs and their cotangents.
    """
    args, (hs, cs), cotangents = operands[:7], operands[7:9], operands[13:]
    steps, batch, width = args[0].shape
    hidden = width // 4
    term, w, scale_h, scale_c, bias_c = one.gates_first(*args[:5])
    c, h = args[5:]
    dstats = [s.reshape(steps, -1, 1, hidden) for s in cotangents[2:]]
    # The state before each step: the first one, then those of all steps but the last.
    c_before, h_before = (
        jnp.concatenate([first[None], after[:-1]]) for first, after in ((c, cs), (h, hs))
    )
    at_step = functools.partial(_at, steps=steps, reverse=True)
    four, row = at_step((1, 4, batch, hidden)), at_step((1, batch, hidden))
    wide, narrow = at_step((1, 4, 1, hidden)), at_step((1, 1, hidden))
    fixed = w, scale_h, scale_c, bias_c
    dterm, dw, *rest = _pallas.pallas_call(
        functools.partial(_backward_kernel, eps=eps),
        *(term, c_before, h_before, cs),
        *fixed,
        *cotangents[:2],
        *dstats[:2],
        *(s[:, 0] for s in dstats[2:]),
        backend=backend,
        flops=3 * one.flops(steps, batch, hidden),
        transcendentals=5 * steps * batch * hidden,
        grid=(steps,),
        take=[
            *(four, row, row, row),
            *map(_whole, fixed),
            *(row, row, wide, wide, narrow, narrow),
        ],
        give=[
            (term.shape, jnp.float32, *four),
            *((arg.shape, jnp.float32, *_whole(arg)) for arg in (*fixed, c, h)),
        ],
    )
    gradients = dterm.swapaxes(1, 2), dw.swapaxes(0, 1), *rest
    return tuple(g.reshape(arg.shape) for g, arg in zip(gradients, args, strict=True))


def _at(block: tuple[int, ...], steps: int, reverse: bool = False) -> Any:
    """A block of one step, of the last step first where the walk is `reverse`."""
    rest = (0,) * (len(block) - 1)
    return block, lambda t: (steps - 1 - t if reverse else t, *rest)


def _whole(x: jax.Array) -> Any:
    """All of x, in every step."""
    return x.shape, lambda t: (0,) * x.ndim
