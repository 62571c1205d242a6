"""What a claim may declare, and how its rules, controls and sizes are decided."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments.ledger import judge, replicates
from experiments.ledger.claims import (
    Claim,
    Control,
    Group,
    Scale,
    Settled,
    contrast,
    less,
    more,
    not_worse,
    same,
)
from experiments.usage import UsageError


def declared(**changes):
    usual = {
        "letter": "",
        "title": "a is more",
        "statement": "a is more than b",
        "rule": more("a", "b", "m"),
        "delta": 0.1,
        "why": "half of 0.2",
        "expect": "0.2",
        "published": 0.2,
        "controls": (),
    }
    return Claim(**{**usual, **changes})


def grouped(*claims, **changes):
    usual = {
        "number": 1,
        "title": "a and b",
        "topic": "letters",
        "source": "nobody",
        "axis": "size",
        "scales": (Scale("small", 1, "few"), Scale("large", 2, "many", of_source=True)),
        "arms": ("a", "b"),
        "claims": claims or (declared(),),
    }
    return Group(**{**usual, **changes})


def test_what_a_declaration_cannot_say_is_refused():
    for make, message in (
        (lambda: declared(delta=0.0), "must be positive"),
        (lambda: declared(title="t" * 61), "over 60 characters"),
        (lambda: declared(why=""), "where delta comes from"),
        (lambda: grouped(declared(), declared()), "letters"),
        (lambda: grouped(declared(letter="a"), declared(letter="a")), "letters"),
        (lambda: grouped(scales=(Scale("b", 2, ""), Scale("a", 1, ""))), "small to large"),
        (lambda: grouped(declared(rule=more("a", "c", "m"))), "arm of a rule of claim 1='c'"),
        (lambda: Scale("a b", 1, ""), "letters and digits"),
        (lambda: Scale("a", 1, "", replicates=3), "4 or more"),
    ):
        with pytest.raises(UsageError, match=message):
            make()


def test_a_declaration_is_a_value():
    group = grouped()
    with pytest.raises(dataclasses.FrozenInstanceError):
        group.number = 2
    with pytest.raises(UsageError, match="must be positive"):
        dataclasses.replace(group.claims[0], delta=-1.0)


# -------------------------------------------------------------------------------------- verdicts


def numbers(**arms):
    """A record's arms from [rates, replicates] lists of one metric m."""
    return {
        "arms": {
            name: {
                "rates": [float(i + 1) for i in range(len(rows))],
                "metrics": {"m": rows, "m.loss": rows, "diverged": np.zeros_like(rows).tolist()},
            }
            for name, rows in arms.items()
        }
    }


def spread(center, n=16, width=0.02):
    return (center + width * np.linspace(-1, 1, n)).tolist()


@pytest.mark.parametrize(
    ("rule", "a", "verdict"),
    [
        (more("a", "b", "m"), 0.5, "supported"),
        (more("a", "b", "m"), 0.0, "negligible"),
        (more("a", "b", "m"), -0.5, "reversed"),
        (more("a", "b", "m"), 0.06, "inconclusive"),
        (less("a", "b", "m"), -0.5, "supported"),
        (less("a", "b", "m.loss"), -0.5, "supported"),
        (less("a", "b", "m.loss"), 0.5, "reversed"),
        (same("a", "b", "m"), 0.0, "supported"),
        (same("a", "b", "m"), 0.5, "reversed"),
        (not_worse("a", "b", "m"), -0.02, "supported"),
        (not_worse("a", "b", "m"), -0.5, "reversed"),
        (not_worse("a", "b", "m.loss"), 0.5, "reversed"),
        (not_worse("a", "b", "m.loss"), -0.5, "supported"),
        (contrast("c", (1.0, "a", "m"), (-2.0, "b", "m")), 0.5, "supported"),
    ],
)
def test_a_rule_is_decided_in_the_claimed_direction(rule, a, verdict):
    width = 0.2 if verdict == "inconclusive" else 0.02
    record = numbers(a=[spread(a, width=width)], b=[spread(0.0, width=width)])
    group = grouped(declared(rule=rule))
    assert judge.judge(group, group.claims[0], record, {}).verdict == verdict


