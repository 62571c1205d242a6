"""What a run computes: its state, one update, and the scores of a split.

Pure functions of their arguments; `experiments.train` is the program around them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import normjax
from experiments import tasks
from experiments.data import batches, splits
from experiments.runtime import parallel

Tree = Any


def optimizer(optim: Mapping[str, Any], rate: Any = None) -> optax.GradientTransformation:
    """Clip by the global norm, then the optimizer of `config.optim`; a traced `rate` replaces its.

    L2 and L1 penalties, `l2 / 2 |w|^2 + l1 |w|_1` over kernels, enter as gradients before clipping.
    """
    rate = optim["learning_rate"] if rate is None else rate
    decay, eps = optim["decay"], optim["eps"]
    momentum = optim["momentum"] or None
    if optim["name"] == "rmsprop":
        # The paper says 0.9; the authors' script has decay_rate=0.5 and no momentum.
        make = optax.rmsprop(rate, decay=decay, eps=eps, momentum=momentum)
    elif optim["name"] == "adam":
        make = optax.adam(rate, b1=decay, eps=eps)
    else:
        make = optax.sgd(rate, momentum=momentum)
    before = [penalty(optim["l2"], optim["l1"])] if optim["l2"] or optim["l1"] else []
    if optim["clip_norm"]:
        before.append(optax.clip_by_global_norm(optim["clip_norm"]))
    return optax.chain(*before, make) if before else make


def penalty(l2: float, l1: float) -> optax.GradientTransformation:
    """Add the gradient of `l2 / 2 |w|^2 + l1 |w|_1` for weights; biases and norms are left out."""

    def add(updates: Tree, params: Tree) -> Tree:
        def one(path: Any, g: jax.Array, w: jax.Array) -> jax.Array:
            return g if normjax.is_norm_param(path) else g + l2 * w + l1 * jnp.sign(w)

        return jax.tree_util.tree_map_with_path(one, updates, params)

    return optax.stateless(add)


def start(task: tasks.Task, tx: optax.GradientTransformation, config: dict) -> Tree:
    """The whole state of a run at step 0: one pytree, all of it checkpointed.

    `window` holds the metrics of the last `log_every` steps, on the device until they are logged.
    """
    key, key_init = jax.random.split(jax.random.key(config["seed"]))
    params, norm = task.init(key_init)
    window = jnp.zeros((config["log_every"],))
    now = {
        "params": params,
        "norm": norm,
        "opt": tx.init(params),
        "key": key,
        "step": jnp.zeros((), jnp.int32),
        "skipped": jnp.zeros((), jnp.int32),
        "window": {"loss": window, "accuracy": window, "grad_norm": window},
    }
    now = jax.tree.map(jnp.array, now)  # own buffers: a step donates what it is given
    best = {"params": params, "norm": norm, "step": 0, "accuracy": -1.0, "loss": float("inf")}
    best = {
        **best,
        "params": jax.tree.map(jnp.array, params),
        "norm": jax.tree.map(jnp.array, norm),
    }
    return {"now": now, "best": best, "seconds": 0.0}


def update(
    now: Tree,
    split: Tree,
    index: jax.Array,
    rate: Any,
    *,
    task: tasks.Task,
    optim: tuple,
    weight: jax.Array | None = None,
    how: parallel.StepContext = parallel.SINGLE,
    skip: bool = False,
) -> Tree:
    """One update, on the examples at `index`; the rate is traced: a new one compiles nothing.

    With `skip`, a step whose loss or gradient is not finite changes nothing but its count.
    """
    key = jax.random.fold_in(now["key"], now["step"])
    loss, scores, norm, grads = parallel.gradients(
        functools.partial(_train_scores, task),
        now["params"],
        now["norm"],
        splits.take(split, index),
        weight,
        key,
        how,
    )
    updates, opt = optimizer(dict(optim), rate).update(grads, now["opt"], now["params"])
    seen = {
        "loss": loss,
        "accuracy": scores.correct / scores.count,
        "grad_norm": optax.tree.norm(grads),
    }
    new = {"params": optax.apply_updates(now["params"], updates), "norm": norm, "opt": opt}
    skipped = now["skipped"]
    if skip:
        good = jnp.isfinite(loss) & jnp.isfinite(seen["grad_norm"])
        old = {name: now[name] for name in new}
        new = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, old)
        skipped = skipped + jnp.where(good, 0, 1).astype(skipped.dtype)
    slot = now["step"] % now["window"]["loss"].shape[0]
    return {
        **new,
        "key": now["key"],
        "step": now["step"] + 1,
        "skipped": skipped,
        "window": {k: w.at[slot].set(seen[k]) for k, w in now["window"].items()},
    }


train_step = jax.jit(
    update, static_argnames=("task", "optim", "how", "skip"), donate_argnames=("now",)
)


def _train_scores(
    task: tasks.Task, params: Tree, norm: Tree, batch: Any, weight: Any, key: Any, axis_name: Any
) -> tuple[tasks.Scores, Tree]:
    how: dict[str, Any] = {"weight": weight, "key": key, "axis_name": axis_name}
    return task.scores(params, norm, batch, stats="batch", train=True, **how)


@functools.lru_cache(maxsize=8)
def compiled_step(
    spread: parallel.DeviceLayout, task: tasks.Task, optim: tuple, skip: bool, several: bool
) -> Callable[..., Tree]:
    """`step(now, split, index, weight, rate)` over the devices of a run."""

    def step(now: Tree, split: Tree, index: Any, weight: Any, rate: Any, how: Any) -> Tree:
        kept: dict[str, Any] = {"task": task, "optim": optim, "weight": weight, "skip": skip}
        return update(now, split, index, rate, how=how, **kept)

    return spread.step(step, several)


def static(optim: Mapping[str, Any]) -> tuple[tuple, np.generic]:
    """`config.optim` as `train_step` takes it: what it is compiled for, and the learning rate."""
    kept = tuple(sorted((k, v) for k, v in optim.items() if k != "learning_rate"))
    return kept, np.float32(optim["learning_rate"])


@functools.partial(jax.jit, static_argnames=("task", "stats", "padded"))
def score_all(
    params: Tree,
    norm: Tree,
    split: Tree,
    batches: tuple[jax.Array, jax.Array],
    *,
    task: tasks.Task,
    stats: str,
    padded: bool,
) -> tasks.Scores:
    """Sums over the batches of `data.evaluation_batches`."""

    def one(batch: tuple[jax.Array, jax.Array]) -> tasks.Scores:
        index, weight = batch
        # A fixed key keeps a noisy model's number the same from call to call.
        key = jax.random.fold_in(jax.random.key(0), index[0])
        counts = weight if padded else None  # masks cost time, and most batches need none
        how: dict[str, Any] = {"stats": stats, "train": False, "weight": counts, "key": key}
        return task.scores(params, norm, splits.take(split, index), **how)[0]

    return jax.tree.map(jnp.sum, jax.lax.map(one, batches))


def evaluate(
    params: Tree,
    norm: Tree,
    split: Tree,
    *,
    task: tasks.Task,
    stats: str,
    batch_size: int,
    spread: parallel.DeviceLayout | None = None,
) -> dict[str, float]:
    """Loss and accuracy over a split, every example once; statistics of the batch or of `norm`."""
    padded_batches = batches.evaluation_batches(splits.size(split), batch_size)
    if spread is not None:
        padded_batches = spread.pad(*padded_batches)
        params, norm = spread.done((params, norm))
    padded = bool((padded_batches[1] == 0).any())
    placed = padded_batches if spread is None else spread.split(padded_batches)
    scores = jax.device_get(
        score_all(params, norm, split, placed, task=task, stats=stats, padded=padded)
    )
    return {
        "loss": float(scores.loss / scores.count),
        "accuracy": float(scores.correct / scores.count),
    }


def better(scores: Mapping[str, float], best: Mapping[str, float], select: str) -> bool:
    """Whether validation scores beat the best so far, by `config.select`."""
    if select == "accuracy":  # a small validation set ties often; the loss decides
        return (scores["accuracy"], -scores["loss"]) > (best["accuracy"], -best["loss"])
    return scores["loss"] < best["loss"]


@dataclasses.dataclass(frozen=True)
class _WholeModel:
    """A task as the function that `normjax.population_statistics` takes."""

    task: tasks.Task

    def __call__(self, params: Tree, norm: Tree, given: Any, *, stats: str) -> tuple[Any, Tree]:
        batch, weight, key = given
        how: dict[str, Any] = {"stats": stats, "train": False, "weight": weight, "key": key}
        return self.task.scores(params, norm, batch, **how)


def population(
    params: Tree,
    norm: Tree,
    split: Tree,
    *,
    task: tasks.Task,
    how: Any,
    batch_size: int,
    spread: parallel.DeviceLayout | None = None,
) -> Tree:
    """Population statistics of the whole model, estimated again over a whole split."""
    if not jax.tree.leaves(norm):
        return norm  # no norm keeps statistics: nothing to estimate

    indices, weights = batches.evaluation_batches(splits.size(split), batch_size)
    if spread is not None:
        indices, weights = spread.pad(indices, weights)

    def inputs() -> Iterator[tuple[Tree, Any, jax.Array]]:
        for index, weight in zip(indices, weights, strict=True):
            key = jax.random.fold_in(jax.random.key(0), index[0])
            counts = jnp.asarray(weight) if (weights == 0).any() else None
            if spread is not None:
                index, counts = spread.split((index, counts))
            yield splits.take(split, index), counts, key

    return normjax.population_statistics(_WholeModel(task), params, norm, inputs(), how=how)


def final_scores(
    best: Tree,
    dataset: splits.Dataset,
    task: tasks.Task,
    config: dict,
    spread: parallel.DeviceLayout | None = None,
) -> dict:
    """Validation and test scores of the best parameters under three kinds of statistics.

    "population": estimated over the training set; "batch": of the evaluated batch itself;
    "running": the moving average kept while training.
    """
    params, running = best["params"], best["norm"]
    how, size = config["population"]["how"], config["population"]["batch_size"]
    exact = population(
        params, running, dataset.train, task=task, how=how, batch_size=size, spread=spread
    )
    kinds = {
        "population": (exact, "running"),
        "batch": (running, "batch"),
        "running": (running, "running"),
    }
    if not jax.tree.leaves(running):  # then all three are one
        kinds = {"batch": kinds["batch"]}
    found = {
        name: {
            kind: evaluate(
                params,
                norm,
                split,
                task=task,
                stats=stats,
                batch_size=config["eval_batch_size"],
                spread=spread,
            )
            for kind, (norm, stats) in kinds.items()
        }
        for name, split in (("valid", dataset.valid), ("test", dataset.test))
    }
    names = ("population", "batch", "running")
    return {split: {k: told.get(k, told["batch"]) for k in names} for split, told in found.items()}
