"""Computes the same values by different functions, chosen by the platform of the program.

A function is chosen when a program is lowered, not while it is traced: one traced program may be
compiled for a CPU, exported for a TPU, or both. Unlike `lax.platform_dependent`, derivatives trace
no platform's function but the one that is lowered, and store only its arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from normjax._internal._manual_axes import vary_together

Arrays = tuple[jax.Array, ...]
Function = Callable[..., Arrays]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def by_platform(
    default: Function, others: Sequence[tuple[str, Function]], *args: jax.Array, linear: int = 0
) -> Arrays:
    """Return `default(*args)`, or what another function computes on its platform.

    The functions return tuples of arrays of the same shapes, and are best the same objects in each
    call, so that what is compiled for them is found again.

    Args:
        default: function of arrays, for all other platforms.
        others: pairs of a platform of `PLATFORMS` and its function.
        *args: the arrays.
        linear: number of last arguments that all functions are linear in, jointly.
    """
    # Under `shard_map` the gradient of an argument that did not vary is then a sum over devices.
    args = vary_together(args)
    return tuple(choice_p.bind(*args, default=default, others=tuple(others), linear=linear))


# Operands: the arguments; linear in the last ones.
choice_p = core.Primitive("normjax_by_platform")
choice_p.multiple_results = True


def _run(platform: str, operands: Any, *, default: Any, others: Any, linear: int) -> Any:
    """Run the function of a platform."""
    del linear
    return dict(others).get(platform, default)(*operands)


def _evaluate(*operands: Any, **static: Any) -> Any:
    """Run outside of `jit`, on the device that has the operands."""
    devices = [d for x in operands if isinstance(x, jax.Array) for d in x.devices()]
    device = devices[0] if devices else jax.local_devices()[0]
    platform = device.platform
    if platform == "gpu":
        platform = "rocm" if "rocm" in device.client.platform_version else "cuda"
    return _run(platform, operands, **static)


def _shapes(*operands: Any, default: Any, others: Any, linear: int) -> Any:
    """Return shapes and dtypes of the outputs."""
    del others, linear
    return jax.make_jaxpr(default)(*operands).out_avals


def _jvp(primals: Any, tangents: Any, *, default: Any, others: Any, linear: int) -> Any:
    """Differentiate each platform's function."""
    outputs = choice_p.bind(*primals, default=default, others=others, linear=linear)
    doutputs = choice_p.bind(
        *primals,
        *map(ad.instantiate_zeros, tangents),
        default=_tangent(default),
        others=tuple((p, _tangent(f)) for p, f in others),
        linear=len(primals),
    )
    return outputs, doutputs


def _transpose(cotangents: Any, *operands: Any, default: Any, others: Any, linear: int) -> Any:
    """Transpose each platform's function."""
    args, tangents = operands[:-linear], operands[-linear:]
    undefined = [ad.is_undefined_primal(t) for t in tangents]
    types = tuple(t.aval if u else jax.typeof(t) for t, u in zip(tangents, undefined, strict=True))
    gradients = choice_p.bind(
        *args,
        *map(ad.instantiate_zeros, cotangents),
        default=_transposed(default, len(args), types),
        others=tuple((p, _transposed(f, len(args), types)) for p, f in others),
        linear=len(cotangents),
    )
    # Those that are not wanted cost nothing: a compiler drops them.
    wanted = [g if u else None for g, u in zip(gradients, undefined, strict=True)]
    return [None] * len(args) + wanted


def _batch(operands: Any, axes: Any, *, default: Any, others: Any, linear: int) -> Any:
    """Map each platform's function over the operands' batch axes."""
    axes = tuple(axes)
    outputs = choice_p.bind(
        *operands,
        default=_mapped(default, axes),
        others=tuple((p, _mapped(f, axes)) for p, f in others),
        linear=linear,
    )
    return outputs, [0] * len(outputs)


@functools.lru_cache(maxsize=512)
def _tangent(function: Function) -> Function:
    """Return the function of arguments and tangents whose values are the outputs' tangents."""

    def tangent(*operands: jax.Array) -> Arrays:
        half = len(operands) // 2
        return jax.jvp(function, operands[:half], operands[half:])[1]

    return tangent


@functools.lru_cache(maxsize=512)
def _transposed(function: Function, first: int, types: tuple[Any, ...]) -> Function:
    """Return the transpose of a function that is linear in its operands from `first` on."""

    def transposed(*operands: jax.Array) -> Arrays:
        args, cotangents = operands[:first], operands[first:]
        pull = jax.linear_transpose(lambda *tangents: function(*args, *tangents), *types)
        return pull(tuple(cotangents))

    return transposed


@functools.lru_cache(maxsize=512)
def _mapped(function: Function, axes: tuple[int | None, ...]) -> Function:
    """Return the function of operands that have a batch axis more."""
    return jax.vmap(function, in_axes=axes)


def _register(platform: str | None) -> None:
    def run(*operands: jax.Array, **static: Any) -> Arrays:
        return _run(platform or "", operands, **static)

    rule = mlir.lower_fun(run, multiple_results=True)
    mlir.register_lowering(choice_p, rule, platform=platform)


choice_p.def_impl(_evaluate)
choice_p.def_abstract_eval(_shapes)
ad.primitive_jvps[choice_p] = _jvp
ad.primitive_transposes[choice_p] = _transpose
batching.primitive_batchers[choice_p] = _batch
for _platform in (None, *PLATFORMS):
    _register(_platform)
