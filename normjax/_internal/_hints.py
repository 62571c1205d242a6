"""Adds hints to errors: what to write instead of an argument of Flax or PyTorch.

Python's own error names the argument that a function does not take; `with_hints` adds the name
that this library uses.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from normjax._internal import _checks

P = ParamSpec("P")
R = TypeVar("R")


def with_hints(*takers: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that adds a hint to the error for an argument a function does not take.

    Arguments are examined only after a call has failed, so a correct call costs nothing.

    Args:
        takers: functions that the decorated function passes its `**options` to.

    Returns:
        A decorator that keeps signature, annotations and docstring.

    Example:
        >>> @with_hints()
        ... def norm(*, eps=1e-5, decay=0.99): ...
        >>> norm(epsilon=1e-3)
        Traceback (most recent call last):
        ...
        TypeError: norm() has no argument 'epsilon': write eps=0.001
        >>> norm(esp=1e-3)
        Traceback (most recent call last):
        ...
        TypeError: norm() has no argument 'esp' (did you mean 'eps'?): it takes eps, decay
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = list(dict.fromkeys(name for f in (function, *takers) for name in _arguments(f)))

        @functools.wraps(function)
        def call(*args: P.args, **keywords: P.kwargs) -> R:
            try:
                return function(*args, **keywords)
            except TypeError as error:
                # First unknown keywords, then Flax variables, then a positional argument.
                who = _name(function, args)
                lines = [
                    _hint(who, word, value, known)
                    for word, value in keywords.items()
                    if word not in known
                ] or [_flax_variables_hint(who) for value in args if _are_variables(value)]
                lines = lines or _positional_hint(who, function, args, known)
                if not lines:
                    raise
                raise TypeError("; ".join(lines)) from error

        return call

    return decorate


def _positional_hint(
    who: str, function: Callable[..., Any], args: tuple[Any, ...], known: list[str]
) -> list[str]:
    """Return the hint for `layer_norm(64)`: a norm takes no size, and arguments by name only."""
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    named = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
    if not args or not kinds <= set(named):
        return []
    value = args[0]
    is_count = isinstance(value, int) and not isinstance(value, bool)
    hint = f"it takes {', '.join(known)}"
    if is_count and "groups" in known:
        hint = f"write groups={value}"
    elif is_count or isinstance(value, tuple | list):
        hint = "leave a size out: init reads it from the shape of x, init((1, features))"
    return [f"{who} takes arguments by name and was given {_shown(value)}: {hint}"]


def refuse_flax_variables(params: Any, who: str) -> None:
    """Raise if `params` are the variables of a Flax module."""
    if _are_variables(params):
        raise TypeError(_flax_variables_hint(who))


def _are_variables(value: Any) -> bool:
    """Whether `value` looks like the variables of a Flax module, `{"params": {...}, ...}`."""
    return isinstance(value, Mapping) and isinstance(value.get("params"), Mapping)


def _flax_variables_hint(who: str) -> str:
    return (
        f'{who} was given the variables of a Flax module, {{"params": …}}, and takes (params, '
        "state, x): write module.apply(variables, x, …), or convert them: a batch norm's are "
        'Affine(**variables["params"]) and Running(**variables["batch_stats"]), a cell\'s weights '
        "are read by recurrent.from_flax"
    )


def _arguments(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's arguments, without `self`, `*args` and `**kwargs`."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters
    return [name for name, p in parameters.items() if name != "self" and p.kind not in variadic]


def _name(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """Return `batch_norm()` for a function, `batch_norm(…).apply()` for a method."""
    if args and "self" in inspect.signature(function).parameters:
        return f"{args[0].factory}(…).{function.__name__}()"
    return f"{function.__name__}()"


def _hint(who: str, word: str, value: Any, known: Iterable[str]) -> str:
    """Return the hint for one argument `word=value` of a function with the arguments `known`."""
    shown = _shown(value)
    for needed, text in HINTS.get(word, ()):
        if all(name in known for name in needed.split()):
            hint = text(value) if callable(text) else text.format(value=shown, word=word)
            return f"{who} has no argument {word!r}: {hint}"
    near = _checks.nearest(word, known)
    return f"{who} has no argument {word!r}{near}: it takes {', '.join(known)}"


def _shown(value: Any) -> str:
    """Return the `repr` of a simple value, and an ellipsis for anything long, such as an array."""
    return repr(value) if value is None or isinstance(value, bool | int | float | str) else "…"


def _momentum(value: Any) -> str:
    """Return the hint for `momentum`, which means different things in Flax and PyTorch."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "write decay=…, Flax's momentum; PyTorch's momentum is 1 - decay"
    return (
        f"write decay={value!r} for Flax's momentum={value!r}, which weighs the old value, and "
        f"decay={1 - value:g} for PyTorch's, which weighs the new"
    )


