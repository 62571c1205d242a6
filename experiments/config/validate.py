"""Checks a whole config before any data is read."""

from __future__ import annotations

import inspect
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

import normjax
from experiments import models, tasks
from experiments.config import training
from experiments.config.defaults import (
    BATCH_STATS,
    DATASETS,
    DTYPES,
    FOLDS,
    LAYOUTS,
    NONFINITE,
    OPTIMIZERS,
    PARALLEL,
    PERMUTATIONS,
    POPULATION,
    SCHEDULES,
    SELECT,
    SHUFFLE,
    SIDE,
    UNITS,
    as_dict,
    default,
    flatten,
)
from experiments.config.models import factories
from experiments.data import augment, facts
from experiments.usage import UsageError, check_number, nearest, one_of, short

CHOICES = {
    "permutation": PERMUTATIONS,
    "optim.name": OPTIMIZERS,
    "population.how": POPULATION,
    "optim.schedule": SCHEDULES,
    "select": SELECT,
    "dtype": DTYPES,
    "parallel": PARALLEL,
    "batch_stats": BATCH_STATS,
    "nonfinite": NONFINITE,
    "data.layout": LAYOUTS,
    "data.shuffle": SHUFFLE,
    "data.unit": UNITS,
}
# Whole numbers by key, with their bounds. Above them a run would not end, or an array not fit.
COUNTS = {
    **dict.fromkeys(("data.train_size", "data.valid_size", "data.test_size"), (0, 10**9)),
    **dict.fromkeys(("devices", "nonfinite_limit"), (0, 10**6)),
    "data.fold": (0, FOLDS),
    "data.side": (0, 4096),
    "data.workers": (0, 64),
    **dict.fromkeys(("data.stride", "data.draw", "permutation_seed", "seed"), (0, 2**31 - 1)),
    **dict.fromkeys(("steps", "eval_every", "checkpoint_every"), (1, 2**31 - 1)),
    **dict.fromkeys(("optim.schedule_steps", "optim.warmup"), (0, 2**31 - 1)),
    "optim.accumulate": (1, 10**5),
    "log_every": (1, 10**6),  # a number for each step since the last row is on the device
    **dict.fromkeys(("steps_per_call", "keep_checkpoints", "model.hidden"), (1, 10**5)),
    **dict.fromkeys(("batch_size", "eval_batch_size", "population.batch_size"), (1, 10**7)),
    "data.vocabulary": (1, 10**7),
    "data.shift": (0, 14),
    "model.embed": (0, 10**5),
    "model.depth": (1, 1000),
    "model.channels": (1, 10**4),
    "model.kernel": (1, 1000),
}
# Of sequences, by data set: recordings last seconds, reviews have at most 2,500 words.
LONGEST = {"fsdd": 1000, "imdb_reviews": 10_000, "text": 10**6}
LARGEST = 1e20  # beyond it, float32 overflows in the squares of a loss or a gradient
SMALLEST_RATE = 1e-12  # below it, no step changes a float32 parameter
NAME_LENGTH = 200


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a whole config and return it as plain nested dictionaries, every reference resolved."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(as_dict(config)))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the config cannot be written as JSON ({error}): its values are numbers, words, True, "
            "False, and lists and groups of these."
        ) from error
    _check_keys(plain)
    _check_types(plain)
    _check_words(plain)
    _check_values(plain)
    _check_own(plain)
    data = facts.of(plain)
    _check_side(plain)
    _check_layout(plain)
    _check_fold(plain)
    _check_periods(plain)
    training.check(plain)
    _check_batch_sizes(plain, data.examples)
    augment.check(plain, data)
    tasks.check(plain)
    _check_batch_statistics(plain)
    return plain


def _check_keys(plain: Mapping[str, Any]) -> None:
    """Compare the keys with those of the default config; a model's are its task's to check."""
    reference = as_dict(default())
    for key in reference:
        if key not in plain:
            raise UsageError(
                f"the config has no key {key!r}; start from experiments.config.defaults.default()."
            )
    for key in plain:
        if key not in reference and key != "gamma":
            raise UsageError(f"config.{key} is no key of a run.{nearest(key, reference)}")
    for group in ("data", "optim", "population", "model"):
        if not isinstance(plain[group], Mapping):
            raise UsageError(
                f"config.{group}={short(plain[group])} must be a group of keys; write "
                f"--config.{group}.KEY=VALUE."
            )
    for group in ("data", "optim", "population"):
        for key in plain[group]:
            if key not in reference[group]:
                raise UsageError(f"config.{group}.{key} is no key.{nearest(key, reference[group])}")
        for key in reference[group]:
            if key not in plain[group]:
                raise UsageError(
                    f"the config has no key '{group}.{key}'; start from "
                    "experiments.config.defaults.default()."
                )


