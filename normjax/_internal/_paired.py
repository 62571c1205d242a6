"""A fast function's values and its backward pass, and every other derivative from its plain twin.

`jax.custom_vjp` would forbid forward mode. Here the tangent is a primitive of its own: evaluated,
it is the tangent of the twin; transposed, it is the fast backward pass. `grad` transposes it and
never evaluates it, `jvp` evaluates it and never transposes it, and both can be differentiated
again, which is done as the twin is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from normjax._internal._manual_axes import vary_together
from normjax._internal._saved import STATISTICS, checkpoint_name

Arrays = tuple[jax.Array, ...]


def with_fast_vjp(
    plain: Callable[..., Arrays],
    forward: Callable[..., tuple[Arrays, Arrays]],
    backward: Callable[[Arrays, Arrays, Arrays], Arrays],
    runs: Callable[[Arrays], bool] = lambda args: True,
) -> Callable[..., Arrays]:
    """Return a function of arrays with `forward`'s values and `plain`'s meaning.

    Args:
        plain: `plain(*args) -> outputs`.
        forward: `forward(*args) -> (outputs, kept)`, the same outputs.
        backward: `backward(args, kept, cotangents) -> one cotangent for each argument`.
        runs: whether it can run on these arguments; else `plain` does.
    """

    def plain_backward(args: Arrays, cotangents: Arrays) -> Arrays:
        return jax.vjp(plain, *args)[1](tuple(cotangents))

    @jax.custom_jvp
    def back(args: Arrays, kept: Arrays, cotangents: Arrays) -> Arrays:
        return backward(args, kept, cotangents)

    @back.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (args, kept, cotangents), (dargs, _, dcotangents) = primals, tangents
        moved = jax.jvp(plain_backward, (args, cotangents), (dargs, dcotangents))[1]
        return back(args, kept, cotangents), moved

    @jax.custom_jvp
    def call(*args: jax.Array) -> tuple[Arrays, Arrays]:
        return forward(*args)

    @call.defjvp
    def _(args: Any, tangents: Any) -> Any:
        outputs, kept = call(*args)
        kept = checkpoint_name(kept, STATISTICS)
        sizes = len(args), len(kept)
        moved = tangent_p.bind(*args, *kept, *tangents, plain=plain, back=back, sizes=sizes)
        # What is kept has no tangent: whoever differentiates again goes through the twin.
        return (outputs, kept), (tuple(moved), tuple(map(jnp.zeros_like, kept)))

    def run(*args: jax.Array) -> Arrays:
        # All alike before the call: under `shard_map` the gradient of what was not is then a sum.
        args = vary_together(args)
        return call(*args)[0] if runs(args) else plain(*args)

    return run


tangent_p = core.Primitive("normjax_tangent")
tangent_p.multiple_results = True


def _cut(operands: Sequence[Any], sizes: tuple[int, int]) -> tuple[Any, Any, Any]:
    args, kept = sizes
    return (
        tuple(operands[:args]),
        tuple(operands[args : args + kept]),
        tuple(operands[args + kept :]),
    )


def _evaluate(*operands: Any, plain: Any, back: Any, sizes: Any) -> Any:
    del back
    args, _, tangents = _cut(operands, sizes)
    return jax.jvp(plain, args, tangents)[1]


def _jvp(primals: Any, tangents: Any, **how: Any) -> Any:
    def again(args: Arrays, moved: Arrays) -> Arrays:
        return jax.jvp(how["plain"], args, moved)[1]

    args, _, moved = _cut(primals, how["sizes"])
    dargs, _, dmoved = _cut([*map(ad.instantiate_zeros, tangents)], how["sizes"])
    return tangent_p.bind(*primals, **how), jax.jvp(again, (args, moved), (dargs, dmoved))[1]


def _transpose(cotangents: Any, *operands: Any, plain: Any, back: Any, sizes: Any) -> Any:
    del plain
    args, kept, tangents = _cut(operands, sizes)
    given = back(args, kept, tuple(map(ad.instantiate_zeros, cotangents)))
    wanted = [
        g if ad.is_undefined_primal(t) else None for g, t in zip(given, tangents, strict=True)
    ]
    return [None] * (len(args) + len(kept)) + wanted


def _batch(operands: Any, axes: Any, *, plain: Any, back: Any, sizes: Any) -> Any:
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    every = [
        jnp.broadcast_to(x, (size, *x.shape)) if a is None else jnp.moveaxis(x, a, 0)
        for x, a in zip(operands, axes, strict=True)
    ]
    found = tangent_p.bind(*every, plain=jax.vmap(plain), back=jax.vmap(back), sizes=sizes)
    return found, [0] * len(found)


def _shapes(*operands: Any, plain: Any, back: Any, sizes: Any) -> Any:
    del back
    return jax.make_jaxpr(plain)(*operands[: sizes[0]]).out_avals


tangent_p.def_impl(_evaluate)
tangent_p.def_abstract_eval(_shapes)
ad.primitive_jvps[tangent_p] = _jvp
ad.primitive_transposes[tangent_p] = _transpose
batching.primitive_batchers[tangent_p] = _batch
mlir.register_lowering(tangent_p, mlir.lower_fun(_evaluate, multiple_results=True))
