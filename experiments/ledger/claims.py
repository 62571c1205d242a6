"""Defines a claim: one statement, one effect, one rule; and the group of claims that share runs.

A file `configs/STUDY/claim_NN_name.py` declares a `GROUP`. Its arms are trained once for all of its
claims, at each of its scales; every claim has a verdict of its own, at each scale.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from experiments.usage import UsageError, one_of

Kind = Literal["more", "same", "not_worse"]
RULE_KINDS = ("more", "same", "not_worse")
SMALL_IS_GOOD = ("area.", "steps", "gap.", "rough.", "fall.", "perplexity", "bits.", "error")


def small_is_good(metric: str) -> bool:
    """Whether a smaller value of a metric is better: losses, errors, areas, steps."""
    return metric.startswith(SMALL_IS_GOOD) or metric.endswith(("loss", "error"))


def as_accuracy(metric: str) -> str:
    """Return the accuracy that a metric is a function of; any other metric is returned as it is."""
    return metric.removesuffix("log_error") + "accuracy" if metric.endswith("log_error") else metric


class Term(NamedTuple):
    """One arm's metric, with its weight in a contrast."""

    weight: float
    arm: str
    metric: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """A contrast of arms, positive in the claimed direction, and what is claimed of it.

    Attributes:
        terms: the contrast is the sum of weight times the arm's metric.
        kind: "more" claims an effect; "same" claims none of the size that matters, either way;
            "not_worse" claims no loss of that size.
        label: the contrast in words, for tables and pictures.
    """

    terms: tuple[Term, ...]
    kind: Kind
    label: str

    def __post_init__(self) -> None:
        one_of("kind of a rule", self.kind, RULE_KINDS)


def _pair(left: str, right: str, metric: str, kind: Kind, other: str = "") -> Rule:
    terms = (Term(1.0, left, metric), Term(-1.0, right, other or metric))
    label = f"{left} {metric} − {right} {other}" if other else f"{left} − {right}, {metric}"
    return Rule(terms, kind, label)


def more(left: str, right: str, metric: str, *, other: str = "") -> Rule:
    """Claim that `left` is above `right` in a metric (in `other`, for the right arm)."""
    return _pair(left, right, metric, "more", other)


def less(left: str, right: str, metric: str, *, other: str = "") -> Rule:
    """Claim that `left` is below `right` in a metric (in `other`, for the right arm)."""
    return _pair(right, left, other or metric, "more", metric if other else "")


def same(left: str, right: str, metric: str) -> Rule:
    """Claim that two arms differ in a metric by less than matters."""
    return _pair(left, right, metric, "same")


def not_worse(left: str, right: str, metric: str) -> Rule:
    """Claim that `left` is not worse than `right` by what matters; by a loss, lower is better."""
    if small_is_good(metric):
        terms = (Term(-1.0, left, metric), Term(1.0, right, metric))
        return Rule(terms, "not_worse", f"{right} − {left}, {metric}")
    return _pair(left, right, metric, "not_worse")


def contrast(label: str, *terms: tuple[float, str, str], kind: Kind = "more") -> Rule:
    """Claim something of a weighted sum of arms' metrics."""
    return Rule(tuple(Term(*term) for term in terms), kind, label)


@dataclasses.dataclass(frozen=True)
class Control:
    """What must be seen before a claim can be tested at all.

    Attributes:
        label: in words, "depth pays for the baseline".
        rule: decided like a claim's own; the control passes if it is supported.
        delta: the smallest effect that counts as one, in the metric's units.
    """

    label: str
    rule: Rule
    delta: float


