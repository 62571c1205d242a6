"""Recurrent layers: the kernels of a time step, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.compilers import hlo

# Time steps, batch size, features, units.
SIZES = ((784, 100, 1, 100), (100, 64, 50, 256))
MODELS = 132  # side by side: as many as an H100 has multiprocessors
PRESETS = (
    *("rnn", "lstm", "bn_lstm", "ln_lstm", "rms_lstm", "vertical_bn_lstm", "wn_lstm"),
    *("gru", "bn_gru", "ln_gru"),
)
PER_STEP = ("bn_lstm", "vertical_bn_lstm", "bn_gru")  # statistics of each step: they know how many


def preset(name: str, hidden: int, steps: int, **fields: Any) -> Any:
    """A layer of `normjax.recurrent` by name."""
    from normjax import recurrent

    most = {"max_steps": steps} if name in PER_STEP else {}
    return getattr(recurrent, name)(hidden, **most, **fields)


def kernel_fits(target: str, size: tuple[int, ...]) -> bool:
    """Whether the BN-LSTM has a kernel of this size for a target."""
    from normjax.kernels import _registry

    backend = _registry.platforms("bn_lstm").get({"tpu": "tpu", "h100": "cuda"}[target])
    if backend is None:
        return False
    kernel: Any = _registry.load_kernel("bn_lstm", backend)
    return bool(kernel.fits(size[1], size[3]))


def ours(layer: Any, size: tuple[int, ...], models: int = 1, **options: Any) -> Any:
    """Loss, its gradients and the new state of a layer, and the types of the arguments.

    With more `models` than one, of each under `jax.vmap`.
    """
    import jax
    import jax.numpy as jnp

    steps, batch, features, _ = size
    params, state = jax.eval_shape(lambda: layer.init(jax.random.key(0), features=features))

    def loss(params: Any, state: Any, x: Any) -> Any:
        (_, carry), state = layer.apply(params, state, x, stats="batch", **options)
        return jnp.sum(jax.tree.leaves(carry)[-1] ** 2), state

    x = jax.ShapeDtypeStruct((batch, steps, features), jnp.float32)
    function, args = jax.value_and_grad(loss, has_aux=True), (params, state, x)
    if models == 1:
        return function, args
    each = lambda a: jax.ShapeDtypeStruct((models, *a.shape), a.dtype)  # noqa: E731
    return jax.vmap(function), jax.tree.map(each, args)


def flax(cell: str, size: tuple[int, ...]) -> Any:
    """Flax's `RNN` of a cell, as `ours`."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    steps, batch, features, hidden = size
    module = nn.RNN(getattr(nn, cell)(hidden))
    x = jax.ShapeDtypeStruct((batch, steps, features), jnp.float32)
    params = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x)
    return jax.value_and_grad(lambda p, x: jnp.sum(module.apply(p, x)[:, -1] ** 2)), (params, x)


def measure(compile_: Callable[..., Any], target: str, wanted: Any) -> Iterator[dict[str, Any]]:
    """One record for each layer and size."""
    for size in SIZES:
        makers: dict[str, Any] = {
            name: lambda n=name, s=size: ours(preset(n, s[3], s[0]), s) for name in PRESETS
        }
        if kernel_fits(target, size):
            for models in (1, MODELS) if target == "h100" else (1,):
                several = f"{models} × " if models > 1 else ""
                for impl in ("xla", "kernel") if several else ("kernel",):
                    name = f"{several}bn_lstm{', kernel' if impl == 'kernel' else ''}"
                    layer = preset("bn_lstm", size[3], size[0], impl=impl)
                    makers[name] = lambda a=(layer, size, models): ours(*a)
        makers["flax LSTM"] = lambda s=size: flax("OptimizedLSTMCell", s)
        makers["flax GRU"] = lambda s=size: flax("GRUCell", s)
        for name, make in makers.items():
            if not wanted(f"recurrent {name}"):
                continue
            function, args = make()
            made = compile_(function, *args)
            yield {
                "layer": name,
                "size": size,
                # Without what copies a value into the next turn: a loop has a forward one first.
                "kernels_a_step": [len(loop) for loop in hlo.loops(made.as_text())],
                "temporary_mb": round(made.memory_analysis().temp_size_in_bytes / 1e6, 1),
            }