def _check_types(plain: Mapping[str, Any]) -> None:
    """Require the type of each default, and numbers that float32 has."""
    reference, flat = flatten(as_dict(default())), flatten(plain)
    for key, usual in reference.items():
        if key.startswith("model."):
            continue
        if key not in flat:  # a group of keys, where the default is a value
            raise UsageError(f"config.{key} must be a single value, as {usual!r} is.")
        if isinstance(usual, str) and not isinstance(flat[key], str):
            raise UsageError(f"config.{key}={short(flat[key])} must be a word, as {usual!r} is.")
    for key, value in flat.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not abs(number) <= LARGEST:
                raise UsageError(
                    f"config.{key}={short(value)} must be a finite number, of size {LARGEST:g} at "
                    "most."
                )


def _check_words(plain: Mapping[str, Any]) -> None:
    """Refuse control characters, which no terminal, legend or file name shows as they are."""
    for key, value in flatten(plain).items():
        for word in (key, value):
            if isinstance(word, str) and any(
                unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in word
            ):
                raise UsageError(
                    f"config.{short(key)[1:-1]}={short(value)} holds a control character (a line "
                    "break, for instance); write it without."
                )
    name = plain["name"]
    if not name.strip() or len(name) > NAME_LENGTH:
        raise UsageError(
            f"config.name={short(name)} must have from 1 to {NAME_LENGTH} characters; write for "
            "instance --config.name=lstm."
        )


def _check_values(plain: Mapping[str, Any]) -> None:
    """Check each value by itself: one of the known words, or a number within bounds."""
    flat = flatten(plain)
    for key, known in CHOICES.items():
        one_of(f"config.{key}", flat[key], known)
    for key, (low, high) in COUNTS.items():
        if key in flat or (key == "model.hidden" and _has_units(plain["model"])):
            check_number(key, flat.get(key), low, high, integer=True)
    check_number("data.length", flat["data.length"], 1, 10**6, integer=True)
    if (longest := LONGEST.get(plain["dataset"], 10**6)) < flat["data.length"]:
        raise UsageError(
            f"config.data.length={flat['data.length']} is longer than any sequence of "
            f"{plain['dataset']}; write {longest} or less."
        )
    check_number("data.contrast", flat["data.contrast"], 1, 100)
    check_number("data.memory", flat["data.memory"], 0, 10**6)
    check_number("target_accuracy", flat["target_accuracy"], 0, 1, open_low=True)
    check_number("optim.learning_rate", flat["optim.learning_rate"], 0, LARGEST, open_low=True)
    if flat["optim.learning_rate"] < SMALLEST_RATE:
        raise UsageError(
            f"config.optim.learning_rate={flat['optim.learning_rate']!r} changes no float32 "
            f"parameter; write {SMALLEST_RATE:g} or more."
        )
    for key in ("optim.decay", "optim.momentum", "optim.b2", "optim.ema", "optim.label_smoothing"):
        check_number(key, flat[key], 0, 1, open_high=True)
    check_number("optim.eps", flat["optim.eps"], 0, 1)
    check_number("optim.factor", flat["optim.factor"], 0, 1, open_low=True)
    for key in ("optim.l2", "optim.l1", "optim.clip_norm", "optim.weight_decay"):
        check_number(key, flat[key], 0, LARGEST)
    for key, value in flat.items():
        if key.startswith("model.") and key.endswith(".decay"):
            check_number(key, value, 0, 1, open_high=True)
        if key.startswith("model.") and key.endswith(".eps"):
            check_number(key, value, 0, 1)
        if key.startswith("model.") and key.endswith(".max_steps"):
            check_number(key, value, 1, 10**6, integer=True)


