"""What a claim is: statement, arms, and the rule that decides it; and the records of its runs.

A claim is a file `configs/<study>/claim_NN_slug.py` with `CLAIM = Claim(...)` and either
`get_config(arm)`, for arms that are trained, or `measure(arm, seed)`, for arms that are computed.
A trained claim may add `extra(run) -> {metric: number}`, called with a `sweep.Finished`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import configs as folder
from experiments import config as configs
from experiments.config import UsageError

RESULTS = pathlib.Path("results/claims")
# How a rate is picked, in `experiments.claim`; a record made by another way is refused.
TUNING = "grid, and three rates beyond the end that is best"
VERDICTS = ("holds", "fails", "undecided", "not run")


class Term(NamedTuple):
    """One arm's metric, with its weight in a contrast."""

    weight: float
    arm: str
    metric: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """A contrast of arms, paired by seed, whose 95 % interval is held against a margin.

    "more": holds above the margin, fails below it. "same": holds inside (-margin, margin), fails
    outside. An interval that contains a margin decides nothing.
    """

    terms: tuple[Term, ...]
    kind: str
    margin: float
    label: str

    def __post_init__(self) -> None:
        configs.one_of("kind of a rule", self.kind, ("more", "same"))


def _pair(left: str, right: str, metric: str, other: str) -> tuple[Term, ...]:
    return (Term(1.0, left, metric), Term(-1.0, right, other or metric))


def more(left: str, right: str, metric: str, *, by: float = 0.0, other: str = "") -> Rule:
    """`left` is above `right` in a metric (the right arm's `other`, if given) by more than `by`."""
    return Rule(_pair(left, right, metric, other), "more", by, f"{left} - {right}, {metric}")


def less(left: str, right: str, metric: str, *, by: float = 0.0, other: str = "") -> Rule:
    """`left` is below `right` in a metric by more than `by`."""
    return Rule(
        _pair(right, left, other or metric, metric), "more", by, f"{right} - {left}, {metric}"
    )


def same(left: str, right: str, metric: str, *, within: float, other: str = "") -> Rule:
    """The two differ by less than `within`."""
    return Rule(_pair(left, right, metric, other), "same", within, f"{left} - {right}, {metric}")


def contrast(label: str, *terms: tuple[float, str, str], by: float = 0.0) -> Rule:
    """A weighted sum of arms' metrics is more than `by`."""
    return Rule(tuple(Term(*term) for term in terms), "more", by, label)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of the literature, and what here would settle it.

    Seed 0 picks each arm's learning rate among `rates` by `tune` (a metric's name; losses, areas
    and steps are better small). Seeds 1 to `seeds` are the paired runs that `rules` look at.
    """

    number: int
    statement: str
    source: str
    expect: str  # what the source leads one to expect
    arms: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    rates: tuple[float, ...] = ()
    seeds: int = 5
    minutes: float = 0.0  # about, for all its runs, on two CPU cores
    tune: str = "valid.batch.accuracy"
    scale: str = ""  # in what the runs here are smaller than the source's
    twin: str = ""  # the config with the source's own protocol

    def __post_init__(self) -> None:
        for rule in self.rules:
            for term in rule.terms:
                configs.one_of(f"arm of a rule of claim {self.number}", term.arm, self.arms)


class Result(NamedTuple):
    """A rule held against numbers."""

    rule: Rule
    mean: float
    half: float  # of the 95 % interval
    verdict: str


def decide(rule: Rule, metrics: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Result:
    """Student's 95 % interval of the contrast over seeds, and what it says of the margin."""
    from scipy import stats

    columns = []
    for weight, arm, metric in rule.terms:
        if metric not in metrics[arm]:
            known = sorted(metrics[arm])
            raise UsageError(f"arm {arm!r} has no metric {metric!r}; it has {', '.join(known)}.")
        values = [math.nan if v is None else v for v in metrics[arm][metric]]
        columns.append(weight * np.asarray(values, np.float64))
    paired = np.sum(columns, axis=0)
    mean = float(paired.mean())
    if len(paired) < 2 or not np.isfinite(paired).all():
        return Result(rule, mean, math.nan, "undecided")
    half = float(stats.t.ppf(0.975, len(paired) - 1) * paired.std(ddof=1) / math.sqrt(len(paired)))
    low, high = mean - half, mean + half
    if rule.kind == "more":
        holds, fails = low > rule.margin, high < rule.margin
    else:
        holds = -rule.margin < low and high < rule.margin
        fails = high < -rule.margin or low > rule.margin
    return Result(rule, mean, half, "holds" if holds else "fails" if fails else "undecided")


def verdict(results: Sequence[Result]) -> str:
    """All must hold; one that fails is enough."""
    kinds = {result.verdict for result in results}
    return "fails" if "fails" in kinds else "holds" if kinds == {"holds"} else "undecided"


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
    usual = configs.flatten(configs.default().to_dict())
    places = ("data_dir", "resume", "seed", "optim.learning_rate", "name")
    flat = configs.flatten(config).items()
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
        what += [own_keys(configs.check(made.get_config(arm))) for arm in claim.arms]
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
