"""Finds the claims' files, hashes what they say, and proves by git that they said it first."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import pathlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import configs as folder
from experiments.config import defaults, validate
from experiments.ledger.claims import Claim, Group, Scale
from experiments.runtime import workdir
from experiments.usage import UsageError

# Keys that a replicate changes, or that change no number.
FREE = (
    *("data_dir", "resume", "seed", "optim.learning_rate", "name"),
    *("data.draw", "data.fold", "permutation_seed"),
)


# ------------------------------------------------------------------------------------ the files


@functools.cache
def files() -> dict[int, tuple[pathlib.Path, str]]:
    """Return path and module name of every group of claims, by number."""
    root = pathlib.Path(next(iter(folder.__path__)))
    groups: dict[int, tuple[pathlib.Path, str]] = {}
    for path in sorted(root.glob("*/claim_[0-9][0-9]_*.py")):
        number = int(path.stem.split("_")[1])
        if number in groups:
            raise UsageError(f"claim {number} is declared twice: {groups[number][0]} and {path}.")
        groups[number] = (path, f"configs.{path.parent.name}.{path.stem}")
    return groups


def module(number: int) -> ModuleType:
    """Import the module of a group of claims."""
    if number not in files():
        raise UsageError(f"there is no claim {number}; claims: {min(files())} to {max(files())}.")
    study = importlib.import_module(files()[number][1])
    if study.GROUP.number != number:
        raise UsageError(f"{files()[number][0]} declares group {study.GROUP.number}.")
    return study


def slug(number: int) -> str:
    """Return `01_faster` for `claim_01_faster.py`."""
    return files()[number][0].stem.removeprefix("claim_")


def config_path(number: int) -> str:
    """Return the path of a group's file from the repository's root."""
    path = files()[number][0]
    return f"configs/{path.parent.name}/{path.name}"


def trains(study: ModuleType) -> bool:
    """Whether a group trains runs from configs, rather than computing its numbers itself."""
    return not hasattr(study, "measure")


def notes(study: ModuleType) -> str:
    """Return what the module's docstring says after its first line."""
    return (inspect.getdoc(study) or "").partition("\n\n")[2]


# ----------------------------------------------------------------------------------- the hashes


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def own_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that are not at their default, so that a key added later changes no hash."""
    usual = defaults.flatten(defaults.default().to_dict())
    flat = defaults.flatten(config).items()
    return {k: v for k, v in flat if k not in FREE and (k not in usual or usual[k] != v)}


def own_hash(config: Mapping[str, Any]) -> str:
    """Hash a checked config into the name of its runs' folder."""
    return _hash(own_keys(config))


def claim_hash(group: Group, claim: Claim) -> str:
    """Hash all that a claim says: statement, source, expectation, delta, rule, controls."""
    return _hash([group.number, group.source, dataclasses.asdict(claim)])


def config_hash(study: ModuleType, scale: Scale) -> str:
    """Hash all that makes the numbers at a scale: configs and rates, or the code that measures.

    The number of replicates is not part of it: more of them continue the record.
    """
    group: Group = study.GROUP
    parts: list[Any] = [group.arms, group.rates_at(scale), scale.name, scale.at, scale.text]
    if trains(study):
        for arm in group.arms:
            parts.append(own_keys(validate.check(study.get_config(arm, scale.name))))
    if not trains(study) or hasattr(study, "extra") or hasattr(study, "replicate"):
        parts.append(_code(study))
    return _hash(parts)


