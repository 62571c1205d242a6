"""Trains the user's own Flax module, `config.model.module="package.module:Model"`.

The module is found as Python finds it: installed, in the working directory or on PYTHONPATH. It is
a Linen or an NNX class that takes a norm factory, and x at the call:

    class Net(nn.Module):                        class Net(nnx.Module):
        outputs: int                                 def __init__(self, outputs, norm, *, rngs):
        norm: Any                                        self.dense = nnx.Linear(3, 8, rngs=rngs)
                                                         self.norm = norm(8)
        @nn.compact                                      self.head = nnx.Linear(8, outputs, ...)
        def __call__(self, x):
            x = self.norm()(nn.Dense(8)(x))          def __call__(self, x):
            return nn.Dense(self.outputs)(x)             return self.head(self.norm(self.dense(x)))

`norm()`, in NNX `norm(features)`, makes a module that is called with x alone: mode, padding and
device axis are those of the run. Each `norm…` of `config.model` is a factory of its own name; the
other keys of `config.model` are arguments. If the class has arguments of these names, it gets
`outputs` (classes, or tokens), `inputs` (shape of an example) and `vocabulary`, and at the call
`train` or `deterministic`, and `lengths` or `mask` of sequences.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
from flax import nnx

import normjax
from experiments.models.base import Call, Data, Model
from experiments.models.own_linen import LinenModel
from experiments.models.own_nnx import NnxModel
from experiments.usage import UsageError, imported, nearest, told

KINDS = ("image", "sequence", "text")
NORMS = None  # every key that starts with norm
DEFAULTS = None  # the module's own
OFFERED = ("outputs", "inputs", "vocabulary")


def load(name: Any) -> type:
    """Import the class that `config.model.module` names."""
    found: type = imported("config.model.module", name, "class", inspect.isclass)
    if not issubclass(found, flax.linen.Module | nnx.Module):
        raise UsageError(
            f"config.model.module={name!r} is no Flax module; make it one of flax.linen or of "
            "flax.nnx."
        )
    return found


def fingerprint(model: Mapping[str, Any]) -> str:
    """Hash the file of the user's module; "" without one."""
    if "module" not in model:
        return ""
    with open(inspect.getfile(load(model["module"])), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:12]


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class but for what Flax adds."""
    found = dict(_signature(kind))
    return {k: v for k, v in found.items() if k not in ("self", "parent", "name", "rngs")}


def _signature(kind: type) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of `__init__`: the metaclass of NNX hides them."""
    return inspect.signature(kind.__init__).parameters  # type: ignore[misc]


def check(model: Mapping[str, Any]) -> None:
    """Check that the class takes a norm factory and the keys of `config.model`."""
    kind = load(model["module"])
    parameters, where = _parameters(kind), f"config.model.module={model['module']!r}"
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    if not any(name.startswith("norm") for name in parameters):
        raise UsageError(
            f"{where} takes no norm; give it an argument 'norm' and write norm() where it "
            "normalizes (norm(features) in NNX)."
        )
    for key in model:
        if key == "module" or key in parameters:
            continue
        raise UsageError(
            f"config.model.{key} is no argument of {model['module']}; its arguments: "
            f"{', '.join(parameters)}.{nearest(key, parameters)}"
        )
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in (*model, *OFFERED):
            wanted = ".name=batch_norm" if name.startswith("norm") else "=VALUE"
            raise UsageError(f"{where} needs {name!r}; write config.model.{name}{wanted}.")
    if issubclass(kind, nnx.Module) and "rngs" not in _signature(kind):
        raise UsageError(f"{where} takes no 'rngs', the random keys of its layers; write *, rngs.")


@dataclasses.dataclass(frozen=True)
class OwnModel(Model):
    """The user's class with its arguments; the class is imported where it is needed."""

    module: str
    arguments: tuple[tuple[str, Any], ...]
    norms: tuple[tuple[str, normjax.Norm | None], ...]
    data: Data

    def _adapter(self) -> LinenModel | NnxModel:
        kind = load(self.module)
        arguments = {k: _thawed(v) for k, v in self.arguments}
        adapter = NnxModel if issubclass(kind, nnx.Module) else LinenModel
        return adapter(kind, arguments, dict(self.norms), self.data)

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return `(params, state)`."""
        return self._adapter().init(key)

    def apply(self, params: Any, state: Any, x: jax.Array, call: Call) -> tuple[jax.Array, Any]:
        """Return the module's output and the next state."""
        return self._adapter().apply(params, state, x, call)


def _frozen(value: Any) -> Any:
    """Make a hashable value of lists and groups."""
    if isinstance(value, Mapping):
        return ("group", tuple((k, _frozen(v)) for k, v in sorted(value.items())))
    if isinstance(value, list | tuple):
        return ("list", tuple(map(_frozen, value)))
    return value


def _thawed(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    kind, items = value
    if kind == "group":
        return {k: _thawed(v) for k, v in items}
    return tuple(map(_thawed, items))


def build(model: Mapping[str, Any], norms: Mapping[str, Any], data: Data) -> OwnModel:
    """Build the user's model, and refuse one that does not fit the data."""
    parameters = _parameters(load(model["module"]))
    given = {k: _frozen(v) for k, v in model.items() if k != "module" and k not in norms}
    offered = {"outputs": data.outputs, "inputs": data.shape, "vocabulary": data.vocabulary}
    given |= {k: _frozen(v) for k, v in offered.items() if k in parameters and k not in given}
    built = OwnModel(model["module"], tuple(sorted(given.items())), tuple(norms.items()), data)
    _try(built)
    return built


def _alike(a: Any, b: Any) -> bool:
    structures: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
    return bool(structures[0] == structures[1])


def _try(model: OwnModel) -> None:
    """Run the module on shapes alone, and say what does not fit."""
    where, x = f"config.model.module={model.module!r}", model.data.example
    key = jax.random.key(0)
    mask = None if model.data.kind == "image" else jax.ShapeDtypeStruct(x.shape[:2], jnp.bool_)
    try:
        params, state = jax.eval_shape(model.init, key)

        def run(params: Any, state: Any, x: Any, key: Any, mask: Any) -> Any:
            return model.apply(params, state, x, Call("batch", True, mask, key))

        y, new = jax.eval_shape(run, params, state, x, key, mask)
    except UsageError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise UsageError(
            f"{where} failed on an input of shape {x.shape}: {told(error)}."
        ) from error
    time = x.shape[1:2] if model.data.kind == "text" else ()
    wanted = (x.shape[0], *time, model.data.outputs)
    if getattr(y, "shape", None) != wanted:
        got = getattr(y, "shape", type(y).__name__)
        raise UsageError(
            f"{where} makes {got} of {x.shape}, and must make logits {wanted}; give it an argument "
            "'outputs', the number of classes."
        )
    if not _alike(new, state):
        raise UsageError(f"{where} makes other variables in a call than at the start.")
    if not params:
        raise UsageError(f"{where} has no parameters to train.")
