"""Builds norms and recurrent layers from the names and arguments in a config."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

import normjax
from experiments.data.facts import timesteps
from experiments.usage import UsageError, check_number, nearest, one_of, short
from normjax import recurrent

CELLS: dict[str, Callable[..., recurrent.Recurrent]] = {
    "lstm": recurrent.lstm,
    "gru": recurrent.gru,
    "rnn": recurrent.rnn,
}
LIFTS = ("per_step", "shared", "sequence_wise")


# ---------------------------------------------------------------------------------------- norms


@functools.cache
def factories(module: Any, result: str) -> dict[str, Callable[..., Any]]:
    """Return the public functions of a module that are annotated to return one type."""
    functions: dict[str, Callable[..., Any]] = {}
    for name in getattr(module, "__all__", dir(module)):
        value = getattr(module, name, None)
        if not inspect.isfunction(value) or name.startswith("_"):
            continue
        annotation = inspect.signature(value).return_annotation
        if getattr(annotation, "__name__", str(annotation)).split(".")[-1] == result:
            functions[name] = value
    return functions


def _check_arguments(
    where: str, function: Callable[..., Any], names: Iterable[str], skip: Iterable[str] = ()
) -> None:
    """Compare the names of arguments with a factory's signature, before it is called."""
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in set(skip)]
    for name in names:
        if name not in known:
            raise UsageError(
                f"{where}: {function.__name__} has no argument {name!r}; "
                f"known: {', '.join(known)}.{nearest(name, known)}"
            )
    for name in known:
        parameter = parameters[name]
        if parameter.default is parameter.empty and name not in names:
            raise UsageError(
                f"{where}: {function.__name__} needs {name!r}; write {where}.{name}=VALUE."
            )


SIMPLE: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "None": type(None),
}


