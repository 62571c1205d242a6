"""Lengths, flags and scales as Python lists, with tracers in them under `jit`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from tests._support.few import few
from tests.conftest import unchecked

B, T, F, H = 8, 7, 3, 5
LENGTHS = np.array([7, 0, 1, 2, 3, 6, 7, 5])
X = np.random.default_rng(1).normal(size=(B, T, F)).astype(np.float32)
BN = recurrent.per_step(nj.batch_norm(scale_init=0.3), T)


@pytest.mark.parametrize("kind", few(("layer", "stack", "bidirectional"), "stack"))
def test_lists_are_taken_under_jit_as_outside(kind):
    """Lengths and flags as lists, whose numbers `jit` makes tracers."""
    layer = recurrent.gru(H, norm_x=BN)
    net = {
        "layer": layer,
        "stack": recurrent.stack([layer]),
        "bidirectional": recurrent.bidirectional(layer),
    }[kind]
    params, state = net.init(jax.random.key(0), F)
    lengths = LENGTHS.tolist()
    flags = np.random.default_rng(0).integers(0, 2, (2, B, T)).astype(bool)
    resets, mask = flags.tolist()
    want, _ = net.apply(
        params, state, X, stats="batch", lengths=LENGTHS, resets=flags[0], mask=flags[1]
    )

    @unchecked
    def run(lengths, resets, mask):
        return net.apply(
            params, state, X, stats="batch", lengths=lengths, resets=resets, mask=mask
        )[0]

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, run(lengths, resets, mask), want)
    jax.tree.map(close, jax.jit(run)(lengths, resets, mask), want)
    one = jax.jit(lambda n, resets, mask: run([n, *lengths[1:]], resets, mask))
    jax.tree.map(close, one(lengths[0], resets, mask), want)
    given = {"lengths": lengths, "resets": resets, "mask": mask}
    arrays = {"lengths": LENGTHS, "resets": flags[0], "mask": flags[1]}
    got, want = (
        unchecked(nj.population_statistics)(net, params, state, [{"x": X, **each}])
        for each in (given, arrays)
    )
    jax.tree.map(close, got, want)
    # What is known is still checked.
    with pytest.raises(ValueError, match="lengths from 0 to 8 do not fit sequences of 7 steps"):
        run([8, *lengths[1:]], resets, mask)


def test_scales_and_lengths_as_lists_of_tracers():
    m = nj.moments(X, (0, 1))
    want = nj.normalize(X, m, (0, 1), eps=1e-5, scale=jnp.array([1.0, 2.0, 3.0]))
    scaled = unchecked(nj.normalize)
    got = jax.jit(lambda a: scaled(X, m, (0, 1), eps=1e-5, scale=[a, 2.0, 3.0]))(1.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    ends = jax.jit(lambda n: unchecked(recurrent.last)(X, [n, *LENGTHS[1:].tolist()]))(7)
    np.testing.assert_array_equal(ends, recurrent.last(X, LENGTHS))
