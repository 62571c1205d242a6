"""`resets` and `mask` in the RNNs of Linen and NNX, against one NumPy loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as fnn

from normjax import linen, nnx
from tests.linen.test_rnn import DECAY, EPS, B, BNCell, F, H, T
from tests.nnx import test_rnn as of_nnx

pytestmark = pytest.mark.standard_numerics
RNG = np.random.default_rng(0)
LENGTHS = np.array([T, 4, T, 1])
MASK = RNG.random((B, T)) < 0.7
RESETS = RNG.random((B, T)) < 0.4
CASES = {
    "both": {"resets": RESETS, "mask": MASK},
    "resets, lengths": {"resets": RESETS, "seq_lengths": LENGTHS},
    "all, reversed": {
        "resets": RESETS,
        "mask": MASK,
        "seq_lengths": LENGTHS,
        "reverse": True,
        "keep_order": True,
    },
}


def inputs(seq_lengths=None, mask=None, **_):
    x = RNG.normal(size=(B, T, F)).astype(np.float32)
    counts = np.ones((B, T), bool) if mask is None else mask.copy()
    if seq_lengths is not None:
        counts &= np.arange(T) < seq_lengths[:, None]
    x[~counts] = 1e3  # garbage in what does not count
    return x


def loop(w, u, scale, bias, x, h, *, seq_lengths=None, mask=None, resets, reverse=False, **_):
    """tanh(x W + BN(h U)) in float64, row by row and step by step; `h` the first carry.

    Returns outputs of the steps that count, the last carry, and statistics `[time, features]`.
    """
    n = np.full(B, T) if seq_lengths is None else seq_lengths
    w, u, scale, bias = (np.asarray(v, np.float64) for v in (w, u, scale, bias))
    h, fresh, y = np.array(h, np.float64), np.full((B, H), 0.5), np.full((B, T, H), np.nan)
    mean, var = np.zeros((T, H)), np.ones((T, H))
    for at in range(T):
        step = np.where(at < n, n - 1 - at, at) if reverse else np.full(B, at)
        rows = np.arange(B)
        counts = at < n
        if reverse:  # a segment ends before the step that begins the next one
            starts = counts & (at > 0) & resets[rows, np.minimum(step + 1, T - 1)]
        else:
            starts = counts & resets[:, at]
        h = np.where(starts[:, None], fresh, h)
        if mask is not None:
            counts = counts & mask[rows, step]
        if not counts.any():
            continue
        z = h @ u
        m, v = z[counts].mean(0), z[counts].var(0)
        mean[at] = DECAY * mean[at] + (1 - DECAY) * m
        var[at] = DECAY * var[at] + (1 - DECAY) * v
        new = np.tanh(x[rows, step] @ w + (z - m) / np.sqrt(v + EPS) * scale + bias)
        h = np.where(counts[:, None], new, h)
        y[rows[counts], step[counts]] = new[counts]
    return y, h, {"mean": mean, "var": var}


def agree(got, want, flags):
    (h, y), stats = got
    want_y, want_h, want_stats = want
    counts = ~np.isnan(want_y)
    np.testing.assert_allclose(y[counts], want_y[counts], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(h, want_h, rtol=1e-4, atol=1e-5)
    for name, value in want_stats.items():
        np.testing.assert_allclose(stats[name], value, rtol=1e-4, atol=1e-5)
    if "mask" in flags:
        assert not np.asarray(y)[~counts].any()


@pytest.mark.parametrize("name", CASES)
def test_linen(name):
    flags, first = CASES[name], np.full((B, H), -0.2, np.float32)
    x = inputs(**flags)
    variables = linen.RNN(BNCell()).init(jax.random.key(0), x)
    cell = variables["params"]["cell"]
    module = linen.RNN(BNCell(train=True), return_carry=True)
    got, new = jax.jit(
        lambda v, x: module.apply(v, x, initial_carry=first, **flags, mutable=["batch_stats"])
    )(variables, x)
    weights = cell["w"]["kernel"], cell["u"]["kernel"], cell["bn"]["scale"], cell["bn"]["bias"]
    agree((got, new["batch_stats"]["cell"]["bn"]), loop(*weights, x, first, **flags), flags)


@pytest.mark.parametrize("name", CASES)
def test_nnx(name):
    flags, first = CASES[name], np.full((B, H), -0.2, np.float32)
    x, cell = inputs(**flags), of_nnx.BNCell()
    rnn = nnx.RNN(cell, max_steps=T, return_carry=True, rngs=fnn.Rngs(0))
    rnn.train()
    got = fnn.jit(lambda rnn, x: rnn(x, initial_carry=jnp.asarray(first), **flags))(rnn, x)
    weights = (v[...] for v in (cell.w.kernel, cell.u.kernel, cell.bn.scale, cell.bn.bias))
    agree((got, of_nnx.kept(cell)), loop(*weights, x, first, **flags), flags)


def test_without_a_first_carry_a_reset_at_the_start_changes_nothing():
    x = inputs()
    rnn = nnx.RNN(of_nnx.BNCell(), max_steps=T, rngs=fnn.Rngs(0))
    rnn.eval()
    at_start = np.arange(T)[None] == np.zeros((B, 1))
    np.testing.assert_array_equal(rnn(x, resets=at_start), rnn(x))
    time_major = rnn(x.swapaxes(0, 1), resets=RESETS.T, mask=MASK.T, time_major=True)
    np.testing.assert_array_equal(time_major.swapaxes(0, 1), rnn(x, resets=RESETS, mask=MASK))


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"mask": MASK[:, :-1]}, ValueError, "mask of shape"),
        ({"resets": RESETS.astype(np.int32)}, TypeError, r"write resets.astype\(bool\)"),
    ],
)
def test_mistakes_say_what_to_write(flags, error, message):
    rnn = nnx.RNN(of_nnx.BNCell(), max_steps=T, rngs=fnn.Rngs(0))
    with pytest.raises(error, match=message):
        rnn(inputs(), **flags)