def _typed(where: str, function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Require the types that a factory's annotations name, and make a float of 1 where it is one.

    Python would take forget_bias="identity", and the first step fail.
    """
    typed = dict(arguments)
    for name, parameter in inspect.signature(function).parameters.items():
        kinds = str(parameter.annotation).split(" | ")
        value = typed.get(name)
        if name not in typed or not set(kinds) <= SIMPLE.keys():
            continue
        truth = isinstance(value, bool) and "bool" not in kinds
        if truth or not any(isinstance(value, SIMPLE[kind]) for kind in kinds):
            raise UsageError(f"{where}.{name}={short(value)} must be {' or '.join(kinds)}.")
        if "float" in kinds and isinstance(value, int):
            typed[name] = float(value)
    return typed


def _call(where: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a factory and turn its errors into `UsageError`s."""
    kwargs = _typed(where, function, kwargs)
    try:
        return function(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {' '.join(str(error).split())[:500]}") from error


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """A norm by name with its arguments, and its lift over time, if any.

    ``{"name": "batch_norm", "lift": "per_step", "max_steps": 64, "scale_init": 0.1}`` is
    ``per_step(batch_norm(scale_init=0.1), max_steps=64)``. ``{"name": "none"}`` is no norm at all,
    whatever its other arguments, so that one override switches a norm off.
    """

    name: str
    lift: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()
    where: str = "norm"

    @classmethod
    def parse(cls, norm: Mapping[str, Any], where: str = "norm") -> NormConfig:
        """Read a mapping of a config."""
        if not isinstance(norm, Mapping):
            raise UsageError(f"{where}={short(norm)} is no norm; write {where}.name=batch_norm.")
        if "name" not in norm:
            raise UsageError(f"{where} names no norm; write for instance {where}.name=batch_norm.")
        rest = sorted((k, v) for k, v in norm.items() if k not in ("name", "lift"))
        return cls(str(norm["name"]), str(norm.get("lift") or ""), tuple(rest), where)

    def build(self) -> Any:
        """Build the norm; every argument is checked against the factory that takes it."""
        if self.name == "none":
            return None
        known = factories(normjax, "Norm")
        one_of(f"{self.where}.name", self.name, [*sorted(known), "none"])
        arguments = dict(self.arguments)
        if not self.lift:
            _check_arguments(self.where, known[self.name], arguments)
            return _call(self.where, known[self.name], **arguments)
        one_of(f"{self.where}.lift", self.lift, LIFTS)
        lift, factory = getattr(recurrent, self.lift), known[self.name]
        # The first parameter of a lift is the norm; an argument that the lift does not know is
        # the norm's, and a misspelling is compared with the names of both.
        first, *of_lift = inspect.signature(lift).parameters
        of_norm = list(inspect.signature(factory).parameters)
        for name in arguments:
            if name not in of_lift + of_norm:
                known_names = of_norm + of_lift
                raise UsageError(
                    f"{self.where}: neither {self.name} nor {self.lift} has an argument {name!r}; "
                    f"known: {', '.join(known_names)}.{nearest(name, known_names)}"
                )
        to_lift = {k: v for k, v in arguments.items() if k in of_lift}
        to_norm = {k: v for k, v in arguments.items() if k not in of_lift}
        _check_arguments(self.where, factory, to_norm)
        _check_arguments(self.where, lift, to_lift, skip=[first])
        return _call(self.where, lift, _call(self.where, factory, **to_norm), **to_lift)


def running_norms(value: Any) -> Iterator[Any]:
    """Yield the norms with running averages in a dataclass, at any depth."""
    if isinstance(value, normjax.Norm):
        if value.stateful and hasattr(value, "decay"):
            yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from running_norms(getattr(value, field.name))
    elif isinstance(value, list | tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from running_norms(item)


def early(model: Mapping[str, Any], updates: int) -> str:
    """Say that running averages cannot be right after so few updates; "" if they can.

    After 1 / (1 - decay) updates, 37 % of them is still the mean 0 and variance 1 of the start.
    """
    known = factories(normjax, "Norm")
    decays = {
        place: norm.decay
        for place, given in sorted(model.items())
        if isinstance(given, Mapping) and given.get("name") in known
        for norm in running_norms(NormConfig.parse(given).build())
        if not getattr(norm, "debias", False) and updates * (1 - norm.decay) < 1
    }
    if not decays:
        return ""
    decay = max(decays.values())
    return (
        f"running statistics of config.model.{', '.join(decays)} had {updates} updates with decay "
        f"{decay:g}, and {100 * decay**updates:.0f} % of them is still the mean 0 and variance 1 "
        "of the start: take population statistics (config.population says how), or give the norm "
        "a lower decay or debias=True."
    )


BETWEEN = "norm_between"
STACK_KEYS = ("depth", "dropout", BETWEEN)


def places(cell: str) -> tuple[str, ...]:
    """Names of the norms that a cell takes, from the cell's own table."""
    return tuple(CELLS[cell](1).places)


def build_layer(model: Mapping[str, Any], skip: Iterable[str] = ("head_init",)) -> Any:
    """Build the recurrent layer of ``config.model``, or a stack of `depth` such layers.

    `skip` are keys of the group that belong to the task and not to the layer.
    """
    one_of("config.model.cell", model["cell"], tuple(CELLS))
    cell = CELLS[model["cell"]]
    skip = {"cell", *STACK_KEYS, *skip}
    arguments = {k: v for k, v in model.items() if k not in skip}
    _check_arguments("config.model", cell, arguments)
    for place in places(model["cell"]):
        if arguments.get(place) is not None:
            arguments[place] = _norm_at(model, place)
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        # The layer itself does not ask which machine runs it.
        arguments.setdefault("input_schedule", "before_loop")
    layer = _call("config.model", cell, **arguments)
    depth, dropout = model.get("depth", 1), model.get("dropout", 0.0)
    check_number("model.depth", depth, 1)
    check_number("model.dropout", dropout, 0, 1)
    between = _norm_at(model, BETWEEN) if model.get(BETWEEN) is not None else None
    if between is not None and depth == 1:
        raise UsageError(
            f"config.model.{BETWEEN} is a norm between two layers; write config.model.depth=2."
        )
    if depth == 1 and not dropout:
        return layer
    stacked = {"norm_between": between, "dropout": dropout}
    return _call("config.model", recurrent.stack, [layer] * depth, **stacked)


def _norm_at(model: Mapping[str, Any], place: str) -> Any:
    """Build the norm that a model has in one place."""
    return NormConfig.parse(model[place], f"config.model.{place}").build()


def check_steps(config: Mapping[str, Any]) -> None:
    """Refuse a per-step norm with fewer steps than the data, unless it says what follows them."""
    length, model = timesteps(config), config["model"]
    for key in ("cell", "head_init"):
        if key not in model:
            raise UsageError(f"config.model.{key} is missing; it is one of the default config's.")
    one_of("config.model.cell", model["cell"], tuple(CELLS))
    for place in (*places(model["cell"]), BETWEEN):
        norm = model.get(place)
        if norm is not None:
            NormConfig.parse(norm, f"config.model.{place}")
        if norm and norm.get("lift") == "per_step" and norm.get("name") != "none":
            steps = norm.get("max_steps")
            if isinstance(steps, int) and steps < length and "beyond" not in norm:
                raise UsageError(
                    f"config.model.{place}.max_steps={steps}, but a sequence of "
                    f"{config['dataset']} has {length} steps; write max_steps={length}, or say "
                    "with 'beyond' how later steps are normalized."
                )
