"""The programs that `benchmarks.device` measures, by part, with types for arguments."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import _measure
from benchmarks.compilers.recurrent import preset

BOTH = ("forward", "forward+backward")
METHODS = ("layer", "rms", "batch", "group", "instance")
# Kinds of commands that XLA records by default, and loops.
RECORDED = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL"
COMMANDS = {"xla_gpu_enable_command_buffer": RECORDED, "xla_gpu_graph_min_graph_size": 1}

# Steps, batch, features, units.
Size = tuple[int, int, int, int]
LONG, SHORT, WIDE, RUNS = (
    (784, 100, 1, 100),
    (196, 100, 1, 100),
    (256, 64, 512, 512),
    (49, 100, 1, 100),
)


@dataclasses.dataclass
class Program:
    """What is measured.

    Attributes:
        case: names what it is compared with.
        library: whose it is.
        function: of the arguments.
        args: types of the arguments; numbers are drawn for them.
        facts: what else is written down.
        options: of the compiler.
        precision: of float32 products; `None`: JAX's default, which lets a GPU round to TF32.
    """

    case: str
    library: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] | None = None
    precision: str | None = None

    def compile(self) -> tuple[Any, float]:
        """Return the compiled program, and the seconds it took."""
        start = time.perf_counter()
        with jax.default_matmul_precision(self.precision):
            lowered = jax.jit(self.function).lower(*self.args)
        compiled = lowered.compile(self.options if on_gpu() else None)
        return compiled, time.perf_counter() - start


def on_gpu() -> bool:
    """Whether there is a GPU."""
    return jax.default_backend() == "gpu"


def abstract(build: Callable[[], Any]) -> Any:
    """The function that `build` returns first, and the types of the arrays after it."""
    functions = []

    def arrays() -> Any:
        function, *rest = build()
        functions.append(function)
        return rest

    types = jax.eval_shape(arrays)
    return functions[0], *types


def norm_of(library: str, method: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """A library's norm: `apply(params, state, x)`, params and state."""
    # Not at the top: it asks JAX for devices, and torch's process reads this file for its shapes.
    from benchmarks import norms

    x = jnp.zeros(shape, dtype)
    if library == "normjax kernel":
        return norms.normjax(method, x, impl="kernel")
    return norms.LIBRARIES[library](method, x)


def norm_shape(method: str, dtype: str, quick: bool) -> tuple[int, ...]:
    """A quarter of a gigabyte, five times the L2 of an H100."""
    many = 2 if dtype == "bfloat16" else 1
    if method in ("layer", "rms"):
        return (16, 64) if quick else (2**16 * many, 1024)
    return (4, 3, 3, 64) if quick else (256 * many, 32, 32, 256)


def norm_floor(method: str, direction: str) -> float:
    """The fewest times that an array is read or written."""
    once = 3 if method == "batch" else 2
    return once if direction == "forward" else once + 3


def norms(methods: Sequence[str], quick: bool) -> Iterator[Program]:
    """Norms of each library."""
    for method in methods:
        for name in ("float32", "bfloat16"):
            shape, dtype = norm_shape(method, name, quick), jnp.dtype(name)
            x = jax.ShapeDtypeStruct(shape, dtype)
            for direction in reversed(BOTH):
                floor = norm_floor(method, direction)
                facts = {"shape": shape, "floor_mb": floor * x.size * dtype.itemsize / 1e6}
                facts["floor_copies"] = floor / 2
                for library in ("normjax", "normjax kernel", "flax.linen"):
                    build = functools.partial(norm_of, library, method, shape, dtype)
                    apply, params, state = abstract(build)
                    yield program(
                        f"{method} {name}", library, direction, (apply, params, state, x), facts
                    )


