"""Builds the networks that `config.model.arch` names, each with its norms by `NormConfig`.

A module here has `KINDS` (the data that it takes), `NORMS` (the keys of its norms), `DEFAULTS`
(all keys), `check(model)`, for what their types do not say, and `build(model, norms, data)`, which
makes a `Model`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from experiments import usage
from experiments.config.models import NormConfig
from experiments.models.base import Call, Data, Model
from experiments.usage import UsageError

MODELS = ("resnet", "convnext", "transformer", "lru")

__all__ = ["MODELS", "Call", "Data", "Model", "build", "check", "fingerprint", "is_named"]


def is_named(model: Mapping[str, Any]) -> bool:
    """Whether a config's model is one of these, or the user's own."""
    return "module" in model or model.get("arch") in MODELS


def fingerprint(model: Mapping[str, Any]) -> str:
    """Hash the file of the user's own module; "" for a model of ours."""
    return _module(model).fingerprint(model) if "module" in model else ""


def _module(model: Mapping[str, Any]) -> Any:
    name = "own" if "module" in model else model["arch"]
    return importlib.import_module(f"experiments.models.{name}")


def _norms(module: Any, model: Mapping[str, Any]) -> dict[str, Any]:
    names = module.NORMS if module.NORMS is not None else [k for k in model if k.startswith("norm")]
    return {name: NormConfig.parse(model[name], f"config.model.{name}").build() for name in names}


def _complete(module: Any, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's keys with the defaults of those that it leaves out."""
    if module.DEFAULTS is None:  # the user's own module has them
        return dict(model)
    return {**module.DEFAULTS, **{k: v for k, v in model.items() if k != "arch"}}


def check(model: Mapping[str, Any], kind: str) -> None:
    """Check the keys of a model for data of a kind: "image", "sequence" or "text"."""
    module = _module(model)
    if kind not in module.KINDS:
        raise UsageError(
            f"config.model.arch={model['arch']!r} takes no {kind} data; it is for "
            f"{' and '.join(module.KINDS)} data."
        )
    if module.DEFAULTS is not None:
        own = {k: v for k, v in model.items() if k != "arch"}
        usage.check_like("config.model", own, module.DEFAULTS)
    complete = _complete(module, model)
    for key, usual in (module.DEFAULTS or {}).items():
        if type(usual) is int and complete[key] < 1:
            raise UsageError(f"config.model.{key}={complete[key]} must be at least 1.")
        if key == "dropout" and not 0 <= complete[key] < 1:
            raise UsageError(f"config.model.dropout={complete[key]!r} must be in [0, 1).")
    module.check(complete)
    _norms(module, complete)


def build(model: Mapping[str, Any], data: Data) -> Model:
    """Build the network of checked keys for data."""
    module = _module(model)
    complete = _complete(module, model)
    built: Model = module.build(complete, _norms(module, complete), data)
    return built