def _code(study: ModuleType) -> list[str]:
    """Return the code of a group and of its helpers as lines without docstrings and comments.

    Imports, GROUP and get_config are left out: the values of the last two are hashed instead.
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
        if isinstance(node, ast.Import | ast.ImportFrom) or {"GROUP", "get_config"} & set(named):
            _blank(lines, node)
    code = [line for line in lines if line.strip() and not line.strip().startswith("#")]
    for helper in _helpers(study):
        code += _code(helper)
    return code


def _blank(lines: list[str], node: ast.stmt) -> None:
    end = node.end_lineno or node.lineno
    lines[node.lineno - 1 : end] = [""] * (end - node.lineno + 1)


def _helpers(study: ModuleType) -> list[ModuleType]:
    """Return the modules of `configs` that a module imports, by name."""
    found = [value for value in vars(study).values() if isinstance(value, ModuleType)]
    mine = [helper for helper in found if helper.__name__.startswith(f"{folder.__name__}.")]
    return sorted(mine, key=lambda helper: helper.__name__)


# ----------------------------------------------------------------------------- the registration


def source_files(study: ModuleType) -> list[pathlib.Path]:
    """Return the files that a group is declared in: its own and those of its helpers."""
    found = {pathlib.Path(inspect.getfile(study))}
    todo = [study]
    while todo:
        for helper in _helpers(todo.pop()):
            path = pathlib.Path(inspect.getfile(helper))
            if path not in found:
                found.add(path)
                todo.append(helper)
    return sorted(found)


def git(*words: str, root: pathlib.Path | None = None) -> str:
    """Run git in the repository of the configs and return what it prints.

    Raises:
        UsageError: if there is no git, or no repository, or git refuses.
    """
    at = root or pathlib.Path(next(iter(folder.__path__))).parent
    try:
        done = subprocess.run(["git", "-C", str(at), *words], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UsageError("git is not installed: no claim can be registered.") from error
    if done.returncode:
        raise UsageError(f"git {words[0]}: {done.stderr.strip() or 'failed'}")
    return done.stdout.strip()


def register(study: ModuleType) -> dict[str, Any]:
    """Return the commit that a group's files were last changed in, its date, and their hashes.

    A change of docstrings and comments alone is none: they say what was found, and decide nothing.
    The date is in UTC, as a run's "began" is written; the hashes are git's.

    Raises:
        UsageError: if a file is not committed as it is now.
    """
    paths = source_files(study)
    root = pathlib.Path(git("rev-parse", "--show-toplevel", root=paths[0].parent))
    names = [str(path.resolve().relative_to(root.resolve())) for path in paths]
    if changed := git("status", "--porcelain", "--", *names, root=root):
        raise UsageError(
            f"{changed.split()[-1]} is not committed as it is now. A claim is registered by a "
            "commit that is older than its runs: commit it first, or write --draft for numbers "
            "that enter no ledger."
        )
    commit = _since(names, root)
    blobs = {name: git("rev-parse", f"{commit}:{name}", root=root) for name in names}
    seconds = int(git("show", "--no-patch", "--format=%ct", commit, root=root))
    date = time.strftime(workdir.BEGAN, time.gmtime(seconds))
    return {"commit": commit, "date": date, "files": blobs}


def _since(names: Sequence[str], root: pathlib.Path) -> str:
    """Return the first commit since which files differ from HEAD in docstrings and comments alone.

    Such a change is made on the branch itself: merges are followed to their first parent.
    """
    changes = git("log", "--first-parent", "--format=%H", "--", *names, root=root).split()
    code = {name: _code_alone(git("show", f"HEAD:{name}", root=root)) for name in names}
    since = changes[0]
    for commit in changes[1:]:
        there = set(git("ls-tree", "--name-only", commit, "--", *names, root=root).splitlines())
        if there != set(names) or any(
            _code_alone(git("show", f"{commit}:{name}", root=root)) != code[name] for name in names
        ):
            break
        since = commit
    return since


def _code_alone(source: str) -> str:
    """Return source code without docstrings and comments."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    return ast.dump(tree)


def check_registration(record: Mapping[str, Any], path: pathlib.Path) -> str:
    """Return what is wrong with a record's registration, or "".

    The files must be in the registered commit as they were hashed, and the record must have been
    added by a later one.
    """
    registered = record["registered"]
    if not registered:
        return f"{path} is a draft: its claim was not committed before it ran"
    root, commit = path.parent, registered["commit"]
    for name, blob in registered["files"].items():
        if git("rev-parse", f"{commit}:{name}", root=root) != blob:
            return f"{name} is not in commit {commit[:10]} as {path} says"
    added = git("log", "--diff-filter=A", "--format=%H", "--", path.name, root=root).split()
    # The last time: an earlier record of the same name may have been withdrawn.
    known = added and git("ls-tree", "--name-only", "HEAD", "--", path.name, root=root)
    later = added[0] if known else "HEAD"
    try:
        git("merge-base", "--is-ancestor", commit, later, root=root)
    except UsageError:
        return f"commit {commit[:10]} is no ancestor of {later[:10]}, which added {path}"
    if commit == later:
        return f"commit {commit[:10]} registers the claim and adds {path} at once"
    return ""
