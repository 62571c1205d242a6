"""Reads --config and its overrides, and explains misspelt keys and unreadable values."""

from __future__ import annotations

import contextlib
import inspect
import operator
import pathlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags

from experiments.config import switch
from experiments.config.defaults import flatten
from experiments.usage import UsageError, literal, nearest, told, usage


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse flags with absl, and turn its errors into one paragraph and exit status 2."""
    with usage():
        argument = _config_argument(argv)
        config = None if argument is None else load(argument)
        words, new = _new_keys(argv, config) if config is not None else (list(argv), {})
        try:
            with _as_sys_argv(words):
                rest = flags.FLAGS(words)
            if config is not None:
                changed = flags.FLAGS["config"].value
                switch.add(changed, new)
                _switch_norms(argv, config, changed)
            return rest
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # The locked config that refused the key is not at hand here: it was loaded above.
            message = _misspelt(argv, config) if config is not None else ""
            raise UsageError(message or f"a --config key was refused: {error}") from error
        except flags.Error as error:
            # A config file that refuses its variant arrives here with its traceback in the text.
            line = str(error).strip().splitlines()[-1]
            raise UsageError(_unreadable(line) or line.removeprefix("ValueError: ")) from error


def _new_keys(
    argv: Sequence[str], config: ml_collections.ConfigDict
) -> tuple[list[str], dict[str, Any]]:
    """Divide a command into the words that absl reads and the keys that a config does not name."""
    words, new = [], {}
    for word in argv:
        name, _, value = word.partition("=")
        key = name.lstrip("-").removeprefix("config.")
        if name.lstrip("-") == key or not word.startswith("-") or not switch.can_add(config, key):
            words.append(word)
        elif not value:
            raise UsageError(f"write {name}=VALUE.")
        else:
            new[key] = literal(value)
    return words, new


@contextlib.contextmanager
def _as_sys_argv(words: list[str]) -> Iterator[None]:
    """Make `sys.argv` some words, where config_flags looks for the keys of its config."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


def _switch_norms(
    argv: Sequence[str], before: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> None:
    """Make a norm that was switched by --config.model.PLACE.name one that can be built."""
    words = [word.lstrip("-").partition("=")[0] for word in argv if word.startswith("-")]
    written = {word.removeprefix("config.") for word in words if word.startswith("config.")}
    for note in switch.switch_norms(config, switch.names(before), written):
        print(f"note: {note}", flush=True)


def load(argument: str) -> ml_collections.ConfigDict:
    """Make the config of FILE:VARIANT, or say why there is none."""
    path, _, variant = argument.partition(":")
    if not path:
        raise UsageError("--config is empty; write --config=configs/recurrent_bn/digits.py:lstm.")
    if not pathlib.Path(path).is_file():
        raise UsageError(f"there is no config file {path!r}; paths start at {pathlib.Path.cwd()}.")
    try:
        names = runpy.run_path(path)
    except Exception as error:  # whatever the file raises
        raise UsageError(f"{path} is no config file: {told(error, path)}.") from error
    get_config = names.get("get_config")
    if not callable(get_config):
        raise UsageError(
            f"{path} is no config: it defines no get_config(variant) that returns one, as "
            "configs/recurrent_bn/digits.py does."
        )
    arms = getattr(names.get("GROUP"), "arms", ())
    if variant and arms and variant not in arms:
        raise UsageError(
            f"{path} has no variant {variant!r}; variants: {', '.join(arms)}."
            f"{nearest(variant, arms)}"
        )
    parameters = inspect.signature(get_config).parameters.values()
    if not variant and any(p.default is p.empty for p in parameters):
        known = f", one of {', '.join(arms)}" if arms else ""
        raise UsageError(f"{path} wants a variant{known}; write --config={path}:VARIANT.")
    try:
        config = get_config(variant) if variant else get_config()
    except ValueError as error:  # written for its reader
        raise UsageError(str(error)) from error
    except KeyError as error:
        raise UsageError(f"{path} has no variant {variant!r} ({told(error, path)}).") from error
    except Exception as error:
        raise UsageError(f"{path} makes no config: {told(error, path)}.") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError(
            f"{path} makes no config: get_config returns {type(config).__name__}; start from "
            "experiments.config.defaults.default() and return it."
        )
    return config


def _unreadable(line: str) -> str:
    """Translate absl's complaint about a value into what the value must be."""
    kinds = {
        "invalid literal for int": ("an integer", "100"),
        "could not convert string to float": ("a number", "0.01"),
        "('Non-boolean argument": ("True or False", "True"),
    }
    flag, _, reason = line.removeprefix("flag ").partition(": ")
    for start, (kind, example) in kinds.items():
        if reason.startswith(start):
            key, _, value = flag.partition("=")
            return f"{key}={value!r} is not {kind}; write for instance {key}={example}."
    return ""


def no_arguments(argv: Sequence[str]) -> None:
    """Refuse words that are not options."""
    if len(argv) > 1:
        raise UsageError(f"did not understand {argv[1]!r}; options are written --key=value.")


def _config_argument(argv: Sequence[str]) -> str | None:
    """Return FILE:VARIANT of the last --config=FILE:VARIANT or --config FILE:VARIANT, if any."""
    argument = None
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if word.startswith("-") and name.lstrip("-") == "config":
            argument = value if equals else following
    return argument


def _misspelt(argv: Sequence[str], config: ml_collections.ConfigDict) -> str:
    """Say which --config.KEY a config does not have, and which key may be meant."""
    for word in argv:
        if not word.lstrip("-").startswith("config."):
            continue
        at, node = "config", config
        if not all(word.lstrip("-").partition("=")[0].split(".")):
            return f"{word!r} names no key; write for instance --config.steps=100."
        for key in word.lstrip("-").partition("=")[0].split(".")[1:]:
            if not isinstance(node, ml_collections.ConfigDict) or key not in node:
                here = list(node.keys()) if isinstance(node, ml_collections.ConfigDict) else []
                # A close name of this group, the same in another of the section, or one less close.
                hint = nearest(key, here, 0.8) or _elsewhere(key, at, config)
                hint = hint or nearest(key, here, 0.6)
                names = ", ".join(sorted(here)) or f"none, {at} is a plain value"
                return f"--{at}.{key} is no key of this config.{hint} Keys of {at}: {names}."
            at, node = f"{at}.{key}", node[key]
    return ""


def _elsewhere(key: str, at: str, config: ml_collections.ConfigDict) -> str:
    """Suggest the same key in another group of the section, the one whose path is most like `at`.

    The config itself is every section: config.learning_rate is meant for config.optim.
    """
    here = at.split(".")
    paths = [f"config.{path}".split(".") for path in flatten(config.to_dict())]
    same = [path for path in paths if path[-1] == key and path[:2][: len(here)] == here[:2]]
    if not same:
        return ""
    closest = max(same, key=lambda path: sum(map(operator.eq, path, here)))
    return f" Did you mean {'.'.join(closest)!r}?"
