"""Computes a run: its first state, one update, and the scores of a split.

Pure functions of their arguments; `experiments.runtime.run` is the program around them.
"""

from __future__ import annotations

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
from experiments.runtime import optim as optimization
from experiments.runtime import parallel
from experiments.runtime.accumulate import microbatches
from experiments.runtime.measures import TOP_FIVE
from experiments.runtime.optim import optimizer

Tree = Any


def start(task: tasks.Task, tx: optax.GradientTransformation, config: dict) -> Tree:
    """Make the state of a run at step 0: one pytree, all of it checkpointed.

    `window` holds the metrics of the last `log_every` steps, on the device until they are logged.
    `ema`, with `config.optim.ema`, is the average of the parameters.
    """
    key, key_init = jax.random.split(jax.random.key(config["seed"]))
    params, norm = task.init(key_init)
    window = jnp.zeros((config["log_every"],))
    train_state = {
        "params": params,
        "norm": norm,
        "opt": tx.init(params),
        "key": key,
        "step": jnp.zeros((), jnp.int32),
        "skipped": jnp.zeros((), jnp.int32),
        "window": {"loss": window, "accuracy": window, "grad_norm": window},
    }
    if _keys(config["optim"])["ema"]:
        train_state["ema"] = params
    train_state = jax.tree.map(jnp.array, train_state)  # own buffers: a step donates its input
    best = {"params": params, "norm": norm, "step": 0, "accuracy": -1.0, "loss": float("inf")}
    best = {
        **best,
        "params": jax.tree.map(jnp.array, params),
        "norm": jax.tree.map(jnp.array, norm),
    }
    return {"now": train_state, "best": best, "seconds": 0.0}


def update(
    train_state: Tree,
    split: Tree,
    index: jax.Array,
    weight: jax.Array | None,
    rate: Any,
    *,
    task: tasks.Task,
    optim: tuple,
    context: parallel.StepContext = parallel.SINGLE,
    skip: bool = False,
) -> Tree:
    """Take one step on the examples at `index`; the rate is traced, so a new one compiles nothing.

    With `skip`, a step whose loss or gradient is not finite changes nothing but the counters.
    """
    now, keys = train_state, _keys(dict(optim))
    key = jax.random.fold_in(now["key"], now["step"])
    batch = tasks.Batch(splits.take(split, index), weight, key)
    micro = microbatches(keys["accumulate"], task) if keys["accumulate"] > 1 else None
    loss, scores, norm, grads = parallel.gradients(
        task, now["params"], now["norm"], batch, context, micro
    )
    if (factor := optimization.schedule(keys)) is not None:
        rate = rate * factor(now["step"])
    updates, opt = optimizer(keys, rate).update(grads, now["opt"], now["params"])
    metrics = {
        "loss": loss,
        "accuracy": scores.correct / scores.count,
        "grad_norm": optax.tree.norm(grads),
    }
    new = {"params": optax.apply_updates(now["params"], updates), "norm": norm, "opt": opt}
    if keys["ema"]:
        args = (keys["ema"], now["step"])
        new["ema"] = optimization.average(now["ema"], new["params"], *args)
    skipped = now["skipped"]
    if skip:
        finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
        old = {name: now[name] for name in new}
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        skipped = skipped + jnp.where(finite, 0, 1).astype(skipped.dtype)
    slot = now["step"] % now["window"]["loss"].shape[0]
    return {
        **new,
        "key": now["key"],
        "step": now["step"] + 1,
        "skipped": skipped,
        "window": {k: w.at[slot].set(metrics[k]) for k, w in now["window"].items()},
    }


