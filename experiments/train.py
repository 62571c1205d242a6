"""Train one config into one workdir.

    python -m experiments.train --config=configs/recurrent_bn/digits.py:bn_lstm --workdir=DIR

Where a run starts, in this order: (1) the newest checkpoint in the workdir; (2) the newest
checkpoint in `config.resume`, another workdir; (3) from scratch. A run that was killed and is
started again with the same command gives the same metrics, to the bit, as one that never stopped.

The workdir holds config.json (resolved, with versions), checkpoints/, metrics.jsonl, TensorBoard
files and, once finished, final.json.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from ml_collections import config_flags

import normjax
from experiments import config as configs
from experiments import data, model, report
from experiments.config import UsageError
from experiments.workdir import (
    Checkpoints,
    Metrics,
    Progress,
    hardware,
    open_workdir,
    versions,
    write_json,
)

_CONFIG = config_flags.DEFINE_config_file("config", help_string="FILE.py:VARIANT")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.", allow_override=True)

Tree = Any


class Diverged(RuntimeError):
    """The loss or its gradient is no longer finite."""


class Interrupted(RuntimeError):
    """Somebody asked the run to stop; its checkpoint is written."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


# ------------------------------------------------------------------------------- the computation


def optimizer(optim: Mapping[str, Any]) -> optax.GradientTransformation:
    """Clip by the global norm, then the optimizer of `config.optim`."""
    rate, decay, eps = optim["learning_rate"], optim["decay"], optim["eps"]
    momentum = optim["momentum"] or None
    if optim["name"] == "rmsprop":
        # The paper says 0.9; the authors' script has decay_rate=0.5 and no momentum.
        make = optax.rmsprop(rate, decay=decay, eps=eps, momentum=momentum)
    elif optim["name"] == "adam":
        make = optax.adam(rate, b1=decay, eps=eps)
    else:
        make = optax.sgd(rate, momentum=momentum)
    clip = optim["clip_norm"]
    return optax.chain(optax.clip_by_global_norm(clip), make) if clip else make


