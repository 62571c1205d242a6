"""Gives a function a fast backward pass and takes all other derivatives from a plain twin.

`jax.custom_vjp` would rule out forward mode. Here the tangent is a separate primitive. Evaluating
it gives the tangent of the twin, transposing it gives the fast backward pass. `grad` only
transposes it, `jvp` only evaluates it, and differentiating either again uses the twin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from normjax._internal._checkpoint_names import STATISTICS, checkpoint_name
from normjax._internal._manual_axes import vary_together

Arrays = tuple[jax.Array, ...]


def with_fast_vjp(
    plain: Callable[..., Arrays],
    forward: Callable[..., tuple[Arrays, Arrays]],
    backward: Callable[[Arrays, Arrays, Arrays], Arrays],
) -> Callable[..., Arrays]:
    """Return a function with the values of `forward` and the derivatives of `plain`.

    Args:
        plain: `plain(*args) -> outputs`, in plain JAX.
        forward: `forward(*args) -> (outputs, residuals)`, with the outputs of `plain`.
        backward: `backward(args, residuals, cotangents) -> gradients`, one for each argument.

    Returns:
        A function of arrays that returns a tuple of outputs.
    """

    def plain_backward(args: Arrays, cotangents: Arrays) -> Arrays:
        return jax.vjp(plain, *args)[1](tuple(cotangents))

    # The fast backward pass; its own derivative is that of the twin's backward pass.
    @jax.custom_jvp
    def back(args: Arrays, residuals: Arrays, cotangents: Arrays) -> Arrays:
        return backward(args, residuals, cotangents)

    @back.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (args, residuals, cotangents), (dargs, _, dcotangents) = primals, tangents
        dgradients = jax.jvp(plain_backward, (args, cotangents), (dargs, dcotangents))[1]
        return back(args, residuals, cotangents), dgradients

    # The fast forward pass; its tangent is the primitive below.
    @jax.custom_jvp
    def call(*args: jax.Array) -> tuple[Arrays, Arrays]:
        return forward(*args)

    @call.defjvp
    def _(args: Any, tangents: Any) -> Any:
        outputs, residuals = call(*args)
        residuals = checkpoint_name(residuals, STATISTICS)
        sizes = len(args), len(residuals)
        doutputs = tangent_p.bind(*args, *residuals, *tangents, plain=plain, back=back, sizes=sizes)
        # Residuals need no tangent: a second derivative goes through the twin.
        return (outputs, residuals), (tuple(doutputs), tuple(map(jnp.zeros_like, residuals)))

    def run(*args: jax.Array) -> Arrays:
        # Under `shard_map` this makes the gradient of an argument that did not vary a sum over
        # devices.
        return call(*vary_together(args))[0]

    return run


# Operands: the arguments, the residuals, and a tangent for each argument; linear in the tangents.
tangent_p = core.Primitive("normjax_tangent")
tangent_p.multiple_results = True


def _cut(operands: Sequence[Any], sizes: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Split operands into arguments, residuals and tangents; `sizes` counts the first two."""
    args, residuals = sizes
    return (
        tuple(operands[:args]),
        tuple(operands[args : args + residuals]),
        tuple(operands[args + residuals :]),
    )


def _evaluate(*operands: Any, plain: Any, back: Any, sizes: Any) -> Any:
    """Compute the tangent of the twin."""
    del back
    args, _, tangents = _cut(operands, sizes)
    return jax.jvp(plain, args, tangents)[1]


def _jvp(primals: Any, tangents: Any, **static: Any) -> Any:
    """Differentiate the tangent again, as the tangent of the twin."""

    def plain_tangent(args: Arrays, dargs: Arrays) -> Arrays:
        return jax.jvp(static["plain"], args, dargs)[1]

    args, _, dargs = _cut(primals, static["sizes"])
    args_dot, _, dargs_dot = _cut([*map(ad.instantiate_zeros, tangents)], static["sizes"])
    second = jax.jvp(plain_tangent, (args, dargs), (args_dot, dargs_dot))[1]
    return tangent_p.bind(*primals, **static), second


def _transpose(cotangents: Any, *operands: Any, plain: Any, back: Any, sizes: Any) -> Any:
    """Run the fast backward pass."""
    del plain
    args, residuals, tangents = _cut(operands, sizes)
    gradients = back(args, residuals, tuple(map(ad.instantiate_zeros, cotangents)))
    # Only tangents that are being transposed get a cotangent, arguments and residuals none.
    wanted = [
        g if ad.is_undefined_primal(t) else None for g, t in zip(gradients, tangents, strict=True)
    ]
    return [None] * (len(args) + len(residuals)) + wanted


def _batch(operands: Any, axes: Any, *, plain: Any, back: Any, sizes: Any) -> Any:
    """Move every operand's batch axis to the front and map both functions over it."""
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    batched = [
        jnp.broadcast_to(x, (size, *x.shape)) if a is None else jnp.moveaxis(x, a, 0)
        for x, a in zip(operands, axes, strict=True)
    ]
    outputs = tangent_p.bind(*batched, plain=jax.vmap(plain), back=jax.vmap(back), sizes=sizes)
    return outputs, [0] * len(outputs)


def _shapes(*operands: Any, plain: Any, back: Any, sizes: Any) -> Any:
    """Return shapes and dtypes of the tangents, which are those of the outputs."""
    del back
    return jax.make_jaxpr(plain)(*operands[: sizes[0]]).out_avals


tangent_p.def_impl(_evaluate)
tangent_p.def_abstract_eval(_shapes)
ad.primitive_jvps[tangent_p] = _jvp
ad.primitive_transposes[tangent_p] = _transpose
batching.primitive_batchers[tangent_p] = _batch
mlir.register_lowering(tangent_p, mlir.lower_fun(_evaluate, multiple_results=True))
