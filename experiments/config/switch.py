"""Switches a norm of a config by name: arguments that the new norm does not have are dropped."""

from __future__ import annotations

import inspect
from collections.abc import Collection

import ml_collections

import normjax
from experiments.config.models import LIFTS, factories
from normjax import recurrent


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
