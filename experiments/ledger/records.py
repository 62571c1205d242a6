"""Claims' files, their hashes, and the records of their runs."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import pathlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import configs as folder
from experiments.config import defaults, validate
from experiments.ledger.rules import Claim, Result, decide, verdict
from experiments.usage import UsageError

RESULTS = pathlib.Path("results/claims")
# How a rate is picked, in `experiments.claim`; a record made by another way is refused.
TUNING = "grid, and three rates beyond the end that is best"


# ------------------------------------------------------------------------------------ the files


@functools.cache
def files() -> dict[int, tuple[pathlib.Path, str]]:
    """Path and module of every claim, by number."""
    root = pathlib.Path(next(iter(folder.__path__)))
    found: dict[int, tuple[pathlib.Path, str]] = {}
    for path in sorted(root.glob("*/claim_[0-9][0-9]_*.py")):
        number = int(path.stem.split("_")[1])
        if number in found:
            raise UsageError(f"claim {number} is declared twice: {found[number][0]} and {path}.")
        found[number] = (path, f"configs.{path.parent.name}.{path.stem}")
    return found


def module(number: int) -> ModuleType:
    """The module of a claim."""
    if number not in files():
        raise UsageError(f"there is no claim {number}; claims: {min(files())} to {max(files())}.")
    made = importlib.import_module(files()[number][1])
    if made.CLAIM.number != number:
        raise UsageError(f"{files()[number][0]} declares claim {made.CLAIM.number}.")
    return made


def slug(number: int) -> str:
    """`01_faster`, of `claim_01_faster.py`."""
    return files()[number][0].stem.removeprefix("claim_")


def config_path(number: int) -> str:
    """The path of a claim's file from the repository's root."""
    path = files()[number][0]
    return f"configs/{path.parent.name}/{path.name}"


def runs(made: ModuleType) -> bool:
    """Whether a claim can be run: it has arms, and a way to get their numbers."""
    return bool(made.CLAIM.arms) and (hasattr(made, "get_config") or hasattr(made, "measure"))


# ----------------------------------------------------------------------------------- the hashes


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def rule_hash(claim: Claim) -> str:
    """Of all that turns numbers into a verdict."""
    return _hash([dataclasses.astuple(rule)[:3] for rule in claim.rules])


def own_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config's keys that are not at their default, so that a key added later changes no hash."""
    usual = defaults.flatten(defaults.default().to_dict())
    places = ("data_dir", "resume", "seed", "optim.learning_rate", "name")
    flat = defaults.flatten(config).items()
    return {k: v for k, v in flat if k not in places and (k not in usual or usual[k] != v)}


def own_hash(config: Mapping[str, Any]) -> str:
    """The name of a checked config's runs."""
    return _hash(own_keys(config))


def _code(made: ModuleType) -> list[str]:
    """A claim's code and its study's helpers', as lines without docstrings and comments.

    Imports, CLAIM and get_config are left out: what these two make is hashed as values.
    """
    source = inspect.getsource(made)
    kept = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            _blank(kept, first)
    for node in ast.parse(source).body:
        named = [getattr(node, "name", ""), *(ast.unparse(t) for t in getattr(node, "targets", ()))]
        if isinstance(node, ast.Import | ast.ImportFrom) or {"CLAIM", "get_config"} & set(named):
            _blank(kept, node)
    told = [line for line in kept if line.strip() and not line.strip().startswith("#")]
    helpers = [value for value in vars(made).values() if isinstance(value, ModuleType)]
    for helper in sorted(helpers, key=lambda module: module.__name__):
        if helper.__name__.startswith(f"{folder.__name__}."):
            told += _code(helper)
    return told


def _blank(lines: list[str], node: ast.stmt) -> None:
    end = node.end_lineno or node.lineno
    lines[node.lineno - 1 : end] = [""] * (end - node.lineno + 1)


def config_hash(made: ModuleType) -> str:
    """Of all that makes the numbers: arms' configs, rates, seeds; or the code that measures."""
    claim = made.CLAIM
    what: list[Any] = [claim.arms, claim.rates, claim.seeds, claim.tune]
    if not hasattr(made, "measure"):
        what.append(TUNING)
        what += [own_keys(validate.check(made.get_config(arm))) for arm in claim.arms]
    if hasattr(made, "measure") or hasattr(made, "extra"):
        what.append(_code(made))
    return _hash(what)


# ---------------------------------------------------------------------------------- the records


def record_path(number: int, results: pathlib.Path = RESULTS) -> pathlib.Path:
    """Where a claim's record is kept."""
    return results / f"{slug(number)}.json"


def read(number: int, results: pathlib.Path = RESULTS) -> dict[str, Any] | None:
    """A claim's record, or None; refused if claim and record do not belong together any more."""
    path = record_path(number, results)
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    made = module(number)
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("rule", lambda: rule_hash(made.CLAIM)),
        ("config", lambda: config_hash(made)),
    )
    for what, now in checks:
        if record[f"{what}_hash"] != now():
            raise UsageError(
                f"the {what} of claim {number} ({config_path(number)}) was changed after its runs "
                f"({path}, {record['date']}): put it back, or run all of it again with "
                f"python -m experiments.claim {number} --fresh"
            )
    return record


def judge(claim: Claim, record: Mapping[str, Any]) -> tuple[str, list[Result]]:
    """The verdict that a record's numbers give, and each rule's part in it."""
    metrics = {arm: told["metrics"] for arm, told in record["arms"].items()}
    results = [decide(rule, metrics) for rule in claim.rules]
    return verdict(results), results