def _check_own(plain: Mapping[str, Any]) -> None:
    """Refuse keys of one kind of data for another, and a name that is another set's."""
    name, data = plain["dataset"], plain["data"]
    if data["source"] and name in DATASETS:
        raise UsageError(
            f"config.data.source={data['source']!r} gives data of your own, and config.dataset="
            f"{name!r} is the name of others; write --config.dataset=NAME, any name for yours."
        )
    for key in ("train", "test"):
        if data[key] and not facts.by_name(plain):
            raise UsageError(
                f"config.data.{key}={short(data[key])} is a split of a TFDS set by its name; "
                f"{name!r} has its own splits: write config.data.{key}=''."
            )
    if data["valid"] and name in DATASETS and not facts.own(plain):
        version = (
            f" (for other ones write --config.dataset={name}:3.0.1)" if "mnist" in name else ""
        )
        raise UsageError(
            f"config.data.valid={short(data['valid'])}, but {name} has its own splits{version}; "
            "write config.data.valid=''."
        )
    if data["folder"] and name != "npz":
        raise UsageError(
            f"config.data.folder={short(data['folder'])} is for config.dataset='npz', and "
            f"config.dataset={name!r}; a text's folder is config.data.text."
        )


def _has_units(model: Mapping[str, Any]) -> bool:
    """Whether a model says with `hidden` how many units it has."""
    return "module" not in model and model.get("arch", "mlp") in ("mlp", "lenet")


def _check_side(plain: Mapping[str, Any]) -> None:
    """Refuse a side that does not divide the images'."""
    side, native = plain["data"]["side"], SIDE.get(plain["dataset"], 0)
    if side and native and native % side:
        raise UsageError(
            f"config.data.side={side} does not divide {native}, the side of {plain['dataset']}; "
            f"write one of {', '.join(str(k) for k in range(1, native + 1) if native % k == 0)}."
        )


def _check_layout(plain: Mapping[str, Any]) -> None:
    """Refuse pictures for a layer that reads sequences."""
    if plain["task"] in ("sequence", "language") and plain["data"]["layout"] == "images":
        raise UsageError(
            f"config.data.layout='images' is for config.task='image' or 'generate'; "
            f"config.task={plain['task']!r} reads 'pixels' or 'rows'."
        )


def _check_fold(plain: Mapping[str, Any]) -> None:
    """Refuse a fold of data without speakers."""
    if plain["data"]["fold"] and plain["dataset"] != "fsdd":
        raise UsageError(
            f"config.data.fold={plain['data']['fold']} holds out a speaker of fsdd; "
            f"{plain['dataset']} has none: write config.data.fold=0."
        )


def _check_periods(plain: Mapping[str, Any]) -> None:
    """Refuse periods that do not end with a call of the compiled program."""
    for key in ("log_every", "eval_every", "checkpoint_every"):
        if plain[key] % plain["steps_per_call"]:
            raise UsageError(
                f"config.steps_per_call={plain['steps_per_call']} must divide config.{key}, "
                f"which is {plain[key]}."
            )


def _check_batch_sizes(plain: Mapping[str, Any], examples: int) -> None:
    """Refuse batches of more than all training examples."""
    size = min(examples, plain["data"]["train_size"] or examples)
    for key in ("batch_size", "eval_batch_size"):
        if plain[key] > size:
            raise UsageError(
                f"config.{key}={plain[key]} is more than the {size} training examples of "
                f"{plain['dataset']}; write a number from 1 to {size}."
            )


def _check_batch_statistics(plain: Mapping[str, Any]) -> None:
    """Refuse evaluation in batches of one example where a norm needs the batch's statistics.

    Norms of convolutions and of whole sequences also average over places or time.
    """
    if models.is_named(plain["model"]):
        return  # their norms average over places or time, and the user's own are theirs to know
    known = factories(normjax, "Norm")
    for place, norm in plain["model"].items():
        if not isinstance(norm, Mapping) or "decay" not in _arguments(
            known.get(str(norm.get("name")))
        ):
            continue
        if place in ("norm_conv", "response", "norm") or norm.get("lift") == "sequence_wise":
            continue
        keys = ("eval_batch_size", "population.batch_size", "data.valid_size", "data.test_size")
        flat = flatten(plain)
        for key in keys:
            if flat[key] == 1:
                raise UsageError(
                    f"config.{key}=1, but {norm['name']} at config.model.{place} measures the "
                    "variance over the examples of a batch, and one example has none; write 2 or "
                    "more."
                )


def _arguments(factory: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(factory).parameters) if factory else ()
