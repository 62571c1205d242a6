"""The LSTM with `impl="cudnn"`: one call of cuDNN on a GPU of CUDA, the scan on all else.

cuDNN multiplies by the input weights itself, so nothing may happen to the input term: it serves a
layer without norms. JAX asks cuDNN for the size of its scratch memory when a program is traced for
CUDA. The values that it would keep for the backward pass have such a size too, and a program that
is traced for any platform cannot hold them, so backward starts with the forward call again. In one
`jit` both calls are the same instruction, which XLA runs once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from normjax._internal._by_platform import by_platform
from normjax._internal._paired import Arrays, with_fast_vjp
from normjax.recurrent import _sequences
from normjax.recurrent._scan import LayerCall
from normjax.statistics._types import PyTree

PLATFORM = "cuda"
OUTPUTS = 3  # y of every step, last c, last h


def check(layer: Any) -> None:
    """Refuse a layer whose equations are not cuDNN's."""
    wrong = [f"{place}={norm!r}" for place, norm in layer.norms().items()]
    for name in ("zoneout_h", "zoneout_c", "dropout_h", "carry_normalized"):
        if getattr(layer, name):
            wrong.append(f"{name}={getattr(layer, name)}")
    if wrong:
        raise ValueError(
            "impl='cudnn' serves an LSTM without norms, zoneout, dropout or carry_normalized, and "
            f'this one has {", ".join(wrong)}: write impl="xla"'
        )


def supports(x: jax.Array, call: LayerCall) -> bool:
    """Whether cuDNN takes x `[time, batch, features]` and how the layer is called."""
    if x.dtype != jnp.float32 or not all(isinstance(n, int) for n in x.shape):
        return False  # such as a symbol of an exported program
    if any(jax.typeof(x).sharding.spec):  # split on explicit axes of a mesh
        return False
    options = (call.resets, call.hidden_perturbation, call.solver)
    padded_only = call.mask is None or call.lengths is not None
    return padded_only and not call.with_info and all(option is None for option in options)


def run(
    layer: Any, params: PyTree, x: jax.Array, carry: Any, call: LayerCall
) -> tuple[jax.Array, Any, PyTree, dict[str, Any], dict[str, Any]]:
    """Run over x `[time, batch, features]`; return the fields of `Run`, without gates."""
    args = [x, params["w_x"], params["w_h"], params["bias"], carry.c, carry.h]
    if call.lengths is not None:
        # As floats, whose tangents are zeros of the same dtype; exact up to 2**24 steps.
        args.append(jnp.clip(jnp.asarray(call.lengths).astype(x.dtype), 0, x.shape[0]))
    y, c, h = _recurrence(dataclasses.replace(layer, impl="xla"))(*args)
    return y, type(carry)(c=c, h=h), {}, {}, {}


def pack(w_x: jax.Array, w_h: jax.Array, bias: jax.Array) -> jax.Array:
    """Return the weights as cuDNN's one vector.

    Both have the gates in the order i, f, g, o. cuDNN's matrices are `[4 * hidden, inputs]`, and
    of its two biases the second stays 0.
    """
    return jnp.concatenate([w_x.T.reshape(-1), w_h.T.reshape(-1), bias, jnp.zeros_like(bias)])


def _cudnn(*args: jax.Array) -> Arrays:
    """All steps by cuDNN; at steps past a length y is 0 and the carry holds."""
    from jax.experimental import rnn

    x, w_x, w_h, bias, c, h, *lengths = args
    steps, batch, features = x.shape
    counts = lengths[0].astype(int) if lengths else jnp.full((batch,), steps)
    valid = _sequences.padding(counts if lengths else None, steps, batch)
    try:
        y, h_last, c_last = rnn.lstm(
            x.swapaxes(0, 1),
            h[None],
            c[None],
            pack(w_x, w_h, bias),
            # An empty sequence may be none of cuDNN's: what it makes of it is undone below.
            jnp.maximum(counts, 1).astype(jnp.int32),
            input_size=features,
            hidden_size=h.shape[1],
            num_layers=1,
            dropout=0.0,
            bidirectional=False,
            precision=_precision(),
        )
    except (AttributeError, RuntimeError) as error:
        raise RuntimeError(
            "a program with impl='cudnn' is lowered for CUDA only where there is a GPU, since JAX "
            'asks cuDNN for the size of its memory: lower it there, or write impl="xla"'
        ) from error
    # JAX loses sight of the devices of a `shard_map` that y varies over.
    y, c_last, h_last = _sequences.vary_like((y.swapaxes(0, 1), c_last[0], h_last[0]), x)
    if valid is None:
        return y, c_last, h_last
    # Gradients that arrive at padding end here too.
    empty = counts[:, None] == 0
    held = jnp.where(empty, c, c_last), jnp.where(empty, h, h_last)
    return jnp.where(valid, y, 0), *held


def _precision() -> lax.Precision:
    """The precision of cuDNN's products: that of the scan's on a GPU, or more.

    By default both round to TF32. JAX refuses the names of lower precisions, with which XLA still
    computes float32 products in TF32.
    """
    name = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    try:
        coarse = name is None or lax.Precision(name) != lax.Precision.HIGHEST
    except ValueError:  # the name of an algorithm; some are as exact as float32
        coarse = False
    return lax.Precision.HIGH if coarse else lax.Precision.HIGHEST


def _plain(layer: Any, *args: jax.Array) -> Arrays:
    """The same by the layer's own scan."""
    x, w_x, w_h, bias, c, h, *lengths = args
    counts = lengths[0].astype(int) if lengths else None
    mask = _sequences.padding(counts, *x.shape[:2])
    carry = layer.start_carry(1, x.dtype)._replace(c=c, h=h)
    params = {"w_x": w_x, "w_h": w_h, "bias": bias}
    result = layer._run(params, {}, x, carry, LayerCall("running", mask))
    return result.y, result.carry.c, result.carry.h


@functools.lru_cache(maxsize=64)
def _recurrence(layer: Any) -> Callable[..., Arrays]:
    """The recurrence, one function for each layer, so that JAX compiles it once."""
    plain = functools.partial(_plain, layer)
    plain_backward = _backward(plain)
    forwards = [(PLATFORM, _mapped_by(plain, _cudnn))]
    backwards = [(PLATFORM, _mapped_by(plain_backward, _backward(_cudnn)))]

    def forward(*args: jax.Array) -> tuple[Arrays, Arrays]:
        return by_platform(plain, forwards, *args), ()

    def backward(args: Arrays, _: Arrays, cotangents: Arrays) -> Arrays:
        return by_platform(plain_backward, backwards, *args, *cotangents)

    return with_fast_vjp(plain, forward, backward)


def _backward(function: Callable[..., Arrays]) -> Callable[..., Arrays]:
    """Return what takes the function's arguments and cotangents to gradients."""

    def backward(*operands: jax.Array) -> Arrays:
        args, cotangents = operands[:-OUTPUTS], operands[-OUTPUTS:]
        return jax.vjp(function, *args)[1](cotangents)

    return backward


def _mapped_by(plain: Callable[..., Arrays], function: Callable[..., Arrays]) -> Any:
    """Return the function with `vmap` of its plain twin: cuDNN has one set of weights a call."""
    chosen = jax.custom_batching.custom_vmap(function)

    @chosen.def_vmap
    def _(size: int, batched: Any, *operands: jax.Array) -> tuple[Arrays, tuple[bool, ...]]:
        del size
        outputs = jax.vmap(plain, [0 if b else None for b in batched])(*operands)
        return outputs, (True,) * len(outputs)

    return chosen
