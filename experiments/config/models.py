"""Norms and recurrent layers from a config's names and arguments."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import normjax
from experiments.config.defaults import timesteps
from experiments.usage import UsageError, check_number, nearest, one_of
from normjax import recurrent

CELLS = tuple(name for name in ("lstm", "gru", "rnn") if hasattr(recurrent, name))
PLACES = ("norm_x", "norm_h", "norm_sum", "norm_c")
LIFTS = ("per_step", "shared", "sequence_wise")


# ---------------------------------------------------------------------------------------- norms


def factories(module: Any, result: str) -> dict[str, Callable[..., Any]]:
    """The public functions of a module that are annotated to return one type."""
    found: dict[str, Callable[..., Any]] = {}
    for name in getattr(module, "__all__", dir(module)):
        value = getattr(module, name, None)
        if not inspect.isfunction(value) or name.startswith("_"):
            continue
        annotation = inspect.signature(value).return_annotation
        if getattr(annotation, "__name__", str(annotation)).split(".")[-1] == result:
            found[name] = value
    return found


def _check_arguments(
    where: str, function: Callable[..., Any], given: Mapping[str, Any], skip: Iterable[str] = ()
) -> None:
    """Compare arguments with a factory's signature, before it is called."""
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in set(skip)]
    for name in given:
        if name not in known:
            raise UsageError(
                f"{where}: {function.__name__} has no argument {name!r}; "
                f"known: {', '.join(known)}.{nearest(name, known)}"
            )
    for name in known:
        parameter = parameters[name]
        if parameter.default is parameter.empty and name not in given:
            raise UsageError(f"{where}: {function.__name__} needs {name!r}; write {name}=VALUE.")


def _call(where: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a factory; what it refuses is the user's to mend, so it becomes a `UsageError`."""
    try:
        return function(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """A norm by name with its arguments, and the lift over time, if any, that it goes through.

    ``{"name": "batch_norm", "lift": "per_step", "max_steps": 64, "scale_init": 0.1}`` is
    ``per_step(batch_norm(scale_init=0.1), max_steps=64)``. ``{"name": "none"}`` is no norm at all,
    whatever arguments stand beside it, so that one override switches a norm off.
    """

    name: str
    lift: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()
    where: str = "norm"

    @classmethod
    def parse(cls, given: Mapping[str, Any], where: str = "norm") -> NormConfig:
        """Read a config's mapping."""
        if "name" not in given:
            raise UsageError(f"{where} names no norm; write for instance {where}.name=batch_norm.")
        rest = sorted((k, v) for k, v in given.items() if k not in ("name", "lift"))
        return cls(str(given["name"]), str(given.get("lift") or ""), tuple(rest), where)

    def build(self) -> Any:
        """Make the norm; every argument is checked against the factory that takes it."""
        if self.name == "none":
            return None
        known = factories(normjax, "Norm")
        one_of(f"{self.where}.name", self.name, [*sorted(known), "none"])
        given = dict(self.arguments)
        if not self.lift:
            _check_arguments(self.where, known[self.name], given)
            return _call(self.where, known[self.name], **given)
        one_of(f"{self.where}.lift", self.lift, LIFTS)
        lift, factory = getattr(recurrent, self.lift), known[self.name]
        # The first parameter of a lift is the norm; an argument that the lift does not know is
        # the norm's, and a misspelling is compared with the names of both.
        first, *of_lift = inspect.signature(lift).parameters
        of_norm = list(inspect.signature(factory).parameters)
        for name in given:
            if name not in of_lift + of_norm:
                known_names = of_norm + of_lift
                raise UsageError(
                    f"{self.where}: neither {self.name} nor {self.lift} has an argument {name!r}; "
                    f"known: {', '.join(known_names)}.{nearest(name, known_names)}"
                )
        to_lift = {k: v for k, v in given.items() if k in of_lift}
        _check_arguments(self.where, lift, to_lift, skip=[first])
        norm = _call(self.where, factory, **{k: v for k, v in given.items() if k not in of_lift})
        return _call(self.where, lift, norm, **to_lift)


def build_layer(model: Mapping[str, Any], skip: Iterable[str] = ("head_init",)) -> Any:
    """The recurrent layer of ``config.model``: its cell, its norms by place, `depth` of them.

    `skip` are keys of the group that are not the layer's.
    """
    one_of("config.model.cell", model["cell"], CELLS)
    cell = getattr(recurrent, model["cell"])
    skip = {"cell", "depth", "dropout", *skip}
    given = {k: v for k, v in model.items() if k not in skip}
    _check_arguments("config.model", cell, given)
    for place in PLACES:
        if given.get(place) is not None:
            given[place] = NormConfig.parse(given[place], f"config.model.{place}").build()
    layer = _call("config.model", cell, **given)
    depth, dropout = model.get("depth", 1), model.get("dropout", 0.0)
    check_number("model.depth", depth, 1)
    check_number("model.dropout", dropout, 0, 1)
    if depth == 1 and not dropout:
        return layer
    return _call("config.model", recurrent.stack, [layer] * depth, dropout=dropout)


def check_steps(config: Mapping[str, Any]) -> None:
    """Refuse a norm per step that keeps fewer steps than the data have, unless it says so."""
    length = timesteps(config)
    for place in PLACES:
        norm = config["model"].get(place)
        if norm and norm.get("lift") == "per_step" and norm.get("name") != "none":
            steps = norm.get("max_steps")
            if isinstance(steps, int) and steps < length and "beyond" not in norm:
                raise UsageError(
                    f"config.model.{place}.max_steps={steps}, but a sequence of "
                    f"{config['dataset']} has {length} steps; write max_steps={length}, or say "
                    "with 'beyond' what becomes of the later ones."
                )
