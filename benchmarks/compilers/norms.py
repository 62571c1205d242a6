"""Every norm, forward and backward, by XLA and by a kernel, beside Flax's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.compilers import hlo

ROWS, IMAGES, SPACE = (4096, 1024), (64, 32, 32, 64), (32, 32, 32, 128)
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Case:
    """One norm: the shape of x, its name in normjax and, if Flax has it, in `flax.linen`.

    `most` holds the aims for copies, by target.
    """

    name: str
    shape: tuple[int, ...]
    factory: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    flax: str | None = None
    flax_fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    kernel: bool = False
    most: dict[str, float] = dataclasses.field(default_factory=dict)


_BATCH: dict[str, Any] = {
    "factory": "batch_norm",
    "flax": "BatchNorm",
    "flax_fields": {"use_running_average": False},
    "kernel": True,
    "most": {"h100": 8},
}

# Those beside Flax's have aims. Of the others, only what they move is recorded.
CASES = (
    Case("layer", ROWS, "layer_norm", flax="LayerNorm", kernel=True, most={"h100": 7, "tpu": 12}),
    # More than a TPU's on-chip memory and an H100's L2 hold.
    Case("layer", (16 * ROWS[0], ROWS[1]), "layer_norm", flax="LayerNorm", kernel=True),
    Case("rms", ROWS, "rms_norm", flax="RMSNorm", kernel=True, most={"h100": 7}),
    Case("batch", IMAGES, **_BATCH),
    Case("batch, 256 features", (*IMAGES[:3], 256), **_BATCH),
    Case(
        "group",
        SPACE,
        "group_norm",
        {"groups": 32},
        flax="GroupNorm",
        flax_fields={"num_groups": 32},
        kernel=True,
        most={"h100": 7},
    ),
    Case("instance", SPACE, "instance_norm", flax="InstanceNorm", kernel=True, most={"h100": 7}),
    Case("scale_norm", ROWS, "scale_norm"),
    Case("l2_norm", ROWS, "l2_norm"),
    Case("dynamic_tanh", ROWS, "dynamic_tanh"),
    Case("dynamic_erf", ROWS, "dynamic_erf"),
    Case("batch_renorm", IMAGES, "batch_renorm", {"r_max": 3.0, "d_max": 5.0}),
    Case("ghost_batch_norm", IMAGES, "ghost_batch_norm", {"size": 16}),
    Case("mean_only_batch_norm", IMAGES, "mean_only_batch_norm"),
    Case("filter_response_norm", SPACE, "filter_response_norm"),
    Case("global_response_norm", SPACE, "global_response_norm"),
    Case("local_response_norm", SPACE, "local_response_norm"),
    Case("evo_norm_b0", SPACE, "evo_norm_b0"),
    Case("evo_norm_s0", SPACE, "evo_norm_s0", {"groups": 32}),
)


def makers(case: Case) -> dict[str, Callable[[str], Any]]:
    """What is compiled for a case, by name: functions of the dtype."""
    found: dict[str, Callable[[str], Any]] = {"xla": lambda dtype: ours(case, dtype)}
    if case.kernel:
        found["kernel"] = lambda dtype: ours(case, dtype, impl="kernel")
    if case.flax:
        found["flax"] = lambda dtype: flax(case, dtype)
    return found


def ours(case: Case, dtype: str, **fields: Any) -> Any:
    """A norm of normjax: its forward pass, both passes, and the types of the arguments of both."""
    import jax

    import normjax as nj

    norm = getattr(nj, case.factory)(**case.fields, **fields)
    params, state = jax.eval_shape(lambda: norm.init(case.shape, key=jax.random.key(0)))

    def apply(params: Any, state: Any, x: Any) -> Any:
        return norm.apply(params, state, x, stats="batch")

    return _passes(apply, params, state, case.shape, dtype)


def flax(case: Case, dtype: str) -> Any:
    """Flax's, as `ours`."""
    import flax.linen
    import jax
    import jax.numpy as jnp

    module = getattr(flax.linen, case.flax or "")(**case.flax_fields, dtype=dtype)
    fresh = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(case.shape, dtype)))
    state = {k: v for k, v in fresh.items() if k != "params"}

    def apply(params: Any, state: Any, x: Any) -> Any:
        return module.apply({"params": params, **state}, x, mutable=["batch_stats"])

    return _passes(apply, fresh["params"], state, case.shape, dtype)


def _passes(apply: Any, params: Any, state: Any, shape: Any, dtype: str) -> Any:
    import jax

    def both(params: Any, state: Any, x: Any, dy: Any) -> Any:
        y, pull, state = jax.vjp(lambda p, x: apply(p, state, x), params, x, has_aux=True)
        return y, pull(dy), state

    x = jax.ShapeDtypeStruct(shape, dtype)
    return apply, both, (params, state, x, x)


def read(compiled: Any, x: Any, target: str) -> dict[str, Any]:
    """What the compiler made: copies (bytes moved in sizes of x), kernels, temporary memory."""
    text = compiled.as_text()
    found = hlo.entry(text)
    # A TPU's compiler counts bytes itself, in its own layouts: 64 features are stored as 128.
    moved = hlo.bytes_accessed(compiled) if target == "tpu" else sum(k.moved for k in found)
    return {
        "copies": round(moved / (x.size * x.dtype.itemsize), 2),
        "kernels": len(found),
        # XLA's choice between one pass and two, which only a CPU's rules have.
        "branches": text.count(" conditional("),
        "temporary_mb": round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 1),
    }


def measure(compile_: Callable[..., Any], target: str, wanted: Any) -> Iterator[dict[str, Any]]:
    """One record for each norm, dtype and way to compute it."""
    for case in CASES:
        if not wanted(f"norms {case.name}{' beside Flax' if case.flax else ''}"):
            continue
        for dtype in DTYPES:
            for impl, make in makers(case).items():
                record = {"norm": case.name, "shape": case.shape, "dtype": dtype, "impl": impl}
                _, both, args = make(dtype)
                yield record | read(compile_(both, *args), args[2], target)


def measure_forward(
    compile_: Callable[..., Any], target: str, wanted: Any
) -> Iterator[dict[str, Any]]:
    """One record for the forward pass alone, as in inference, of each norm that Flax has."""
    for case in CASES:
        if not case.flax or not wanted(f"forward {case.name}"):
            continue
        for dtype in DTYPES:
            for impl, make in makers(case).items():
                record = {"norm": case.name, "shape": case.shape, "dtype": dtype, "impl": impl}
                apply, _, args = make(dtype)
                yield record | read(compile_(apply, *args[:3]), args[2], target)