def test_each_arm_is_scored_at_a_rate_that_its_own_replicates_pick():
    # At its second rate a is best, and a loss is best where it is smallest.
    record = numbers(a=[spread(0.1), spread(0.9), spread(0.3)], b=[spread(0.0), spread(0.2)])
    group = grouped()
    judged = judge.judge(group, group.claims[0], record, {})
    assert judged.rates == {"a": 2.0, "b": 2.0} and judged.at_edge == ("b",)
    np.testing.assert_allclose(judged.effect.estimate, 0.7, atol=1e-6)
    group = grouped(declared(rule=less("b", "a", "m.loss")))
    judged = judge.judge(group, group.claims[0], record, {})
    assert judged.rates == {"a": 1.0, "b": 1.0}
    np.testing.assert_allclose(judged.effect.estimate, 0.1, atol=1e-6)


def test_a_claim_whose_control_fails_is_not_testable():
    control = Control("b beats c", more("b", "c", "m"), 0.1)
    group = grouped(declared(controls=(control,)), arms=("a", "b", "c"))
    for c, verdict in ((-1.0, "supported"), (0.0, "not testable here")):
        record = numbers(a=[spread(0.5)], b=[spread(0.0)], c=[spread(c)])
        judged = judge.judge(group, group.claims[0], record, {})
        assert judged.verdict == verdict and judged.checks[0].passed == (verdict == "supported")


def test_training_that_has_not_settled_leaves_the_claim_untestable():
    group = grouped(declared(controls=(Settled(),)))
    record = numbers(a=[spread(0.5)], b=[spread(0.0)])
    for falling, verdict in ((0.01, "supported"), (0.03, "not testable here")):
        for arm in record["arms"].values():
            arm["metrics"]["fall.valid"] = [[falling] * 16]
        assert judge.judge(group, group.claims[0], record, {}).verdict == verdict
    # A loss that jumps up at the end does not make up for the others, which still fall.
    record["arms"]["a"]["metrics"]["fall.valid"] = [[0.03] * 15 + [-0.5]]
    check = judge.judge(group, group.claims[0], record, {}).checks[0]
    assert not check.passed and check.estimate == 0.03
    del record["arms"]["a"]["metrics"]["fall.valid"]
    with pytest.raises(UsageError, match=r"writes controls=\(\)"):
        judge.judge(group, group.claims[0], record, {})


def test_the_fall_of_a_loss_is_a_share_of_it_in_a_tenth_of_the_run():
    steps = np.arange(1, 21) * 50
    assert abs(replicates.fall(steps, [0.5] * 20)) < 1e-12
    line = 1 - 0.0005 * steps  # ends at 0.5; a tenth of the run is 100 steps, 0.05
    late = line[-6:].mean()
    np.testing.assert_allclose(replicates.fall(steps, line), 0.05 / late)
    assert replicates.fall(steps, 1 + 0.001 * steps) < 0
    assert np.isnan(replicates.fall([1, 2], [1.0, 1.0]))


def test_what_has_no_number_cannot_be_picked_and_alone_decides_nothing():
    lost = [None, *spread(5.0)[1:]]
    group = grouped()
    judged = judge.judge(
        group, group.claims[0], numbers(a=[lost, spread(0.5)], b=[spread(0.0)]), {}
    )
    assert judged.verdict == "supported" and judged.rates["a"] == 2.0
    judged = judge.judge(group, group.claims[0], numbers(a=[lost], b=[spread(0.0)]), {})
    assert judged.verdict == "not testable here"
    other = numbers(a=[spread(0.5)], b=[spread(0.0)])
    del other["arms"]["a"]["metrics"]["m"]
    with pytest.raises(UsageError, match=r"arm 'a' has no metric 'm'; it has diverged, m\.loss"):
        judge.judge(group, group.claims[0], other, {})


def test_the_verdicts_over_scales_are_a_phrase():
    def of(*verdicts):
        scales = [Scale(f"s{i}", 10**i, "") for i in range(len(verdicts))]
        return judge.phrase(list(zip(scales, verdicts, strict=True)))

    assert of("reversed") == "reversed"
    assert of("supported", "supported") == "supported at all sizes"
    assert of("negligible", "supported", "supported") == "negligible at 1; supported from 10 on"
    assert of("supported", "supported", "not run") == "supported at 1 to 10; not run at 100"
    assert of("not run", "not run") == "not run"
