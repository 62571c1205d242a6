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
)
from experiments.usage import UsageError, check_number, nearest, one_of


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a whole config and return it as plain nested dictionaries, every reference resolved."""
    plain: dict[str, Any] = json.loads(json.dumps(as_dict(config)))
    reference = as_dict(default())
    for key in reference:
        if key not in plain:
            raise UsageError(
                f"the config has no key {key!r}; start from experiments.config.default()."
            )
    for key in plain:
        if key not in reference and key != "gamma":
            raise UsageError(f"config.{key} is no key of a run.{nearest(key, reference)}")
    for group in ("data", "optim", "population"):
        for key in plain[group]:
            if key not in reference[group]:
                raise UsageError(f"config.{group}.{key} is no key.{nearest(key, reference[group])}")

    one_of("config.dataset", plain["dataset"], DATASETS)
    one_of("config.permutation", plain["permutation"], PERMUTATIONS)
    one_of("config.optim.name", plain["optim"]["name"], OPTIMIZERS)
    one_of("config.population.how", plain["population"]["how"], POPULATION)
    one_of("config.select", plain["select"], SELECT)
    one_of("config.parallel", plain["parallel"], PARALLEL)
    one_of("config.batch_stats", plain["batch_stats"], BATCH_STATS)
    one_of("config.nonfinite", plain["nonfinite"], NONFINITE)
    one_of("config.data.layout", plain["data"]["layout"], LAYOUTS)
    one_of("config.data.shuffle", plain["data"]["shuffle"], SHUFFLE)
    one_of("config.data.unit", plain["data"]["unit"], UNITS)
    for key in ("train_size", "valid_size", "test_size", "side", "stride"):
        check_number(f"data.{key}", plain["data"][key], 0)
    for key in ("length", "vocabulary"):
        check_number(f"data.{key}", plain["data"][key], 1)
    side, native = plain["data"]["side"], SIDE.get(plain["dataset"], 0)
    if side and native and native % side:
        raise UsageError(
            f"config.data.side={side} does not divide {native}, the side of {plain['dataset']}; "
            f"write one of {', '.join(str(k) for k in range(1, native + 1) if native % k == 0)}."
        )
    size = TRAIN_SIZE.get(plain["dataset"], 2**31)  # a text's size shows when it is read
    size = min(size, plain["data"]["train_size"] or size)
    for key in ("devices", "nonfinite_limit"):
        check_number(key, plain[key], 0)
    for key in ("steps", "steps_per_call", "keep_checkpoints"):
        check_number(key, plain[key], 1)
    for key in ("log_every", "eval_every", "checkpoint_every"):
        check_number(key, plain[key], 1)
        if plain[key] % plain["steps_per_call"]:
            raise UsageError(
                f"config.steps_per_call={plain['steps_per_call']} must divide config.{key}, "
                f"which is {plain[key]}."
            )
    for key in ("batch_size", "eval_batch_size"):
        check_number(key, plain[key], 1)
        if plain[key] > size:
            raise UsageError(
                f"config.{key}={plain[key]} is more than the {size} training examples of "
                f"{plain['dataset']}; write a number from 1 to {size}."
            )
    check_number("population.batch_size", plain["population"]["batch_size"], 1)
    check_number("seed", plain["seed"], 0, 2**31 - 1)
    check_number("permutation_seed", plain["permutation_seed"], 0, 2**31 - 1)
    check_number("target_accuracy", plain["target_accuracy"], 0, 1, open_low=True)
    check_number("model.hidden", plain["model"].get("hidden"), 1)
    check_number("optim.learning_rate", plain["optim"]["learning_rate"], 0, open_low=True)
    check_number("optim.decay", plain["optim"]["decay"], 0, 1)
    check_number("optim.momentum", plain["optim"]["momentum"], 0, 1)
    check_number("optim.eps", plain["optim"]["eps"], 0)
    for key in ("l2", "l1", "clip_norm"):
        check_number(f"optim.{key}", plain["optim"][key], 0)

    tasks.check(plain)
    return plain
