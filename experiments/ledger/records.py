"""Finds the claims' files, hashes them, and reads the records of their runs."""

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
# How `experiments.claim` picks a rate; a record of runs that picked it otherwise is refused.
TUNING = "grid, and three rates beyond the end that is best"


# ------------------------------------------------------------------------------------ the files


@functools.cache
def files() -> dict[int, tuple[pathlib.Path, str]]:
    """Return path and module name of every claim, by number."""
    root = pathlib.Path(next(iter(folder.__path__)))
    claims: dict[int, tuple[pathlib.Path, str]] = {}
    for path in sorted(root.glob("*/claim_[0-9][0-9]_*.py")):
        number = int(path.stem.split("_")[1])
        if number in claims:
            raise UsageError(f"claim {number} is declared twice: {claims[number][0]} and {path}.")
        claims[number] = (path, f"configs.{path.parent.name}.{path.stem}")
    return claims


def module(number: int) -> ModuleType:
    """Import the module of a claim."""
    if number not in files():
        raise UsageError(f"there is no claim {number}; claims: {min(files())} to {max(files())}.")
    study = importlib.import_module(files()[number][1])
    if study.CLAIM.number != number:
        raise UsageError(f"{files()[number][0]} declares claim {study.CLAIM.number}.")
    return study


def slug(number: int) -> str:
    """Return `01_faster` for `claim_01_faster.py`."""
    return files()[number][0].stem.removeprefix("claim_")


def config_path(number: int) -> str:
    """Return the path of a claim's file from the repository's root."""
    path = files()[number][0]
    return f"configs/{path.parent.name}/{path.name}"


def runs(study: ModuleType) -> bool:
    """Whether a claim can be run: it has arms, and a way to get their numbers."""
    return bool(study.CLAIM.arms) and (hasattr(study, "get_config") or hasattr(study, "measure"))


# ----------------------------------------------------------------------------------- the hashes


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def rule_hash(claim: Claim) -> str:
    """Hash everything that turns numbers into a verdict."""
    return _hash([dataclasses.astuple(rule)[:3] for rule in claim.rules])


def own_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that are not at their default, so that a key added later changes no hash."""
    usual = defaults.flatten(defaults.default().to_dict())
    free = ("data_dir", "resume", "seed", "optim.learning_rate", "name")
    flat = defaults.flatten(config).items()
    return {k: v for k, v in flat if k not in free and (k not in usual or usual[k] != v)}


def own_hash(config: Mapping[str, Any]) -> str:
    """Hash a checked config into the name of its runs' folder."""
    return _hash(own_keys(config))


def _code(study: ModuleType) -> list[str]:
    """Return the code of a claim and of its helpers as lines without docstrings and comments.

    Imports, CLAIM and get_config are left out: the values of the last two are hashed instead.
    """
    source = inspect.getsource(study)
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            _blank(lines, first)
    for node in ast.parse(source).body:
        named = [getattr(node, "name", ""), *(ast.unparse(t) for t in getattr(node, "targets", ()))]
        if isinstance(node, ast.Import | ast.ImportFrom) or {"CLAIM", "get_config"} & set(named):
            _blank(lines, node)
    code = [line for line in lines if line.strip() and not line.strip().startswith("#")]
    helpers = [value for value in vars(study).values() if isinstance(value, ModuleType)]
    for helper in sorted(helpers, key=lambda module: module.__name__):
        if helper.__name__.startswith(f"{folder.__name__}."):
            code += _code(helper)
    return code


def _blank(lines: list[str], node: ast.stmt) -> None:
    end = node.end_lineno or node.lineno
    lines[node.lineno - 1 : end] = [""] * (end - node.lineno + 1)


def config_hash(study: ModuleType) -> str:
    """Hash all that makes the numbers: configs, rates and seeds, or the code that measures."""
    claim = study.CLAIM
    parts: list[Any] = [claim.arms, claim.rates, claim.seeds, claim.tune]
    if not hasattr(study, "measure"):
        parts.append(TUNING)
        parts += [own_keys(validate.check(study.get_config(arm))) for arm in claim.arms]
    if hasattr(study, "measure") or hasattr(study, "extra"):
        parts.append(_code(study))
    return _hash(parts)


# ---------------------------------------------------------------------------------- the records


def record_path(number: int, results: pathlib.Path = RESULTS) -> pathlib.Path:
    """Return the path of a claim's record."""
    return results / f"{slug(number)}.json"


def read(number: int, results: pathlib.Path = RESULTS) -> dict[str, Any] | None:
    """Read a claim's record, if any; refuse it if the claim has changed since."""
    path = record_path(number, results)
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    study = module(number)
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("rule", lambda: rule_hash(study.CLAIM)),
        ("config", lambda: config_hash(study)),
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
    """Return the verdict that a record's numbers give, and the result of each rule."""
    metrics = {name: arm["metrics"] for name, arm in record["arms"].items()}
    results = [decide(rule, metrics) for rule in claim.rules]
    return verdict(results), results
