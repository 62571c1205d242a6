"""Train the models of `models.py` over some devices in some ways, and keep what came of it.

    python -m tests.multidevice.worker OUT.npz MODES DEVICES DTYPE STEPS [PORT PROCESSES PROCESS]

`MODES` "plain,jit,…": "plain" is the step as a function of the whole batch, with no DeviceLayout.
"""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np


def train(task, mode, devices, dtype, steps):
    """Loss and gradient of the first step, parameters and statistics after some steps."""
    from experiments.data import batches
    from experiments.runtime import parallel, step
    from experiments.runtime.checkpoints import name
    from tests._support import models

    optim = {"name": "sgd", "learning_rate": 0.05, "decay": 0.9, "momentum": 0.5, "eps": 1e-8}
    optim |= {"clip_norm": 1.0, "l2": 0.0, "l1": 0.0}
    stats = "device" if mode.endswith("+device") else "global"
    mode = mode.removesuffix("+device")
    config = {"seed": 0, "log_every": steps, "optim": optim}
    run = step.start(task, step.optimizer(optim), config)["now"]
    cast = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    run = jax.tree.map(cast, run)
    split = jax.tree.map(jnp.asarray, models.rows())
    constants, rate = step.static(optim)
    # 13 rows: no number of devices but 1 divides them, and of 8 devices one has padding alone.
    iterator = batches.batches(models.ROWS, 13, 0)
    if mode == "plain":
        one = jax.jit(functools.partial(step.update, task=task, optim=constants))
        take = lambda now, index: one(now, split, index, None, rate)  # noqa: E731
    else:
        layout = parallel.DeviceLayout(mode, devices, stats)
        run, split = layout.replicate(run), layout.replicate(split)
        compiled = step.compiled_step(layout, task, constants, False, False)
        take = lambda now, index: compiled(now, split, *layout.split(layout.pad(index)), rate)  # noqa: E731
    arrays = {}
    for i in range(steps):
        run = take(run, np.asarray(next(iterator), np.int32))
        if i == 0:
            # Clipping is undone: the momentum's first trace is the clipped gradient.
            norm = run["window"]["grad_norm"][0]
            for path, leaf in jax.tree.leaves_with_path(run["opt"]):
                arrays[f"grad/{name(path)}"] = np.asarray(leaf * jnp.maximum(norm, 1))
    for path, leaf in jax.tree.leaves_with_path((run["params"], run["norm"])):
        arrays[f"end/{name(path)}"] = np.asarray(leaf)
    arrays["losses"] = np.asarray(run["window"]["loss"])
    return arrays


def main() -> None:
    out, modes, devices, dtype, steps, *rest = sys.argv[1:]
    if rest:
        port, processes, process = rest
        jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))
    jax.config.update("jax_enable_x64", dtype == "float64")
    from tests._support import models

    results = {}
    for model, task in models.MODELS.items():
        for mode in modes.split(","):
            for count in [0] if mode == "plain" else map(int, devices.split(",")):
                arrays = train(task, mode, count, jnp.dtype(dtype), int(steps))
                results |= {f"{model}/{mode}/{count}/{k}": v for k, v in arrays.items()}
    if jax.process_index() == 0:
        np.savez(out, **results)


if __name__ == "__main__":
    main()
