"""Norms beside their peers: forward, and forward with backward.

    python -m benchmarks.norms [--only=layer,rms] [--rounds=15] [--quick] [--json=FILE]

In each case every library gets the same arrays, weights among the arguments. torch sees the
images as they lie in memory (`channels_last`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from benchmarks import _layers, _measure
from benchmarks._layers import Layer


class Case(NamedTuple):
    """A norm and the shape of its input."""

    method: str
    shape: tuple[int, ...]
    small: tuple[int, ...]


CASES = (
    Case("layer", (4096, 1024), (8, 16)),
    Case("rms", (4096, 1024), (8, 16)),
    Case("batch", (64, 32, 32, 64), (4, 3, 3, 8)),
    Case("group", (32, 32, 32, 128), (4, 3, 3, 64)),
)
GROUPS = _measure.GROUPS
# Forward alone: not slower than Flax. Forward and backward: the bars of this project.
BARS = (
    *(_measure.Bar(f"{c.method} forward ", "flax.linen", "normjax", 1.0) for c in CASES),
    _measure.Bar("layer forward+backward", "flax.linen", "normjax", 3.0),
    _measure.Bar("rms forward+backward", "flax.linen", "normjax", 3.0),
    _measure.Bar("batch forward+backward", "flax.linen", "normjax", 1.5),
    _measure.Bar("group forward+backward", "flax.linen", "normjax", 2.4),
)


def draw(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Standard normal; torch's process draws the same."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


# Each library: `apply(params, state, x) -> (y, state)`, params and state ------------------------


def normjax(method: str, x: Any, **how: Any) -> Layer:
    """This library."""
    norm = {
        "layer": nj.layer_norm,
        "rms": nj.rms_norm,
        "batch": nj.batch_norm,
        "group": functools.partial(nj.group_norm, groups=GROUPS),
        "instance": nj.instance_norm,
    }[method](**how)
    return functools.partial(norm.apply, stats="batch"), *norm.init(x.shape)


def linen(method: str, x: Any) -> Layer:
    """Flax Linen."""
    import flax.linen as nn

    module = {
        "layer": nn.LayerNorm,
        "rms": nn.RMSNorm,
        "batch": functools.partial(nn.BatchNorm, use_running_average=False),
        "group": functools.partial(nn.GroupNorm, GROUPS),
        "instance": nn.InstanceNorm,
    }[method](dtype=x.dtype)
    return _layers.linen(module, x)


def nnx(method: str, x: Any) -> Layer:
    """Flax NNX."""
    from flax import nnx

    features, rngs = x.shape[-1], nnx.Rngs(0)
    module = {
        "layer": lambda: nnx.LayerNorm(features, rngs=rngs),
        "rms": lambda: nnx.RMSNorm(features, rngs=rngs),
        "batch": lambda: nnx.BatchNorm(features, rngs=rngs),
        "group": lambda: nnx.GroupNorm(features, GROUPS, rngs=rngs),
    }[method]()
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def apply(params: Any, state: Any, x: Any) -> Any:
        module = nnx.merge(graph, params, state, copy=True)
        y = module(x)
        return y, nnx.split(module, nnx.Param, ...)[2]

    return apply, params, rest


def haiku(method: str, x: Any) -> Layer:
    """Haiku."""
    import haiku as hk

    run = {
        "layer": lambda x: hk.LayerNorm(-1, True, True)(x),
        "rms": lambda x: hk.RMSNorm(-1)(x),
        "batch": lambda x: hk.BatchNorm(True, True, 0.99)(x, is_training=True),
        "group": lambda x: hk.GroupNorm(GROUPS)(x),
    }[method]
    module = hk.transform_with_state(run)
    params, state = module.init(jax.random.key(0), x)
    return lambda p, s, x: module.apply(p, s, None, x), params, state


def equinox(method: str, x: Any) -> Layer:
    """Equinox, mapped over the samples as its authors ask."""
    import equinox as eqx

    features = x.shape[-1]
    if method == "batch":
        make = functools.partial(eqx.nn.BatchNorm, features, axis_name="b", mode="batch")
        module, state = eqx.nn.make_with_state(make)()
    else:
        module = {
            "layer": lambda: eqx.nn.LayerNorm(features),
            "rms": lambda: eqx.nn.RMSNorm(features),
            "group": lambda: eqx.nn.GroupNorm(GROUPS, features),
        }[method]()
        state = ()
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def apply(params: Any, state: Any, x: Any) -> Any:
        module = eqx.combine(params, static)
        if x.ndim == 2:
            return jax.vmap(module)(x), state
        # Channels first, as its layers want them.
        x = jnp.moveaxis(x, -1, 1)
        if method == "batch":
            mapped = jax.vmap(module, axis_name="b", in_axes=(0, None), out_axes=(0, None))
            y, state = mapped(x, state)
        else:
            y = jax.vmap(module)(x)
        return jnp.moveaxis(y, 1, -1), state

    return apply, params, state


LIBRARIES: dict[str, Callable[[str, Any], Layer]] = {
    "normjax": normjax,
    "flax.linen": linen,
    "flax.nnx": nnx,
    "haiku": haiku,
    "equinox": equinox,
}
if jax.default_backend() != "cpu":  # there the plain twin runs
    LIBRARIES["normjax kernel"] = functools.partial(normjax, impl="kernel")


def contender(library: str, method: str, shape: Any, backward: bool) -> _measure.Contender:
    """One JAX library."""
    x = jnp.asarray(draw(shape, 0))
    apply, params, state = LIBRARIES[library](method, x)
    if not backward:
        return _measure.of_jax(library, apply, (params, state, x))
    dy = jnp.asarray(draw(shape, 1))
    return _measure.of_jax(library, _measure.forward_backward(apply), (params, state, x, dy))


def copy(shape: Any) -> _measure.Contender:
    """A copy of an array of the shape: what merely reading and writing it takes."""
    return _measure.of_jax("copy", jnp.copy, (jnp.asarray(draw(shape, 0)),))


def makers(case: Case, shape: tuple[int, ...], backward: bool) -> list[_measure.Maker]:
    """Every library's way to build a case."""
    same = {"method": case.method, "shape": shape, "backward": backward}
    found = [(lib, "benchmarks.norms", "contender", {"library": lib, **same}) for lib in LIBRARIES]
    found.append(("torch", "benchmarks._torch", "norm", {"groups": GROUPS, **same}))
    return [*found, ("copy", "benchmarks.norms", "copy", {"shape": shape})]


def measure(asked: Any) -> list[dict[str, Any]]:
    """Every case that is asked for."""
    records = []
    for case in CASES:
        shape = case.small if asked.quick else case.shape
        for backward in (True, False):
            name = f"{case.method} forward{'+backward' * backward} {'×'.join(map(str, shape))}"
            if _measure.wanted(name, asked.only):
                found = makers(case, shape, backward)
                records += _measure.gather(
                    name, found, asked.libraries, asked.rounds, asked.contenders
                )
    return records


if __name__ == "__main__":
    _measure.launch("benchmarks.norms", measure, BARS)