def _mode(running: bool) -> tuple[tuple[str, Any], ...]:
    """Return the hints for a flag that selects running statistics where it equals `running`."""

    def mode(value: Any) -> str:
        if not isinstance(value, bool):
            return 'stats="batch" or stats="running"'
        return 'stats="running"' if value is running else 'stats="batch"'

    return (("", lambda value: f"write apply(…, {mode(value)}), at each call"),)


# Hints that several foreign arguments share.
_AFFINE = (
    ("use_scale use_bias", "write use_scale={value}, use_bias={value}"),
    ("use_scale", "write use_scale={value}"),
    ("use_bias", "write use_bias={value}"),
)
_DTYPE = (
    ("norm_x", "write init(key, features, dtype)"),
    ("scale_init", "write init(shape, dtype)"),
    ("bias_init", "write init(shape, dtype)"),
)
_NORM_ARGUMENT = ("norm_x", "write it in a norm, for example norm_x=layer_norm({word}={value})")
_SHAPE = (
    ("scale_init", "leave it out: init reads it from the shape of x, init((1, features))"),
    ("bias_init", "leave it out: init reads it from the shape of x, init((1, features))"),
)

# For each foreign argument: pairs of the arguments that the function must have for a hint to
# apply, and the hint, with the {value} and {word} of the call. The first that applies is used.
HINTS: dict[str, tuple[tuple[str, str | Callable[[Any], str]], ...]] = {
    "affine": _AFFINE,
    "axis": (("axes", "write axes=…, those averaged over (Flax's BatchNorm names the others)"),),
    "axis_name": (
        (
            "feature_axis_name",
            "write feature_axis_name={value} where the features are split, and where the batch "
            "is apply(…, axis_name={value}), at each call",
        ),
        ("decay", "write apply(…, axis_name={value}), at each call"),
        ("norm_x", "write apply(…, axis_name={value}), at each call"),
    ),
    "batch_first": (("time_major", lambda value: f"write time_major={not value}"),),
    "bias": (("use_bias", "write use_bias={value}"),),
    "bidirectional": (("norm_x", "write recurrent.bidirectional(layer)"),),
    "deterministic": _mode(True),
    "dropout": (
        ("dropout_h", "write dropout_h={value}, or between layers stack(…, dropout={value})"),
    ),
    "dtype": _DTYPE,
    "elementwise_affine": _AFFINE,
    "epsilon": (("eps", "write eps={value}"),),
    "features": (("hidden", "write hidden={value}"), *_SHAPE),
    "hidden_size": (("hidden", "write hidden={value}"),),
    "input_size": (("hidden", "write init(key, features={value})"),),
    "is_training": _mode(False),
    "momentum": (("decay", _momentum),),
    "n_power_iterations": (("iterations", "write iterations={value}"),),
    "n_steps": (("iterations", "write iterations={value}"),),
    "normalized_shape": _SHAPE,
    "num_channels": _SHAPE,
    "num_features": _SHAPE,
    "num_groups": (("groups", "write groups={value}"),),
    "num_layers": (("norm_x", "write recurrent.stack([layer] * {value})"),),
    "param_dtype": _DTYPE,
    "reduction_axes": (("axes", "write axes=…"),),
    "rngs": (("key", "write key=…, one PRNG key"),),
    "track_running_stats": (
        (
            "decay",
            'leave it out: apply(…, stats="batch") normalizes with the batch alone, and ignoring '
            "the state that apply returns freezes the running statistics",
        ),
    ),
    "train": _mode(False),
    "training": _mode(False),
    "use_bias": (_NORM_ARGUMENT,),
    "use_running_average": _mode(True),
    "use_scale": (_NORM_ARGUMENT,),
}
