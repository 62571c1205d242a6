"""Changes the model of a config: adds what it does not name, and switches a norm by name."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

import normjax
from experiments.config.models import LIFTS, factories
from normjax import recurrent


def can_add(config: ml_collections.ConfigDict, key: str) -> bool:
    """Whether a key such as "model.norm_h.debias" may be added to a config that does not name it.

    The model's functions have more arguments than a config file names. Whether there is such a one
    is for the check of the whole config to say, which knows what else has changed.
    """
    words = key.split(".")
    if words[0] != "model" or len(words) not in (2, 3) or not all(words):
        return False
    *group, option = words[1:]
    node = config.get("model")
    for name in group:
        node = node.get(name) if node is not None else None
        node = ml_collections.ConfigDict() if node is None else node
    return isinstance(node, ml_collections.ConfigDict) and option not in node


def add(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    """Add keys that `can_add` allows, in place."""
    with config.unlocked():
        for key, value in values.items():
            node, (*group, option) = config.model, key.split(".")[1:]
            for name in group:
                if node.get(name) is None:
                    node[name] = ml_collections.ConfigDict()
                node = node[name]
            node[option] = value


def names(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Return the norm of each place of a config's model."""
    model = config.get("model", {})
    return {
        place: norm["name"]
        for place, norm in model.items()
        if isinstance(norm, ml_collections.ConfigDict) and isinstance(norm.get("name"), str)
    }


def switch_norms(
    config: ml_collections.ConfigDict, before: dict[str, str], written: Collection[str]
) -> list[str]:
    """Drop what norms of a new name do not take, in place, and say in a line what was dropped.

    `before` are the names that the config had; `written` the keys that the user set, such as
    "model.norm_h.name", which are kept, right or wrong. A norm without running averages needs no
    lift over time. The run's name, unless it was set, names the new norms.
    """
    notes = []
    for place, name in names(config).items():
        if before.get(place) == name or f"model.{place}.name" not in written:
            continue
        if name != "none" and name not in factories(normjax, "Norm"):
            continue  # the check of the config says which are known
        dropped = _foreign(config.model[place], name, place, written)
        with config.unlocked():
            for key in dropped:
                del config.model[place][key]
            if "name" not in written:
                config.name = f"{config.name},{place}={name}"
        if dropped:
            notes.append(
                f"config.model.{place}: {name} in place of {before.get(place, 'none')}, without "
                f"{', '.join(dropped)}"
            )
    return notes


def _foreign(
    norm: ml_collections.ConfigDict, name: str, place: str, written: Collection[str]
) -> list[str]:
    """Return the arguments of a place that its new norm, and its lift, do not take."""
    if name == "none":
        return []  # switches a norm off whatever its arguments
    taken = set(inspect.signature(factories(normjax, "Norm")[name]).parameters)
    own = {key for key in norm if f"model.{place}.{key}" in written} | {"name"}
    lift = norm.get("lift")
    if lift in LIFTS and ("decay" in taken or "lift" in own):
        taken |= {"lift", *inspect.signature(getattr(recurrent, lift)).parameters}
    return sorted(key for key in norm if key not in taken | own)
