"""A training step of `experiments` as the compilers of accelerators see it, for some configs.

The step is that of a run: examples gathered from a split on the device, loss, gradients, optimizer,
counters, and a train state that is donated. The split is one batch of random values. For an H100,
which compiles these sooner, the models of `benchmarks.models` too, with Flax's norms and ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from benchmarks.compilers import hlo, slices, targets

# By config: variants of one network that have other norms, the first one none.
CONFIGS = {
    "recurrent_bn.mnist": ("lstm", "bn_lstm", "ln_lstm"),
    "image_classification.fashion_mnist": ("none", "bn", "ln"),
    "language.characters": ("pre_none", "pre_ln", "pre_rms"),
}
# Those that are compiled for the chips of a slice too, each of which has a batch of the config.
SPLIT, SLICE = ("bn_lstm", "ln_lstm", "bn", "pre_ln"), "4x4"
CLASSES, CHARACTERS = 10, 66


def build(config: str, variant: str, chips: int = 1) -> tuple[Any, Any, Any]:
    """Return the checked config with a batch for each chip, its task and its split."""
    import numpy as np

    from experiments import tasks
    from experiments.config import validate
    from experiments.data import sequences, splits

    made = importlib.import_module(f"configs.{config}").get_config(variant)
    made.batch_size *= chips
    checked = validate.check(made)
    rows, random = checked["batch_size"], np.random.default_rng(0)
    train: Any
    if checked["task"] == "language":
        shape = (rows, checked["data"]["length"] + 1)
        train = sequences.Segments(random.integers(0, CHARACTERS, shape, np.int32))
    else:
        shape = (rows, 28, 28, 1) if checked["data"]["layout"] == "images" else (rows, 784)
        labels = random.integers(0, CLASSES, rows, np.int32)
        train = splits.Split(random.integers(0, 256, shape, np.uint8), labels)
    text = checked["task"] == "language"
    classes, vocabulary = (CHARACTERS, CHARACTERS) if text else (CLASSES, 0)
    dataset = splits.Dataset(train, train, train, 1.0 if text else 255.0, classes, vocabulary)
    return checked, tasks.build(checked, dataset), train


def compiled(config: str, variant: str, chips: Sequence[Any], mode: str = "jit") -> Any:
    """Compile a step for one chip or for several that share the batch."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from experiments.runtime import parallel
    from experiments.runtime.step import compiled_step, optimizer, start, static

    checked, task, train = build(config, variant, len(chips))
    with mock.patch.object(parallel, "available", lambda: list(chips)):
        layout = parallel.DeviceLayout(mode)
    optim, rate = static(checked["optim"])
    step: Any = compiled_step(layout, task, optim, False, False)
    state = jax.eval_shape(lambda: start(task, optimizer(checked["optim"]), checked))["now"]
    index = jax.ShapeDtypeStruct((checked["batch_size"],), jnp.int32)

    def placed(tree: Any, spec: Any) -> Any:
        one = jax.sharding.SingleDeviceSharding(chips[0])
        where = one if len(chips) == 1 else NamedSharding(layout.mesh, spec)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)

    # On several chips the step waits for its arguments first, around what is compiled.
    step = getattr(step, "__wrapped__", step) if len(chips) > 1 else step
    args = placed(state, P()), placed(train, P()), placed(index, P(parallel.AXIS))
    return step.lower(*args, None, placed(rate, P())).compile()


def model(case: str, library: str, chip: Any) -> Any:
    """Compile a training step of `benchmarks.models`, which has norms of ours or of Flax."""
    import jax

    from benchmarks import models

    step, carried, batch = models.training(models.CASES[case], library, quick=False)
    where = jax.sharding.SingleDeviceSharding(chip)
    types = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), (*carried, *batch)
    )
    return jax.jit(step, donate_argnums=range(len(carried))).lower(*types).compile()


def read(made: Any, target: str) -> dict[str, Any]:
    """Kernels outside of loops and in a turn of each, bytes moved without loops, temporaries."""
    text = made.as_text()
    found, loops = hlo.entry(text), hlo.loops(text)
    # What a loop moves depends on its turns: only programs without one are compared.
    moved = hlo.bytes_accessed(made) if target == "tpu" else sum(k.moved for k in found)
    return {
        "kernels": len(found),
        "kernels_a_turn": [len(loop) for loop in loops],
        "moved_mb": None if loops else round(moved / 1e6, 1),
        "temporary_mb": round(made.memory_analysis().temp_size_in_bytes / 1e6, 1),
    }


def measure(compile_: Callable[..., Any], target: str, wanted: Any) -> Iterator[dict[str, Any]]:
    """One record for each config and variant on one chip, and for each way to split it."""
    del compile_
    chip = targets.devices(target)[:1]
    for config, variants in CONFIGS.items():
        for variant in variants:
            record = {"config": f"{config}:{variant}"}
            if wanted(f"steps {record['config']} on one chip"):
                yield record | {"chips": 1} | read(compiled(config, variant, chip), target)
            for mode in ("jit", "shard_map") if target == "tpu" and variant in SPLIT else ():
                if wanted(f"steps {record['config']} by {mode}"):
                    chips = targets.devices(SLICE)
                    made = compiled(config, variant, chips, mode)
                    yield record | {"chips": len(chips), "mode": mode} | slices.read(made)
    from benchmarks import models

    for case in models.CASES:
        for library in (models.OURS, models.FLAX):
            name = f"{case}, {library}"
            if target == "h100" and wanted(f"steps {name.replace(', ', ' by ')}"):
                made = model(case, library, chip[0])
                yield {"config": name, "chips": 1} | read(made, target)