def start(classifier: model.Classifier, tx: optax.GradientTransformation, config: dict) -> Tree:
    """The whole state of a run at step 0: one pytree, all of it checkpointed.

    `window` holds the metrics of the last `log_every` steps, on the device until they are logged.
    """
    key, key_init = jax.random.split(jax.random.key(config["seed"]))
    params, norm = classifier.init(key_init, config["model"]["hidden"])
    window = jnp.zeros((config["log_every"],))
    now = {
        "params": params,
        "norm": norm,
        "opt": tx.init(params),
        "key": key,
        "step": jnp.zeros((), jnp.int32),
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


@functools.partial(jax.jit, static_argnames=("classifier", "optim"), donate_argnames=("now",))
def train_step(
    now: Tree, split: data.Split, index: jax.Array, *, classifier: model.Classifier, optim: tuple
) -> Tree:
    """One update, on the examples at `index`."""
    pixels, labels = split.pixels[index], split.labels[index]
    key = jax.random.fold_in(now["key"], now["step"])

    def loss_of(params: Tree) -> tuple[jax.Array, tuple[model.Scores, Tree]]:
        logits, norm = classifier.apply(params, now["norm"], pixels, stats="batch", key=key)
        scores = model.score(logits, labels)
        return scores.loss / scores.examples, (scores, norm)

    (loss, (scores, norm)), grads = jax.value_and_grad(loss_of, has_aux=True)(now["params"])
    updates, opt = optimizer(dict(optim)).update(grads, now["opt"], now["params"])
    seen = {
        "loss": loss,
        "accuracy": scores.correct / scores.examples,
        "grad_norm": optax.tree.norm(grads),
    }
    slot = now["step"] % now["window"]["loss"].shape[0]
    return {
        "params": optax.apply_updates(now["params"], updates),
        "norm": norm,
        "opt": opt,
        "key": now["key"],
        "step": now["step"] + 1,
        "window": {k: w.at[slot].set(seen[k]) for k, w in now["window"].items()},
    }


@functools.partial(jax.jit, static_argnames=("classifier", "stats", "padded"))
def _score_all(
    params: Tree,
    norm: Tree,
    split: data.Split,
    batches: tuple[jax.Array, jax.Array],
    *,
    classifier: model.Classifier,
    stats: str,
    padded: bool,
) -> model.Scores:
    def one(batch: tuple[jax.Array, jax.Array]) -> model.Scores:
        index, weight = batch
        pixels, labels = split.pixels[index], split.labels[index]
        # The protocol's noise on h0 is part of the evaluation graph too; a fixed key keeps the
        # number the same from call to call.
        key = jax.random.fold_in(jax.random.key(0), index[0])
        counts = weight if padded else None  # masks cost time, and most batches need none
        logits, _ = classifier.apply(params, norm, pixels, stats=stats, weight=counts, key=key)
        return model.score(logits, labels, weight)

    return jax.tree.map(jnp.sum, jax.lax.map(one, batches))


def evaluate(
    params: Tree,
    norm: Tree,
    split: data.Split,
    *,
    classifier: model.Classifier,
    stats: str,
    batch_size: int,
) -> dict[str, float]:
    """Loss and accuracy over a split, every example once; statistics of the batch or of `norm`."""
    batches = data.evaluation_batches(len(split.labels), batch_size)
    padded = bool((batches[1] == 0).any())
    scores = jax.device_get(
        _score_all(params, norm, split, batches, classifier=classifier, stats=stats, padded=padded)
    )
    return {
        "loss": float(scores.loss / scores.examples),
        "accuracy": float(scores.correct / scores.examples),
    }


def population(
    params: Tree,
    norm: Tree,
    split: data.Split,
    *,
    classifier: model.Classifier,
    how: Any,
    batch_size: int,
) -> Tree:
    """Population statistics of the layer, estimated again over a whole split."""
    if not jax.tree.leaves(norm):
        return norm  # no norm keeps statistics: nothing to estimate

    indices, weights = data.evaluation_batches(len(split.labels), batch_size)

    def batches() -> Iterator[dict[str, Any]]:
        for index, weight in zip(indices, weights, strict=True):
            key = jax.random.fold_in(jax.random.key(0), index[0])
            counts = jnp.asarray(weight) if (weights == 0).any() else None
            yield classifier.inputs(split.pixels[index], counts, key)

    return normjax.population(classifier.layer, params["layer"], norm, batches(), how=how)


def final_scores(
    best: Tree, dataset: data.Dataset, classifier: model.Classifier, config: dict
) -> dict:
    """Validation and test scores of the best parameters under three kinds of statistics.

    "population": estimated over the training set; "batch": of the evaluated batch itself;
    "running": the moving average kept while training.
    """
    params, running = best["params"], best["norm"]
    how, size = config["population"]["how"], config["population"]["batch_size"]
    exact = population(
        params, running, dataset.train, classifier=classifier, how=how, batch_size=size
    )
    kinds = {
        "population": (exact, "running"),
        "batch": (running, "batch"),
        "running": (running, "running"),
    }
    return {
        name: {
            kind: evaluate(
                params,
                norm,
                split,
                classifier=classifier,
                stats=stats,
                batch_size=config["eval_batch_size"],
            )
            for kind, (norm, stats) in kinds.items()
        }
        for name, split in (("valid", dataset.valid), ("test", dataset.test))
    }


# --------------------------------------------------------------------------------------- the loop


class _Stop:
    """Remembers a Ctrl-C or a TERM until the step in flight is done; a second one is final."""

    def __enter__(self) -> _Stop:
        self.number = 0
        self.before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: whoever runs us handles signals
                break
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def train(config: Mapping[str, Any], workdir: str | os.PathLike) -> dict[str, Any]:
    """Run a config in a workdir, from wherever it stands, and return what final.json says."""
    config = configs.check(config)
    workdir = pathlib.Path(workdir)
    if config["resume"] and not (pathlib.Path(config["resume"]) / "checkpoints").is_dir():
        raise UsageError(f"config.resume={config['resume']!r} holds no checkpoints folder.")
    if config["dataset"] != "digits":
        data.find("mnist", config["data_dir"])  # before the workdir is made
    open_workdir(workdir, config)
    done = workdir / "final.json"
    if done.exists():
        final = json.loads(done.read_text())
        if final["steps"] == config["steps"]:
            return final

    dataset = data.load(
        config["dataset"],
        data_dir=config["data_dir"],
        permutation=config["permutation"],
        seed=config["permutation_seed"],
    )
    dataset = dataset.on_device()
    classifier = model.build(config, dataset.classes, dataset.white)
    optim = tuple(sorted(config["optim"].items()))
    run = start(classifier, optimizer(config["optim"]), config)
    iterator = data.batches(len(dataset.train.labels), config["batch_size"], config["seed"])

    checkpoints = Checkpoints(workdir)
    origin = "scratch"
    if checkpoints.latest() is not None:
        run, place = checkpoints.restore(run)
        iterator.set_state(place)
        origin = f"step {checkpoints.latest()} of {workdir}"
    elif config["resume"]:
        other = Checkpoints(pathlib.Path(config["resume"]))
        if other.latest() is None:
            raise UsageError(f"config.resume={config['resume']!r} holds no finished checkpoint.")
        run, place = other.restore(run)
        iterator.set_state(place)
        origin = f"step {other.latest()} of {config['resume']}"
        other.close()
    step = int(run["now"]["step"])
    if step > config["steps"]:
        raise UsageError(
            f"{origin} is beyond config.steps={config['steps']}; "
            f"write --config.steps={step} or more."
        )
    count = sum(x.size for x in jax.tree.leaves(run["now"]["params"]))
    print(f"{config['name']}: {count:,} parameters, from {origin}, workdir {workdir}", flush=True)

    metrics = Metrics(workdir, step)
    show = Progress(config["name"], config["steps"], step)
    spent, began = float(run["seconds"]), time.perf_counter()

    def seconds() -> float:
        return spent + time.perf_counter() - began

    def look(log: bool) -> None:
        """Fetch the window, stop if it is not finite, and log it as the mean over its steps."""
        used = (step - 1) % config["log_every"] + 1
        window = {k: np.asarray(w)[:used] for k, w in jax.device_get(run["now"]["window"]).items()}
        good = np.isfinite(window["loss"]) & np.isfinite(window["grad_norm"])
        if not good.all():
            at = step - used + 1 + int(np.argmin(good))
            kept = checkpoints.latest()
            where = "there is no checkpoint yet" if kept is None else f"step {kept} is kept"
            raise Diverged(
                f"loss or gradient is not finite at step {at}; {where} in {checkpoints.folder}. "
                "The same command would meet it again: try a lower --config.optim.learning_rate, "
                "a lower --config.optim.clip_norm, or --config.model.h0_noise=0.1 where the "
                "first inputs are constant."
            )
        if log:
            values = {k: float(w.mean(dtype=np.float64)) for k, w in window.items()}
            metrics.write(step, "train", seconds(), **values)
            show.loss(values["loss"])

    def validate() -> None:
        """Score the validation set with batch statistics and keep the best parameters."""
        now, best = run["now"], run["best"]
        scores = evaluate(
            now["params"],
            now["norm"],
            dataset.valid,
            classifier=classifier,
            stats="batch",
            batch_size=config["eval_batch_size"],
        )
        metrics.write(step, "valid", seconds(), **scores)
        show.valid(step, scores["accuracy"], seconds())
        # A small validation set ties often; the loss decides.
        if (scores["accuracy"], -scores["loss"]) > (best["accuracy"], -best["loss"]):
            keep = jax.tree.map(jnp.array, {"params": now["params"], "norm": now["norm"]})
            run["best"] = {**keep, "step": step, **scores}

    def save() -> None:
        run["seconds"] = seconds()
        checkpoints.save(step, run, iterator)

    try:
        with _Stop() as stop:
            while step < config["steps"]:
                index = np.asarray(next(iterator), np.int32)
                run["now"] = train_step(
                    run["now"], dataset.train, index, classifier=classifier, optim=optim
                )
                step += 1
                show.step()
                last = step == config["steps"]
                log = last or step % config["log_every"] == 0
                check = last or step % config["eval_every"] == 0
                keep = last or step % config["checkpoint_every"] == 0 or stop.number
                if log or check or keep:
                    look(log)
                if check:
                    validate()
                if keep:
                    save()
                if stop.number and not last:
                    raise Interrupted(
                        f"stopped at step {step}, checkpoint written; the same command goes on "
                        "from there.",
                        stop.number,
                    )
        show.close()
        final = {
            "name": config["name"],
            "dataset": config["dataset"],
            "seed": config["seed"],
            "steps": step,
            "best_step": int(run["best"]["step"]),
            "parameters": int(count),
            "target_accuracy": config["target_accuracy"],
            "steps_to_target": report.steps_to(metrics.rows, config["target_accuracy"]),
            "seconds": round(float(run["seconds"]), 2),
            **final_scores(run["best"], dataset, classifier, config),
            "config": config,
            "versions": versions(),
            "hardware": hardware(),
        }
        write_json(done, final)
        return final
    finally:
        show.close()
        metrics.close()
        checkpoints.close()


def summary(final: Mapping[str, Any]) -> str:
    """The finished run in two lines."""
    lines = [
        f"{final['name']}: best step {final['best_step']} of {final['steps']}, {final['seconds']} s"
    ]
    for split in ("valid", "test"):
        numbers = ", ".join(f"{final[split][k]['accuracy']:.4f} {k}" for k in final[split])
        lines.append(f"  {split} accuracy by statistics: {numbers}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Entry point of ``python -m experiments.train``."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells its life at level INFO
    with configs.usage():
        configs.no_arguments(argv)
        if _CONFIG.value is None:
            raise UsageError("write --config=configs/recurrent_bn/digits.py:bn_lstm, for instance.")
        if not _WORKDIR.value:
            raise UsageError("write --workdir=DIR, the folder that this run is to live in.")
        try:
            print(summary(train(_CONFIG.value, _WORKDIR.value)))
        except Diverged as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except Interrupted as error:
            print(str(error), file=sys.stderr)
            sys.exit(128 + error.number)
        except KeyboardInterrupt:  # before the first step, or the second Ctrl-C
            print("stopped; the same command goes on from the last checkpoint.", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    app.run(main, flags_parser=configs.parse_flags)
