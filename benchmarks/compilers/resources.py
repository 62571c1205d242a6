"""What kernels take of a chip: registers, spills and shared memory on a GPU, VMEM on a TPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.compilers import hlo, norms, ptx, recurrent

SIZE = recurrent.SIZES[1]
LAYERS = ("lstm", "bn_lstm", "ln_lstm")
# Sizes of the BN-LSTM's kernel, and models side by side; a GPU's serves up to about 128 units.
RECURRENCES: dict[str, Any] = {
    "tpu": ((SIZE, 1),),
    "h100": tuple(
        ((784, batch, 1, 100), models) for batch in (64, 100) for models in (1, recurrent.MODELS)
    ),
}


def programs(target: str) -> Iterator[tuple[str, str, str, Any]]:
    """Name, dtype, way to compute it and maker of each program."""
    for case in norms.CASES:
        if case.kernel:
            shape = "×".join(map(str, case.shape))
            for dtype in norms.DTYPES:
                for impl in ("kernel", "xla"):
                    make = norms.makers(case)[impl]
                    both = lambda dtype, make=make: make(dtype)[1:]  # noqa: E731
                    yield f"{case.name} {shape}", dtype, impl, both
    layers = [("bn_lstm", "kernel", *case) for case in RECURRENCES[target]]
    layers += [(name, "xla", SIZE, 1) for name in LAYERS]
    for name, impl, size, models in layers:
        how = {"impl": impl} if impl == "kernel" else {}
        layer = recurrent.preset(name, size[3], size[0], **how)
        make = lambda _, a=(layer, size, models): recurrent.ours(*a)  # noqa: E731
        label = " ".join(f"{k}{v}" for k, v in zip("TBDH", size, strict=True))
        several = f"{models} × " if models > 1 else ""
        yield f"{several}{name} {label}", "float32", impl, make


def on_a_gpu(kernels: list[dict[str, Any]], impl: str) -> dict[str, Any]:
    """Lists over the kernels of Pallas, or the largest of XLA's own."""
    # Pallas calls a kernel like its Python function, which begins with an underscore here.
    shown = [k for k in kernels if k["kernel"].startswith("_") == (impl == "kernel")]
    fields = ("threads", "registers", "spill_bytes", "shared_bytes")
    found = {field: [k[field] for k in shown] for field in fields}
    if impl == "xla":
        found = {field: [max(values)] for field, values in found.items()}
    return {"kernels": len(kernels), **found}


def on_a_tpu(text: str, impl: str) -> dict[str, Any]:
    """The same of VMEM, of a compiled program's text."""
    inside = [*hlo.entry(text), *(k for loop in hlo.loops(text) for k in loop)]
    ours = [k for k in inside if 'custom_call_target="tpu_custom_call"' in k.line]
    if impl == "kernel":
        return {"kernels": len(inside), "vmem_bytes": [hlo.vmem(k) for k in ours]}
    return {"kernels": len(inside), "vmem_bytes": [max(map(hlo.vmem, inside))]}


def measure(compile_: Callable[..., Any], target: str, wanted: Any) -> Iterator[dict[str, Any]]:
    """One record for each program."""
    for name, dtype, impl, make in programs(target):
        if not wanted(f"resources {name} {impl}"):
            continue
        function, args = make(dtype)
        if target == "tpu":
            found = on_a_tpu(compile_(function, *args).as_text(), impl)
        else:
            found = on_a_gpu(ptx.kernels(compile_, function, *args), impl)
        yield {"program": name, "dtype": dtype, "impl": impl, **found}
