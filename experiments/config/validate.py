"""Checks a whole config before any data is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from experiments import tasks
from experiments.config.defaults import (
    BATCH_STATS,
    DATASETS,
    LAYOUTS,
    NONFINITE,
    OPTIMIZERS,
    PARALLEL,
    PERMUTATIONS,
    POPULATION,
    SELECT,
    SHUFFLE,
    SIDE,
    TRAIN_SIZE,
    UNITS,
    as_dict,
    default,
    flatten,
)
from experiments.usage import UsageError, check_number, nearest, one_of

CHOICES = {
    "dataset": DATASETS,
    "permutation": PERMUTATIONS,
    "optim.name": OPTIMIZERS,
    "population.how": POPULATION,
    "select": SELECT,
    "parallel": PARALLEL,
    "batch_stats": BATCH_STATS,
    "nonfinite": NONFINITE,
    "data.layout": LAYOUTS,
    "data.shuffle": SHUFFLE,
    "data.unit": UNITS,
}
AT_LEAST_0 = (
    *("data.train_size", "data.valid_size", "data.test_size", "data.side", "data.stride"),
    *("devices", "nonfinite_limit", "optim.eps", "optim.l2", "optim.l1", "optim.clip_norm"),
)
AT_LEAST_1 = (
    *("data.length", "data.vocabulary", "steps", "steps_per_call", "keep_checkpoints"),
    *("log_every", "eval_every", "checkpoint_every", "batch_size", "eval_batch_size"),
    "population.batch_size",
)
UP_TO_1 = ("optim.decay", "optim.momentum")
SEEDS = ("seed", "permutation_seed")


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a whole config and return it as plain nested dictionaries, every reference resolved."""
    plain: dict[str, Any] = json.loads(json.dumps(as_dict(config)))
    _check_keys(plain)
    _check_values(plain)
    _check_side(plain)
    _check_periods(plain)
    _check_batch_sizes(plain)
    tasks.check(plain)
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
    for group in ("data", "optim", "population"):
        for key in plain[group]:
            if key not in reference[group]:
                raise UsageError(f"config.{group}.{key} is no key.{nearest(key, reference[group])}")


def _check_values(plain: Mapping[str, Any]) -> None:
    """Check each value by itself: one of the known words, or a number within bounds."""
    flat = flatten(plain)
    for key, known in CHOICES.items():
        one_of(f"config.{key}", flat[key], known)
    for key in AT_LEAST_0:
        check_number(key, flat[key], 0)
    for key in AT_LEAST_1:
        check_number(key, flat[key], 1)
    for key in UP_TO_1:
        check_number(key, flat[key], 0, 1)
    for key in SEEDS:
        check_number(key, flat[key], 0, 2**31 - 1)
    check_number("target_accuracy", flat["target_accuracy"], 0, 1, open_low=True)
    check_number("optim.learning_rate", flat["optim.learning_rate"], 0, open_low=True)
    check_number("model.hidden", flat.get("model.hidden"), 1)


def _check_side(plain: Mapping[str, Any]) -> None:
    """Refuse a side that does not divide the images'."""
    side, native = plain["data"]["side"], SIDE.get(plain["dataset"], 0)
    if side and native and native % side:
        raise UsageError(
            f"config.data.side={side} does not divide {native}, the side of {plain['dataset']}; "
            f"write one of {', '.join(str(k) for k in range(1, native + 1) if native % k == 0)}."
        )


def _check_periods(plain: Mapping[str, Any]) -> None:
    """Refuse periods that do not end with a call of the compiled program."""
    for key in ("log_every", "eval_every", "checkpoint_every"):
        if plain[key] % plain["steps_per_call"]:
            raise UsageError(
                f"config.steps_per_call={plain['steps_per_call']} must divide config.{key}, "
                f"which is {plain[key]}."
            )


def _check_batch_sizes(plain: Mapping[str, Any]) -> None:
    """Refuse batches of more than all training examples."""
    size = TRAIN_SIZE.get(plain["dataset"], 2**31)  # a text's size shows when it is read
    size = min(size, plain["data"]["train_size"] or size)
    for key in ("batch_size", "eval_batch_size"):
        if plain[key] > size:
            raise UsageError(
                f"config.{key}={plain[key]} is more than the {size} training examples of "
                f"{plain['dataset']}; write a number from 1 to {size}."
            )