def program(
    case: str, library: str, direction: str, layer: Any, facts: Any, models: int = 1, **how: Any
) -> Program:
    """Forward, or forward and backward, of one model or of several side by side."""
    apply, *args = layer
    if models > 1:
        args = jax.tree.map(lambda t: jax.ShapeDtypeStruct((models, *t.shape), t.dtype), args)
    function = jax.vmap(apply) if models > 1 else apply
    if direction != "forward":
        args = [*args, jax.eval_shape(function, *args)[0]]
        function = _measure.forward_backward(apply)
        function = jax.vmap(function) if models > 1 else function
    return Program(f"{case} {direction}", library, function, tuple(args), facts, **how)


def layer_of(library: str, size: Size) -> Any:
    """A recurrent layer: `apply(params, state, x)`, params and state."""
    steps, batch, features, hidden = size
    from benchmarks import _layers

    x = jnp.zeros((batch, steps, features))
    if library == "flax lstm":
        return _layers.LAYERS[library](x, hidden)
    name, _, impl = library.removeprefix("normjax ").partition(" ")
    fields = {"impl": impl} if impl else {"input_schedule": "before_loop"}
    return _layers.normjax(lambda hidden, steps: preset(name, hidden, steps, **fields), x, hidden)


LSTMS = tuple(
    f"normjax {name}" for name in ("lstm", "lstm cudnn", "bn_lstm", "bn_lstm kernel", "ln_lstm")
)
EVERY = (*LSTMS, "flax lstm")


def recurrent(
    libraries: Sequence[str],
    size: Size,
    directions: Sequence[str] = BOTH,
    models: int = 1,
    **how: Any,
) -> Iterator[Program]:
    """Recurrent layers of a size."""
    x = jax.ShapeDtypeStruct((size[1], size[0], size[2]), jnp.float32)
    case = " ".join(f"{letter}{n}" for letter, n in zip("TBDH", size, strict=True))
    case = f"{models} × {case}" if models > 1 else case
    facts = {"steps": size[0], "models": models, "precision": how.get("precision") or "default"}
    label = how.pop("label", "")
    for library in libraries:
        layer = (*abstract(functools.partial(layer_of, library, size)), x)
        for direction in directions:
            yield program(case, library + label, direction, layer, facts, models, **how)


def small(size: Size, quick: bool) -> Size:
    """The size, or a tiny one."""
    return (4, 4, min(size[2], 3), 8) if quick else size


def side_by_side(quick: bool) -> Iterator[Program]:
    """Models that train together, forward and backward."""
    scans, train = ("normjax lstm", "normjax bn_lstm"), BOTH[1:]
    kernel = ("normjax bn_lstm kernel",)
    for models in (1, 2) if quick else (1, 24, 96):
        yield from recurrent((*scans, *kernel), small(RUNS, quick), train, models)
    many = 3 if quick else 132
    yield from recurrent((scans[1], *kernel), small(SHORT, quick), train, many)


def parts(quick: bool) -> dict[str, Callable[[], Iterator[Program]]]:
    """What is measured, most valuable first."""
    short, long, wide = (small(s, quick) for s in (SHORT, LONG, WIDE))
    train = BOTH[1:]
    with_commands = {"options": COMMANDS, "label": ", loops recorded"}
    exact = {"precision": "highest", "label": ", highest"}
    three = ("normjax lstm", "normjax bn_lstm", "normjax ln_lstm")

    def chain(*several: Any) -> Any:
        return lambda: (p for each in several for p in each())

    part = functools.partial
    return {
        "norms": part(norms, METHODS[:3], quick),
        "recurrent": part(recurrent, EVERY, short),
        "side_by_side": part(side_by_side, quick),
        "torch": lambda: iter(()),
        "loops_recorded": part(recurrent, three, short, train, **with_commands),
        "long": part(recurrent, EVERY, long, train),
        "wide": part(recurrent, [n for n in EVERY if "kernel" not in n], wide),
        "more_norms": part(norms, METHODS[3:], quick),
        "highest": chain(
            part(recurrent, ("normjax lstm", "normjax bn_lstm"), short, train, **exact),
            part(recurrent, ("normjax lstm",), wide, train, **exact),
        ),
        "profile": lambda: iter(()),
    }
