"""The table that opens the recurrent guide: what each row says to write runs."""

from __future__ import annotations

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx as flax_nnx

from normjax import linen, nnx, recurrent

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "recurrent.md").read_text()
SECTION = PAGE[PAGE.index("## I have") : PAGE.index("## Positions")]
ROWS = re.findall(r"^\| (?!---|I have)(.+?) \| (.+) \|$", SECTION, re.M)


@pytest.fixture(scope="module")
def names():
    """The names that the rows share: those of the page's first block and of the section's."""
    found = {"linen": linen, "nnx": nnx, "rngs": flax_nnx.Rngs(0)}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", PAGE[: PAGE.index("## Positions")], re.S):
            exec(compile(block, "docs", "exec"), found)
    return found


def test_there_is_a_row_for_each_option():
    assert len(ROWS) >= 20
    for word in (
        "lengths",
        "mask",
        "resets",
        "clock",
        "carry",
        "last",
        "debias",
        "axis_name",
        "solver",
        "impl",
        "fold",
    ):
        assert any(f"{word}" in write for _, write in ROWS)


@pytest.mark.standard_numerics
@pytest.mark.parametrize("write", [pytest.param(write, id=have) for have, write in ROWS])
def test_a_row_runs(write, names):
    codes = [c for c in re.findall(r"`([^`]+)`", write) if "(" in c]
    assert codes or "axis_name" in write
    for code in codes:
        made = eval(code, names)
        if isinstance(made, recurrent.Layer):
            params, state = made.init(jax.random.key(0), 2)
            x = names["x"].swapaxes(0, 1) if made.time_major else names["x"]
            (y, _), _ = made.apply(params, state, x, stats="batch")
            assert y.shape == (*x.shape[:2], 8)
        elif isinstance(made, linen.Recurrent):
            y, _ = made.init_with_output(jax.random.key(0), names["x"], stats="running")
            assert y.shape == (8, 6, 8)
        elif isinstance(made, nnx.Recurrent):
            assert made(names["x"], stats="batch").shape == (8, 6, 8)
        else:
            leaves = [v for v in jax.tree.leaves(made) if not isinstance(v, recurrent.Layer)]
            assert leaves
            assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