def _keys(optim: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config.optim` with the defaults of keys that it leaves out."""
    return {**optimization.USUAL, **optim}


def scored(train_state: Tree) -> Tree:
    """Return what is scored of a train state, parameters and norms: the average's, if any."""
    return {"params": train_state.get("ema", train_state["params"]), "norm": train_state["norm"]}


@functools.lru_cache(maxsize=8)
def compiled_step(
    layout: parallel.DeviceLayout,
    task: tasks.Task,
    optim: tuple,
    skip: bool,
    several: bool,
    members: parallel.Members | None = None,
) -> Callable[..., Tree]:
    """Compile `step(train_state, split, index, weight, rate)` for a run, or for `members` at once.

    See `DeviceLayout.step`; `update` is the one function that takes a step, for either.
    """
    step = functools.partial(update, task=task, optim=optim, skip=skip)
    return layout.step(step, several, members)


def static(optim: Mapping[str, Any]) -> tuple[tuple, np.generic]:
    """Split `config.optim` into what a step is compiled for and the learning rate."""
    constants = tuple(sorted((k, v) for k, v in optim.items() if k != "learning_rate"))
    return constants, np.float32(optim["learning_rate"])


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
    start: Any = None,
) -> tasks.Scores:
    """Sum a task's scores over the batches of `evaluation_batches`.

    With `start`, `split` holds the examples from that one on.
    """

    def one(batch: tuple[jax.Array, jax.Array]) -> tasks.Scores:
        index, weight = batch
        # A fixed key keeps a noisy model's number the same from call to call.
        key = jax.random.fold_in(jax.random.key(0), index[0])
        index = index if start is None else index - start
        counts = weight if padded else None  # masks cost time, and most batches need none
        one_batch = tasks.Batch(splits.take(split, index), counts, key)
        return task(params, norm, one_batch, stats=stats)[0]

    return jax.tree.map(jnp.sum, jax.lax.map(one, batches))


@functools.partial(jax.jit, static_argnames=("task", "stats", "padded", "members"))
def score_members(
    params: Tree,
    norm: Tree,
    split: Tree,
    batches: tuple[jax.Array, jax.Array],
    *,
    task: tasks.Task,
    stats: str,
    padded: bool,
    members: parallel.Members,
) -> tasks.Scores:
    """Compute `score_all` of members side by side: sums `[members]`."""

    def one(params: Tree, norm: Tree, split: Tree) -> tasks.Scores:
        return score_all(params, norm, split, batches, task=task, stats=stats, padded=padded)

    return jax.vmap(one, in_axes=(0, 0, members.data_axis))(params, norm, split)


def _means(scores: tasks.Scores) -> dict[str, float]:
    top5 = {} if scores.top5 is None else {TOP_FIVE: float(scores.top5 / scores.count)}
    return {
        "loss": float(scores.loss / scores.count),
        "accuracy": float(scores.correct / scores.count),
        **top5,
    }


def evaluate(
    params: Tree,
    norm: Tree,
    split: Tree,
    *,
    task: tasks.Task,
    stats: str,
    batch_size: int,
    layout: parallel.DeviceLayout | None = None,
) -> dict[str, float]:
    """Score a split, every example once, with statistics of the batch or those in `norm`."""
    padded_batches = batches.evaluation_batches(splits.size(split), batch_size)
    if layout is not None:
        padded_batches = layout.pad(*padded_batches)
        params, norm = layout.block_on_cpu((params, norm))
    padded = bool((padded_batches[1] == 0).any())
    score = functools.partial(score_all, task=task, stats=stats, padded=padded)
    if isinstance(split, splits.Streamed):
        return _means(
            jax.device_get(_score_streamed(score, params, norm, split, padded_batches, layout))
        )
    placed = padded_batches if layout is None else layout.split(padded_batches)
    return _means(jax.device_get(score(params, norm, split, placed)))


def _score_streamed(
    score: Callable[..., tasks.Scores],
    params: Tree,
    norm: Tree,
    split: splits.Streamed,
    padded_batches: tuple[np.ndarray, np.ndarray],
    layout: parallel.DeviceLayout | None,
) -> tasks.Scores:
    """Score a split on disk, a batch at a time."""
    index, weight = padded_batches
    each = []
    for i, rows in enumerate(batches.read_ahead(split, index)):
        start, one = index[i, 0], (index[i : i + 1], weight[i : i + 1])
        # Padding repeats the last example, which is the last row that was read.
        if layout is not None:
            rows, one = layout.replicate(rows), layout.split(one)
        each.append(score(params, norm, rows, one, start=start))
    return jax.tree.map(lambda *sums: jnp.stack(sums).sum(), *each)


def evaluate_members(
    params: Tree,
    norm: Tree,
    split: Tree,
    *,
    task: tasks.Task,
    stats: str,
    batch_size: int,
    examples: int,
    members: parallel.Members,
) -> list[dict[str, float]]:
    """Score a split of so many examples as `evaluate` does, for members side by side."""
    padded_batches = batches.evaluation_batches(examples, batch_size)
    padded = bool((padded_batches[1] == 0).any())
    options = {"task": task, "stats": stats, "padded": padded, "members": members}
    scores = jax.device_get(score_members(params, norm, split, padded_batches, **options))
    each = range(scores.loss.shape[0])
    return [_means(jax.tree.map(lambda sums, i=i: sums[i], scores)) for i in each]


def better(scores: Mapping[str, float], best: Mapping[str, float], select: str) -> bool:
    """Whether validation scores beat the best so far, by `config.select`."""
    if select == "accuracy":  # a small validation set often ties; then the loss decides
        return (scores["accuracy"], -scores["loss"]) > (best["accuracy"], -best["loss"])
    return scores["loss"] < best["loss"]


def population(
    params: Tree,
    norm: Tree,
    split: Tree,
    *,
    task: tasks.Task,
    how: Any,
    batch_size: int,
    layout: parallel.DeviceLayout | None = None,
) -> Tree:
    """Estimate the population statistics of the whole model over a whole split."""
    if not jax.tree.leaves(norm):
        return norm  # no norm has statistics: nothing to estimate

    indices, weights = batches.evaluation_batches(splits.size(split), batch_size)
    if layout is not None:
        indices, weights = layout.pad(indices, weights)

    def inputs() -> Iterator[tasks.Batch]:
        for index, weight in zip(indices, weights, strict=True):
            key = jax.random.fold_in(jax.random.key(0), index[0])
            counts = jnp.asarray(weight) if (weights == 0).any() else None
            if layout is not None:
                index, counts = layout.split((index, counts))
            yield tasks.Batch(splits.take(split, index), counts, key)

    return normjax.population_statistics(task, params, norm, inputs(), how=how)


def population_members(
    params: Tree,
    norm: Tree,
    split: Tree,
    at_once: int,
    *,
    task: tasks.Task,
    how: Any,
    batch_size: int,
    members: parallel.Members,
) -> Tree:
    """Estimate `population` of members, so many at once: their batches need not all fit."""
    if not jax.tree.leaves(norm):
        return norm
    estimate = functools.partial(population, task=task, how=how, batch_size=batch_size)
    mapped = jax.vmap(estimate, in_axes=(0, 0, members.data_axis))
    count = len(jax.tree.leaves(params)[0])
    parts = []
    for which in np.array_split(np.arange(count), -(-count // at_once)):
        own = functools.partial(jax.tree.map, lambda x, at=which: x[at[0] : at[-1] + 1])
        data = own(split) if members.own_data else split
        parts.append(mapped(own(params), own(norm), data))
    return jax.tree.map(lambda *each: jnp.concatenate(each), *parts)


def final_scores(
    best: Tree,
    dataset: splits.Dataset,
    task: tasks.Task,
    config: dict,
    layout: parallel.DeviceLayout | None = None,
) -> dict:
    """Score the best parameters on validation and test set under three kinds of statistics.

    "population": estimated over the training set; "batch": of the evaluated batch itself;
    "running": the moving average of training.
    """
    params, running = best["params"], best["norm"]
    how, size = config["population"]["how"], config["population"]["batch_size"]
    exact = population(
        params, running, dataset.train, task=task, how=how, batch_size=size, layout=layout
    )
    scores = {
        name: {
            kind: evaluate(
                params,
                norm,
                split,
                task=task,
                stats=stats,
                batch_size=config["eval_batch_size"],
                layout=layout,
            )
            for kind, (norm, stats) in _kinds(running, exact).items()
        }
        for name, split in (("valid", dataset.valid), ("test", dataset.test))
    }
    return _of_each_kind(scores)


KINDS = ("population", "batch", "running")


def _kinds(running: Tree, exact: Tree) -> dict[str, tuple[Tree, str]]:
    """Return the norm state and `stats` of each kind of statistics; without any all are one."""
    if not jax.tree.leaves(running):
        return {"batch": (running, "batch")}
    states = (exact, "running"), (running, "batch"), (running, "running")
    return dict(zip(KINDS, states, strict=True))


def _of_each_kind(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {split: {k: s.get(k, s["batch"]) for k in KINDS} for split, s in scores.items()}


def final_scores_members(
    best: Tree,
    data: Mapping[str, Tree],
    sizes: Mapping[str, int],
    *,
    task: tasks.Task,
    config: Mapping[str, Any],
    members: parallel.Members,
) -> list[dict[str, dict[str, Any]]]:
    """Compute `final_scores` of members side by side, of arrays `[members, ...]`.

    `data` and `sizes` have the splits and their numbers of examples.
    """
    params, running = best["params"], best["norm"]
    scored_at_once = len(jax.tree.leaves(params)[0]) * config["eval_batch_size"]
    at_once = max(1, scored_at_once // config["population"]["batch_size"])
    exact = population_members(
        params, running, data["train"], at_once, task=task, members=members, **config["population"]
    )
    scores: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {
            kind: evaluate_members(
                params,
                norm,
                data[name],
                task=task,
                stats=stats,
                batch_size=config["eval_batch_size"],
                examples=sizes[name],
                members=members,
            )
            for kind, (norm, stats) in _kinds(running, exact).items()
        }
        for name in ("valid", "test")
    }
    count = len(scores["valid"]["batch"])
    return [
        _of_each_kind({s: {k: own[i] for k, own in kinds.items()} for s, kinds in scores.items()})
        for i in range(count)
    ]