@dataclasses.dataclass(frozen=True)
class Settled:
    """The control that training was long enough for a claim about where it ends.

    The validation loss of every arm of the rule, at the setting that its replicates pick, falls by
    less than `limit` of its value over the last tenth of the run, in the median of the replicates;
    one that rises has settled too.
    """

    limit: float = 0.02
    label: str = "the validation loss has settled"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement of the literature, and the rule that decides it.

    Attributes:
        letter: its place in the group, "a", "b", …; "" if it is alone.
        title: the statement in at most 60 characters, for tables.
        statement: the statement, whole.
        rule: decides it.
        delta: the smallest effect that matters, in the metric's units.
        why: where `delta` comes from.
        published: the source's effect in the metric's units; `None` if it gives no number. Where
            it has one for several sizes: pairs of a scale's place and the effect there, the one
            to compare with last.
        expect: what the source reports, in words, with its place (table, figure).
        controls: must be supported, or the claim is not testable.
        source: if it is not the group's.
        change: what would change our mind: the run or the result that would overturn the verdict.
        methods: names of norms that the claim is about, for filters.
    """

    letter: str
    title: str
    statement: str
    rule: Rule
    delta: float
    why: str
    expect: str
    published: float | tuple[tuple[float, float], ...] | None = None
    controls: tuple[Control | Settled, ...] = (Settled(),)
    source: str = ""
    change: str = ""
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise UsageError(f"delta={self.delta} of {self.title!r} must be positive.")
        if len(self.title) > 60:
            raise UsageError(f"the title {self.title!r} has over 60 characters.")
        if not self.why:
            raise UsageError(f"{self.title!r}: `why` says where delta comes from.")

    def published_at(self, scale: Scale) -> float | None:
        """Return the source's effect at a scale, if it gives one."""
        if isinstance(self.published, tuple):
            return dict(self.published).get(scale.at)
        return self.published


@dataclasses.dataclass(frozen=True)
class Scale:
    """A size at which a group is run: one record.

    Attributes:
        name: of the record's file, letters and digits.
        at: its place on the group's axis.
        text: data, model and training at this size, in words.
        replicates: the budget: at most so many of each arm at each rate.
        minutes: about, for one replicate of all arms at all rates, on two CPU cores.
        device: "cpu", or "gpu" for what no CPU can do in an evening.
        of_source: whether this is the size of the source.
        rates: learning rates tried at this size, in place of the group's.
    """

    name: str
    at: float
    text: str
    replicates: int = 64
    minutes: float = 0.0
    device: Literal["cpu", "gpu"] = "cpu"
    of_source: bool = False
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.isalnum():
            raise UsageError(f"the scale's name {self.name!r} must be letters and digits alone.")
        if self.replicates < 4:
            raise UsageError(f"scale {self.name}: replicates={self.replicates} must be 4 or more.")


@dataclasses.dataclass(frozen=True)
class Group:
    """Claims about the same arms, the scales at which they are run, and the rates that are tried.

    Attributes:
        number: of the group, and of its claims.
        title: what the claims are about.
        topic: for filters: "horizontal batch norm", "batch size", …
        source: the papers.
        axis: what the scales differ in, with its unit: "length of the sequence in steps".
        scales: the sizes, small to large.
        arms: their names.
        claims: what is claimed of them.
        rates: learning rates tried, the same for every arm; one alone if the rate is not tuned.
    """

    number: int
    title: str
    topic: str
    source: str
    axis: str
    scales: tuple[Scale, ...]
    arms: tuple[str, ...]
    claims: tuple[Claim, ...]
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        letters = [claim.letter for claim in self.claims]
        if len(set(letters)) < len(letters) or ("" in letters and len(letters) > 1):
            raise UsageError(f"the claims of group {self.number} have letters {letters}.")
        names = [scale.name for scale in self.scales]
        places = [scale.at for scale in self.scales]
        if not names or len(set(names)) < len(names) or places != sorted(set(places)):
            raise UsageError(
                f"the scales of group {self.number} must have names and places of their own, "
                "small to large."
            )
        for claim in self.claims:
            rules = [c.rule for c in claim.controls if isinstance(c, Control)]
            for term in (term for rule in (claim.rule, *rules) for term in rule.terms):
                one_of(f"arm of a rule of claim {self.number}{claim.letter}", term.arm, self.arms)

    def id(self, claim: Claim) -> str:
        """Return the name of a claim, such as 24b."""
        return f"{self.number}{claim.letter}"

    def scale(self, name: str) -> Scale:
        """Return a scale by name."""
        one_of(f"scale of group {self.number}", name, [scale.name for scale in self.scales])
        return next(scale for scale in self.scales if scale.name == name)

    def rates_at(self, scale: Scale) -> tuple[float, ...]:
        """Return the learning rates that are tried at a scale."""
        return scale.rates or self.rates

    def metrics(self) -> tuple[str, ...]:
        """Return the metrics that its rules read."""
        found: dict[str, None] = {}
        for claim in self.claims:
            rules = [c.rule for c in claim.controls if isinstance(c, Control)]
            found |= {term.metric: None for rule in (claim.rule, *rules) for term in rule.terms}
        return tuple(found)
