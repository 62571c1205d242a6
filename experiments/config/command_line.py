"""Reads --config and its overrides, with messages for misspelt keys."""

from __future__ import annotations

import pathlib
import runpy
from collections.abc import Sequence

import ml_collections
from absl import flags

from experiments.config.defaults import flatten
from experiments.usage import UsageError, nearest, usage


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Absl's parser, whose failures (a misspelt key above all) end in one paragraph, status 2."""
    with usage():
        path, _, variant = _given_config(argv).partition(":")
        if path and not pathlib.Path(path).is_file():
            raise UsageError(
                f"there is no config file {path!r}; paths start at {pathlib.Path.cwd()}."
            )
        try:
            return flags.FLAGS(list(argv))
        except (AttributeError, KeyError) as error:
            # A locked config refuses a key, and by then holds no value: load it again to look.
            make = runpy.run_path(path)["get_config"]
            told = _misspelt(argv, make(variant) if variant else make())
            raise UsageError(told or f"a --config key was refused: {error}") from error
        except flags.Error as error:
            # A config file that refuses its variant arrives here with its traceback in the text.
            line = str(error).strip().splitlines()[-1]
            raise UsageError(_unread(line) or line.removeprefix("ValueError: ")) from error


def _unread(line: str) -> str:
    """Say what a value must be that absl, in its own words, could not read."""
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
    """Refuse words that are no options."""
    if len(argv) > 1:
        raise UsageError(f"did not understand {argv[1]!r}; options are written --key=value.")


def _given_config(argv: Sequence[str]) -> str:
    """The last --config=FILE:VARIANT or --config FILE:VARIANT."""
    given = ""
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if word.startswith("-") and name.lstrip("-") == "config":
            given = value if equals else after
    return given


def _misspelt(argv: Sequence[str], config: ml_collections.ConfigDict) -> str:
    """Say which --config.KEY a config does not have, and what its neighbours are."""
    for word in argv:
        if not word.lstrip("-").startswith("config."):
            continue
        at, node = "config", config
        for key in word.lstrip("-").partition("=")[0].split(".")[1:]:
            if not isinstance(node, ml_collections.ConfigDict) or key not in node:
                here = list(node.keys()) if isinstance(node, ml_collections.ConfigDict) else []
                full = [k for k in flatten(config.to_dict()) if k.rpartition(".")[2] == key]
                hint = nearest(key, here)
                if full and not hint:
                    hint = f" Did you mean 'config.{full[0]}'?"
                names = ", ".join(sorted(here)) or f"none, {at} is a plain value"
                return f"--{at}.{key} is no key of this config.{hint} Keys of {at}: {names}."
            at, node = f"{at}.{key}", node[key]
    return ""
