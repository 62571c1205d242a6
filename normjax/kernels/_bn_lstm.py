"""The BN-LSTM's recurrence as one program: a kernel for TPU and one for GPU, and their twin.

A function of seven arguments, in float32: the input term of all steps with the biases
`[time, batch, 4 * hidden]`, recurrent weights `[hidden, 4 * hidden]`, their norm's scale
`[4 * hidden]`, scale and bias of the cell's norm `[hidden]`, and c and h before the first step
`[batch, hidden]`. It returns h and c of every step `[time, batch, hidden]`, and mean and variance
of the recurrent term `[time, 4 * hidden]` and of the cell `[time, hidden]`.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from normjax._internal._by_platform import by_platform
from normjax._internal._paired import Arrays, with_fast_vjp
from normjax.kernels import _bn_lstm_step as one
from normjax.kernels import _pallas, _registry
from normjax.kernels._registry import Backend


def fits(batch: int, hidden: int) -> bool:
    """Whether some backend's kernel takes a batch of so many rows."""
    if not isinstance(batch, int):  # a symbol of an exported program
        return False
    backends = {*_registry.platforms("bn_lstm").values()}
    return any(_kernel(backend).fits(batch, hidden) for backend in backends)


def _kernel(backend: Backend) -> Any:
    return _registry.load_kernel("bn_lstm", backend)


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
    """Walk `term`; return h, c, and mean and variance of the recurrent term and of the cell."""
    _, batch, width = term.shape
    found = _pallas.platforms("bn_lstm", term, lambda b: _kernel(b).fits(batch, width // 4))
    kernels = tuple((name, _kernel(backend), backend) for name, backend in found.items())
    recurrence = _recurrence(*eps, kernels)
    hs, cs, mean_h, var_h, mean_c, var_c = recurrence(term, w_h, scale_h, scale_c, bias_c, c, h)
    return hs, cs, (mean_h, var_h), (mean_c, var_c)


@functools.lru_cache(maxsize=16)
def _recurrence(
    eps_h: float, eps_c: float, kernels: tuple[tuple[str, ModuleType, Backend], ...]
) -> Any:
    """The recurrence, one function for each eps and its kernels, so that JAX compiles it once."""
    how = {"eps": (eps_h, eps_c)}
    plain, plain_backward = (functools.partial(f, **how) for f in (_plain, _plain_backward))
    forwards = [
        (name, functools.partial(m.kernel_forward, backend=b, **how)) for name, m, b in kernels
    ]
    backwards = [
        (name, functools.partial(m.kernel_backward, backend=b, **how)) for name, m, b in kernels
    ]

    def forward(*args: jax.Array) -> tuple[Arrays, Arrays]:
        outputs = by_platform(plain, forwards, *args)
        return outputs, outputs

    def backward(args: Arrays, outputs: Arrays, cotangents: Arrays) -> Arrays:
        return by_platform(plain_backward, backwards, *args, *outputs, *cotangents)

    return with_fast_vjp(plain, forward, backward)


def _plain(*args: jax.Array, eps: tuple[float, float]) -> Arrays:
    """The recurrence as a scan: what the kernels compute."""
    term, w, *affine = one.gates_first(*args[:5])
    c, h = args[5:]

    def body(carry: Any, term_t: jax.Array) -> Any:
        c, h = carry
        outputs = _step(term_t, w, *affine, c, h, eps=eps)
        return (outputs[1], outputs[0]), outputs

    return lax.scan(body, (c, h), term)[1]


def _step(*operands: jax.Array, eps: tuple[float, float]) -> Arrays:
    """One step with the outputs of `run`."""
    term, w, *affine, c, h = operands
    c, h, mean_h, var_h, mean_c, var_c = one.step(term, w, affine, c, h, eps)
    stats = jnp.stack(mean_h), jnp.stack(var_h), mean_c, var_c
    return h, c, *(s.reshape(-1) for s in stats)


def _plain_backward(*operands: jax.Array, eps: tuple[float, float]) -> Arrays:
    """What the kernels' backward does, as a scan from the last step to the first."""
    args, (hs, cs) = operands[:7], operands[7:9]
    (term, *weights), turn_back = jax.vjp(one.gates_first, *args[:5])
    c, h = args[5:]
    before = jnp.concatenate([c[None], cs[:-1]]), jnp.concatenate([h[None], hs[:-1]])
    step = functools.partial(_step, eps=eps)

    def body(carry: Any, inputs: Any) -> Any:
        totals, dc, dh = carry
        term_t, c_before, h_before, (dh_out, dc_out, *dstats) = inputs
        _, pull = jax.vjp(step, term_t, *weights, c_before, h_before)
        dterm, *dweights, dc, dh = pull((dh_out + dh, dc_out + dc, *dstats))
        return (jax.tree.map(jnp.add, totals, tuple(dweights)), dc, dh), dterm

    zeros = jax.tree.map(jnp.zeros_like, (tuple(weights), c, h))
    carry, dterm = lax.scan(body, zeros, (term, *before, operands[13:]), reverse=True)
    totals, dc, dh = carry
    return (*turn_back((dterm, *totals)), dc, dh)
