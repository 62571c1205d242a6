"""Collectives of a training step on a TPU slice whose chips share the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.compilers import hlo, recurrent, targets

STEPS, FEATURES, HIDDEN = 32, 16, 128
A_CHIP = 8  # sequences
LAYERS = ("lstm", "bn_lstm", "ln_lstm")


def compiled(layer: str, slice_: str, mode: str) -> Any:
    """Compile loss and gradients over a slice, the batch split over all of its chips."""
    chips = targets.devices(slice_)  # before JAX is imported, which reads the environment
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    mesh = Mesh(np.array(chips), ("batch",), axis_types=(AxisType.Auto,))
    made = recurrent.preset(layer, HIDDEN, STEPS)
    named = {"axis_name": "batch"} if mode == "shard_map" else {}
    size = (STEPS, A_CHIP * len(chips), FEATURES, HIDDEN)
    function, (params, state, x) = recurrent.ours(made, size, **named)
    if mode == "shard_map":
        local = function

        def mapped(params: Any, state: Any, x: Any) -> Any:
            (loss, state), gradients = local(params, state, x)
            return (jax.lax.psum(loss, "batch"), state), gradients

        function = jax.shard_map(mapped, mesh=mesh, in_specs=(P(), P(), P("batch")), out_specs=P())

    def placed(tree: Any, spec: Any) -> Any:
        where = NamedSharding(mesh, spec)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)

    args = placed(params, P()), placed(state, P()), placed(x, P("batch"))
    return jax.jit(function).lower(*args).compile()


def read(made: Any) -> dict[str, Any]:
    """Count the collectives of each loop's turn, and those outside of loops."""
    text = made.as_text()
    return {
        "a_step": [sum(hlo.collectives(loop).values()) for loop in hlo.loops(text)],
        "outside": sum(hlo.collectives(hlo.entry(text)).values()),
        "kinds": sorted(
            {k for loop in [*hlo.loops(text), hlo.entry(text)] for k in hlo.collectives(loop)}
        ),
    }


def measure(compile_: Any, target: str, wanted: Any) -> Iterator[dict[str, Any]]:
    """One record for each layer, slice and way to split."""
    del compile_
    if target != "tpu":
        return
    for slice_ in targets.SLICES:
        for layer in LAYERS:
            for mode in ("jit", "shard_map"):
                if wanted(f"slices {layer} {slice_} {mode}"):
                    record = {"layer": layer, "slice": slice_, "mode": mode}
                    yield record | read(compiled(layer, slice_, mode))
