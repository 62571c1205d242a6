"""Configs with keys changed at random: each is valid, or refused with what to write instead."""

from __future__ import annotations

import random

import ml_collections
import pytest

from configs.recurrent_bn import digits, ptb
from experiments.config import validate
from experiments.config.defaults import flatten
from experiments.ledger import registry
from experiments.usage import UsageError

CONFIGS = {
    "sequence": lambda: digits.get_config("bn_lstm"),
    "plain": lambda: digits.get_config("lstm"),
    "language": lambda: ptb.get_config("bn_lstm"),
    "image": lambda: registry.module(13).get_config("bn"),
    "generate": lambda: registry.module(34).get_config("bn_style"),
    "stack": lambda: registry.module(9).get_config("tanh_bn"),
}
VALUES = [
    *(0, 1, -1, 2, 3, 7, 100, 10**6, 10**11, 10**20, -(2**40), 2**31, 2**63),
    *(0.0, -0.5, 0.5, 0.999, 1.0, 1.5, 100.5, 1e-300, 1e24, 1e300),
    *(float("inf"), float("-inf"), float("nan")),
    *(True, False, None, "", "x", "a\nb", "\0", "\ud800", "é" * 300, "batch_norm", "layer_norm"),
    *("none", "per_step", "sequence_wise", "identity", "images", "rows", "text", "generate"),
    *([], [1], ["norm"], ["act", "act"], [[]], {}, {"name": "none"}, {"name": 3}, {"a": {"b": 1}}),
]
NAMES = ["lift", "name", "max_steps", "decay", "scale_init", "depth", "embed", "norm_h", "norm_sum"]


def mutate(plain, draw):
    """Change one to three keys: another value, a key less, a key more, a group for a value."""
    flat = flatten(plain)
    for _ in range(draw.choice((1, 1, 2, 3))):
        path = draw.choice(sorted(flat)).split(".")
        if draw.random() < 0.1:
            path = path[: draw.randint(1, len(path))]
        if draw.random() < 0.1:
            path[-1] = draw.choice(NAMES)
        node = plain
        for key in path[:-1]:
            node = node.setdefault(key, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict):
            continue
        if draw.random() < 0.1:
            node.pop(path[-1], None)
        elif draw.random() < 0.5:
            node[path[-1]] = draw.choice(VALUES)
        else:  # what another key of its type has
            usual = node.get(path[-1])
            node[path[-1]] = draw.choice(
                [v for v in flat.values() if type(v) is type(usual)] or [1]
            )
    return plain


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_changed_config_is_valid_or_refused_with_a_word(seed):
    draw = random.Random(seed)
    refused = 0
    for i in range(100):
        kind = draw.choice(sorted(CONFIGS))
        config = mutate(ml_collections.ConfigDict(CONFIGS[kind]()).to_dict(), draw)
        try:
            plain = validate.check(config)
        except UsageError as error:
            message = str(error)
            refused += 1
            assert message.isprintable() and len(message) < 1000, (i, message)
        else:
            assert validate.check(plain) == plain
    assert 40 < refused < 100
