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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from normjax._internal._by_platform import by_platform
from normjax._internal._paired import Arrays, with_fast_vjp
from normjax.kernels import _pallas, _registry
from normjax.kernels._block_moments import centred
from normjax.kernels._registry import Backend

ON_CHIP = 12 * 2**20  # bytes; a core has 16 MiB or more for the blocks of a program


def fits(batch: int, hidden: int) -> bool:
    """Whether weights, their gradient and two steps of everything else stay on the chip."""
    if not isinstance(batch, int):  # a symbol of an exported program
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
    term = term.reshape(steps, batch, 4, hidden).swapaxes(1, 2)  # [time, 4, batch, hidden]
    w_h = w_h.reshape(hidden, 4, hidden).swapaxes(0, 1)  # [4, hidden, hidden]
    affine = scale_h.reshape(4, 1, hidden), scale_c[None], bias_c[None]
    backends = _pallas.platforms("bn_lstm", term, lambda backend: True)
    recurrence = _recurrence(*eps, tuple(backends.items()))
    hs, cs, mean_h, var_h, mean_c, var_c = recurrence(term, w_h, *affine, c, h)
    wide = mean_h.reshape(steps, width), var_h.reshape(steps, width)
    return hs, cs, wide, (mean_c.reshape(steps, hidden), var_c.reshape(steps, hidden))


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(
        a, b, dimensions, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
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
    normalized = (c - mean) * lax.rsqrt(var + jnp.float32(eps[1])) * scale_c + bias_c
    h = o * jnp.tanh(normalized)
    return c, h, [g[1] for g in gates], [g[2] for g in gates], mean, var


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
    c, h, mean_h, var_h, mean_c, var_c = _step(terms, r.w, affine, r.c_now[...], r.h_now[...], eps)
    r.c_now[...], r.h_now[...] = c, h
    r.h[0], r.c[0] = h, c
    for k in range(4):
        r.mean_h[0, k], r.var_h[0, k] = mean_h[k], var_h[k]
    r.mean_c[0], r.var_c[0] = mean_c, var_c


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
    gates = [_gate(r.term[0, k], r.w[k], r.scale_h[k], h, eps[0]) for k in range(4)]
    _, (i, f, g, o) = _update([gate[0] for gate in gates], c)
    c_new = r.c[0]
    mean, var = _moments(c_new)
    inverse = lax.rsqrt(var + jnp.float32(eps[1]))
    hat = (c_new - mean) * inverse
    squashed = jnp.tanh(hat * r.scale_c[...] + r.bias_c[...])

    # The output, and the norm of the cell.
    dh = r.dh_out[0] + r.dh[...]
    dnormalized = dh * o * (1 - squashed * squashed)
    r.dscale_c[...] += (dnormalized * hat).sum(0, keepdims=True)
    r.dbias_c[...] += dnormalized.sum(0, keepdims=True)
    dc = r.dc_out[0] + r.dc[...]
    dc += _back(dnormalized * r.scale_c[...], hat, inverse, r.dmean_c[0], r.dvar_c[0])
    r.dc[...] = dc * f

    # The gates, and the norm of each one's recurrent term.
    dz = (
        dc * g * i * (1 - i),
        dc * c * f * (1 - f),
        dc * i * (1 - g * g),
        dh * squashed * o * (1 - o),
    )
    dh_before = jnp.zeros(h.shape, jnp.float32)
    for k in range(4):
        _, _, _, inverse, hat = gates[k]
        r.dterm[0, k] = dz[k]
        r.dscale_h[k] += (dz[k] * hat).sum(0, keepdims=True)
        dproduct = _back(dz[k] * r.scale_h[k], hat, inverse, r.dmean_h[0, k], r.dvar_h[0, k])
        r.dw[k] += _dot(h, dproduct, (0, 0))
        dh_before += _dot(dproduct, r.w[k], (1, 1))
    r.dh[...] = dh_before


def _plain(*args: jax.Array, eps: tuple[float, float]) -> Arrays:
    """The recurrence as a scan: what the kernels compute."""
    term, w, *affine, c, h = args

    def body(carry: Any, term_t: jax.Array) -> Any:
        c, h = carry
        c, h, mean_h, var_h, mean_c, var_c = _step(term_t, w, affine, c, h, eps)
        return (c, h), (h, c, jnp.stack(mean_h), jnp.stack(var_h), mean_c, var_c)

    return lax.scan(body, (c, h), term)[1]


def _plain_backward(*operands: jax.Array, eps: tuple[float, float]) -> Arrays:
    """What `kernel_backward` does, as a scan from the last step to the first."""
    (term, *weights, c, h), (hs, cs) = operands[:7], operands[7:9]
    before = jnp.concatenate([c[None], cs[:-1]]), jnp.concatenate([h[None], hs[:-1]])

    def step(term_t: jax.Array, w: Any, *rest: Any) -> Any:
        *affine, c, h = rest
        c, h, mean_h, var_h, mean_c, var_c = _step(term_t, w, affine, c, h, eps)
        return h, c, jnp.stack(mean_h), jnp.stack(var_h), mean_c, var_c

    def body(carry: Any, inputs: Any) -> Any:
        totals, dc, dh = carry
        term_t, c_before, h_before, (dh_out, dc_out, *dstats) = inputs
        _, pull = jax.vjp(step, term_t, *weights, c_before, h_before)
        dterm, *dweights, dc, dh = pull((dh_out + dh, dc_out + dc, *dstats))
        return (jax.tree.map(jnp.add, totals, tuple(dweights)), dc, dh), dterm

    zeros = jax.tree.map(jnp.zeros_like, (tuple(weights), c, h))
    carry, dterm = lax.scan(body, zeros, (term, *before, operands[13:]), reverse=True)
    totals, dc, dh = carry
    return (dterm, *totals, dc, dh)


def kernel_forward(*args: jax.Array, eps: tuple[float, float], backend: Backend) -> Arrays:
    """All steps by the kernel; the outputs are also all that backward needs."""
    steps, _, batch, hidden = args[0].shape
    rows = (steps, batch, hidden), jnp.float32, *_at((1, batch, hidden), steps)
    wide = (steps, 4, 1, hidden), jnp.float32, *_at((1, 4, 1, hidden), steps)
    narrow = (steps, 1, hidden), jnp.float32, *_at((1, 1, hidden), steps)
    outputs = _pallas.pallas_call(
        functools.partial(_forward_kernel, eps=eps),
        *args,
        backend=backend,
        flops=_flops(steps, batch, hidden),
        transcendentals=5 * steps * batch * hidden,
        grid=(steps,),
        take=[_at((1, 4, batch, hidden), steps), *map(_whole, args[1:])],
        give=[rows, rows, wide, wide, narrow, narrow],
        scratch_shapes=[tpu.VMEM((batch, hidden), jnp.float32)] * 2,
    )
    return tuple(outputs)


def kernel_backward(*operands: jax.Array, eps: tuple[float, float], backend: Backend) -> Arrays:
    """Gradients of all arguments, from the last step to the first.

    The operands are the seven arguments, the six outputs and their cotangents.
    """
    args, (hs, cs), cotangents = operands[:7], operands[7:9], operands[13:]
    term, w, scale_h, scale_c, bias_c, c, h = args
    steps, _, batch, hidden = term.shape
    # The state before each step: the first one, then those of all steps but the last.
    c_before, h_before = (
        jnp.concatenate([first[None], after[:-1]]) for first, after in ((c, cs), (h, hs))
    )
    at_step = functools.partial(_at, steps=steps, reverse=True)
    four, row = at_step((1, 4, batch, hidden)), at_step((1, batch, hidden))
    wide, narrow = at_step((1, 4, 1, hidden)), at_step((1, 1, hidden))
    gradients = _pallas.pallas_call(
        functools.partial(_backward_kernel, eps=eps),
        *(term, c_before, h_before, cs),
        *(w, scale_h, scale_c, bias_c),
        *cotangents,
        backend=backend,
        flops=3 * _flops(steps, batch, hidden),
        transcendentals=5 * steps * batch * hidden,
        grid=(steps,),
        take=[
            *(four, row, row, row),
            *map(_whole, (w, scale_h, scale_c, bias_c)),
            *(row, row, wide, wide, narrow, narrow),
        ],
        give=[
            (term.shape, jnp.float32, *four),
            *((arg.shape, jnp.float32, *_whole(arg)) for arg in args[1:]),
        ],
    )
    return tuple(gradients)


def _flops(steps: int, batch: int, hidden: int) -> int:
    """Operations of the products of all steps, and of the norms and gates beside them."""
    return steps * batch * hidden * (8 * hidden + 60)


@functools.lru_cache(maxsize=16)
def _recurrence(eps_h: float, eps_c: float, backends: tuple[tuple[str, Backend], ...]) -> Any:
    """The recurrence, one function for each eps and its kernels, so that JAX compiles it once."""
    plain, plain_backward = (
        functools.partial(function, eps=(eps_h, eps_c)) for function in (_plain, _plain_backward)
    )
    forwards, backwards = [], []
    for name, backend in backends:
        kernel: Any = _registry.load_kernel("bn_lstm", backend)
        how = {"eps": (eps_h, eps_c), "backend": backend}
        forwards.append((name, functools.partial(kernel.kernel_forward, **how)))
        backwards.append((name, functools.partial(kernel.kernel_backward, **how)))

    def forward(*args: jax.Array) -> tuple[Arrays, Arrays]:
        outputs = by_platform(plain, forwards, *args)
        return outputs, outputs

    def backward(args: Arrays, outputs: Arrays, cotangents: Arrays) -> Arrays:
        return by_platform(plain_backward, backwards, *args, *outputs, *cotangents)

    return with_fast_vjp(plain, forward, backward)


def _at(block: tuple[int, ...], steps: int, reverse: bool = False) -> Any:
    """A block of one step, of the last step first where the walk is `reverse`."""
    rest = (0,) * (len(block) - 1)
    return block, lambda t: (steps - 1 - t if reverse else t, *rest)


def _whole(x: jax.Array) -> Any:
    """All of x, in every step."""
    return x.shape, lambda t: (0,) * x.ndim
