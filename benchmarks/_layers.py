"""The recurrent layers that are compared, each as `apply(params, state, x) -> (y, state)`.

x is `[batch, time, features]`, y every output of the layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import _measure
from normjax import recurrent

Layer = tuple[Callable[..., Any], Any, Any]


def normjax(make: Callable[..., Any], x: Any, hidden: int) -> Layer:
    """A layer of this library, `make(hidden, steps)`."""
    layer = make(hidden, x.shape[1])
    params, state = layer.init(jax.random.key(0), features=x.shape[-1])

    def apply(params: Any, state: Any, x: Any) -> Any:
        (y, _), state = layer.apply(params, state, x, stats="batch")
        return y, state

    return apply, params, state


def linen(module: Any, x: Any) -> Layer:
    """A module of Flax Linen."""
    fresh = dict(module.init(jax.random.key(0), x))
    params = fresh.pop("params")

    def apply(params: Any, state: Any, x: Any) -> Any:
        return module.apply({"params": params, **state}, x, mutable=["batch_stats"])

    return apply, params, fresh


def _flax_lstm(x: Any, hidden: int) -> Layer:
    import flax.linen as nn

    return linen(nn.RNN(nn.OptimizedLSTMCell(hidden)), x)


def _flax_bn_lstm(x: Any, hidden: int) -> Layer:
    """The same equations as `bn_lstm`, written with Flax's own BatchNorm inside `nn.scan`."""
    import flax.linen as nn

    class Cell(nn.Module):
        @nn.compact
        def __call__(self, carry: Any, x: Any) -> Any:
            c, h = carry
            norm = functools.partial(
                nn.BatchNorm,
                use_running_average=False,
                use_bias=False,
                scale_init=nn.initializers.constant(0.1),
            )
            dense = functools.partial(nn.Dense, 4 * hidden, use_bias=False)
            bias = self.param("bias", nn.initializers.zeros, (4 * hidden,))
            gates = norm(name="norm_x")(dense(name="x")(x))
            gates += norm(name="norm_h")(dense(name="h")(h)) + bias
            i, f, g, o = jnp.split(gates, 4, -1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(norm(name="norm_c", use_bias=True)(c))
            return (c, h), h

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            zeros = jnp.zeros((x.shape[0], hidden), x.dtype)
            scan = nn.scan(
                Cell,
                variable_broadcast="params",
                variable_axes={"batch_stats": 0},
                split_rngs={"params": False},
                in_axes=1,
                out_axes=1,
            )
            return scan()((zeros, zeros), x)[1]

    return linen(Scanned(), x)


def _device_lstm(x: Any, hidden: int) -> Layer:
    """The LSTM of cuDNN, which JAX has on a GPU only."""
    from jax.experimental import rnn

    batch, steps, features = x.shape
    weights = rnn.init_lstm_weight(jax.random.key(0), features, hidden, 1, False)
    zeros = jnp.zeros((1, batch, hidden), x.dtype)
    lengths = jnp.full((batch,), steps, jnp.int32)

    def apply(params: Any, state: Any, x: Any) -> Any:
        y, *_ = rnn.lstm(x, zeros, zeros, params, lengths, features, hidden, 1, 0.0, False)
        return y, state

    return apply, weights, ()


# As the documentation advises for several devices and for accelerators.
SEVERAL = jax.default_backend() != "cpu" or jax.device_count() > 1
HOW: dict[str, Any] = {"input_schedule": "before_loop"} if SEVERAL else {}
LAYERS: dict[str, Callable[[Any, int], Layer]] = {
    "normjax lstm": functools.partial(normjax, lambda h, t: recurrent.lstm(h, **HOW)),
    "normjax bn_lstm": functools.partial(normjax, functools.partial(recurrent.bn_lstm, **HOW)),
    "normjax ln_lstm": functools.partial(normjax, lambda h, t: recurrent.ln_lstm(h, **HOW)),
    "flax lstm": _flax_lstm,
    "flax bn in nn.scan": _flax_bn_lstm,
}
if jax.default_backend() == "tpu":
    LAYERS["normjax bn_lstm kernel"] = functools.partial(
        normjax, functools.partial(recurrent.bn_lstm, impl="kernel")
    )
if jax.default_backend() == "gpu":
    LAYERS["jax.experimental.rnn"] = _device_lstm

# Steps, batch, features, hidden: sequential MNIST, digits in rows, Penn Treebank's characters.
SIZES = ((784, 100, 1, 100), (64, 100, 1, 100), (100, 64, 50, 256))
SMALL = ((5, 4, 1, 8),)


def sizes(quick: bool) -> tuple[tuple[int, int, int, int], ...]:
    """The sizes measured."""
    return SMALL if quick else SIZES


def named(size: tuple[int, int, int, int]) -> str:
    """The name of a size, such as `T784 B100 D1 H100`."""
    return " ".join(f"{letter}{n}" for letter, n in zip("TBDH", size, strict=True))


BARS = (
    _measure.Bar("T", "flax lstm", "normjax lstm", 1.0),
    _measure.Bar("T", "flax lstm", "normjax bn_lstm", 0.8),
    _measure.Bar("T", "flax bn in nn.scan", "normjax bn_lstm", 1 / 0.75),
    _measure.Bar("T", "normjax lstm", "normjax ln_lstm", 1 / 1.2),
)


def makers(module: str, size: tuple[int, int, int, int]) -> list[_measure.Maker]:
    """Every library's way to build a case of `benchmarks.recurrent` or `benchmarks.train_step`."""
    arguments = dict(zip(("steps", "batch", "features", "hidden"), size, strict=True))
    found = [(lib, module, "contender", {"library": lib, **arguments}) for lib in LAYERS]
    train = module == "benchmarks.train_step"
    return [*found, ("torch", "benchmarks._torch", "lstm", {"train": train, **arguments})]


def measure(module: str, what: str, asked: Any) -> list[dict[str, Any]]:
    """Every case that is asked for."""
    records = []
    for size in sizes(asked.quick):
        name = f"{named(size)} {what}"
        if _measure.wanted(name, asked.only):
            found = makers(module, size)
            records += _measure.gather(name, found, asked.libraries, asked.rounds, asked.contenders)
    return records


def launch(module: str, what: str) -> None:
    """Run a module that measures these layers."""
    _measure.launch(module, functools.partial(measure, module, what), BARS)
