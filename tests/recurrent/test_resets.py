"""Resets and step masks: a row in segments is its segments as sequences of their own."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import normjax as nj
from normjax import recurrent
from tests._support.few import few
from tests.conftest import unchecked

B, T, F, H = 3, 6, 2, 3
RNG = np.random.default_rng(0)
LENGTHS = np.array([6, 5, 0])
RESETS = np.array(
    [
        [0, 0, 1, 0, 1, 1],
        [1, 0, 0, 0, 1, 0],  # from its first step
        [0, 1, 0, 0, 0, 0],
    ],
    bool,
)
MASK = np.array(
    [
        [1, 1, 0, 1, 1, 0],  # its last segment has no step
        [1, 0, 1, 1, 0, 1],  # a reset at a skipped step
        [1, 1, 1, 1, 1, 1],
    ],
    bool,
)
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def _segment(norm=None, **kw):
    return recurrent.per_step(norm or nj.batch_norm(scale_init=0.3), T, clock="segment", **kw)


_BN_LSTM = recurrent.bn_lstm(H, T, scale_init=0.3, clock="segment", learn_carry=True)
_BN_GRU = recurrent.bn_gru(H, T, scale_init=0.3, clock="segment")
LAYERS = {
    "lstm": recurrent.lstm(H, learn_carry=True),
    "ln_gru": recurrent.ln_gru(H),
    "bn_lstm": _BN_LSTM,
    "remat": dataclasses.replace(_BN_LSTM, remat_steps=2),
    "bn_gru": _BN_GRU,
    "rnn_sum": recurrent.rnn(H, norm_sum=_segment()),
    "own_params": recurrent.lstm(H, norm_h=_segment(share_params=False)),
    "sequence_wise_input": recurrent.lstm(
        H, norm_x=recurrent.sequence_wise(nj.batch_norm()), norm_h=_segment()
    ),
    "weight_norm": nj.reparam(_BN_GRU, {"w_h": nj.weight_norm()}),
    "stack": recurrent.stack(
        [_BN_LSTM, recurrent.rnn(H, norm_h=_segment())],
        norm_between=recurrent.sequence_wise(nj.batch_norm()),
    ),
    "bidirectional": recurrent.bidirectional(_BN_GRU, _BN_LSTM),
}


def _made(layer, **kw):
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    # Distinct values for what starts equal, a learned carry among them.
    leaves, tree = jax.tree.flatten(params)
    params = tree.unflatten([p + 0.1 * RNG.normal(size=p.shape) for p in leaves])
    return params, state


def _x():
    return RNG.normal(size=(B, T, F))


def _segments(lengths, mask, resets):
    """Segments with steps, each as its row, whether a reset comes before it, and its steps."""
    found = []
    for row in range(B):
        steps, after_reset = [], False
        for t in range(T if lengths is None else lengths[row]):
            if resets[row, t]:
                found.append((row, after_reset, steps))
                steps, after_reset = [], True
            if mask is None or mask[row, t]:
                steps.append(t)
        found.append((row, after_reset, steps))
    return [segment for segment in found if segment[2]]


def _apart(layer, params, state, x, segments, **kw):
    """Run the segments as a batch of padded sequences; return `(y, state)`, y as that of rows."""
    rows = np.concatenate([[row] * len(steps) for row, _, steps in segments]).astype(int)
    times = np.concatenate([steps for *_, steps in segments]).astype(int)
    which = np.concatenate([[i] * len(s[2]) for i, s in enumerate(segments)]).astype(int)
    place = np.concatenate([np.arange(len(steps)) for *_, steps in segments])
    packed = jnp.zeros((len(segments), T, F)).at[which, place].set(x[rows, times])
    n = np.array([len(steps) for *_, steps in segments])
    (y, _), state = layer.apply(params, state, packed, lengths=n, **kw)
    return jnp.zeros((B, T, y.shape[-1])).at[rows, times].set(y[which, place]), state


def _compare(layer, lengths, mask, resets, stats, made=None):
    params, state = made or _made(layer)
    x, segments = _x(), _segments(lengths, mask, resets)
    w = RNG.normal(size=(B, T, layer.features_out))

    def rows(params, x):
        (y, _), new = layer.apply(
            params, state, x, stats=stats, lengths=lengths, mask=mask, resets=resets
        )
        return jnp.sum(w * y), (y, new)

    def apart(params, x):
        y, new = _apart(layer, params, state, x, segments, stats=stats)
        return jnp.sum(w * y), (y, new)

    gots = jax.jit(jax.grad(rows, (0, 1), has_aux=True))(params, jnp.asarray(x))
    wants = jax.jit(jax.grad(apart, (0, 1), has_aux=True))(params, jnp.asarray(x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), gots, wants)
    return gots


@pytest.mark.parametrize("layer", few(LAYERS, "bn_lstm"))
def test_rows_are_their_segments_apart(layer, x64):
    _compare(layer, LENGTHS, MASK, RESETS, "batch")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lengths", "mask", "stats"),
    [
        ("bn_gru", None, None, "batch"),
        ("stack", LENGTHS, None, "running"),
        ("bidirectional", None, MASK, "running"),
        ("own_params", LENGTHS, MASK, "running"),
    ],
)
def test_rows_are_their_segments_apart_in_every_way(name, lengths, mask, stats, x64):
    layer = LAYERS[name]
    params, state = _made(layer)
    if stats == "running":  # statistics that differ from step to step
        leaves, tree = jax.tree.flatten(state)
        state = tree.unflatten([s + RNG.random(s.shape) for s in leaves])
    _compare(layer, lengths, mask, RESETS, stats, (params, state))


@pytest.mark.slow
def test_a_mask_alone_closes_the_gaps(x64):
    """Without resets a row is one segment, of the steps that count."""
    _compare(_BN_GRU, None, MASK, np.zeros((B, T), bool), "batch")


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


def _bn_lstm_by_rows(params, x, resets, counts, eps=1e-5):
    """The BN-LSTM's equations with statistics of each step of the rows; NumPy, two passes."""

    def norm(place, z, on):
        mean = z[on].mean(0)
        var = ((z[on] - mean) ** 2).mean(0)
        stats.setdefault(place, []).append((mean, var))
        y = (z - mean) / np.sqrt(var + eps) * params[place].scale
        return y if params[place].bias is None else y + params[place].bias

    stats, ys = {}, []
    c, h = (np.zeros((B, H)) + params["carry"][i] for i in range(2))
    for t in range(T):
        again, on = resets[:, t, None], counts[:, t]
        c, h = (np.where(again, params["carry"][i], v) for i, v in enumerate((c, h)))
        z = norm("norm_x", x[:, t] @ params["w_x"], on) + norm("norm_h", h @ params["w_h"], on)
        i, f, g, o = np.split(z + params["bias"], 4, axis=-1)
        new_c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        new_h = _sigmoid(o) * np.tanh(norm("norm_c", new_c, on))
        c, h = np.where(on[:, None], new_c, c), np.where(on[:, None], new_h, h)
        ys.append(np.where(on[:, None], new_h, 0))
    return np.stack(ys, 1), (c, h), stats


@pytest.mark.parametrize("steps", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_statistics_by_the_row_are_those_of_a_loop(steps, each_schedule, x64):
    layer = recurrent.bn_lstm(H, T, scale_init=0.3, learn_carry=True, decay=0.0, remat_steps=steps)
    params, state = _made(layer)
    x = _x()
    mask = MASK | (np.arange(B) < 2)[:, None] & (MASK.sum(0) < 2)  # two values for each statistic
    (y, carry), new = layer.apply(params, state, x, stats="batch", mask=mask, resets=RESETS)
    plain = jax.tree.map(np.asarray, params)
    want, (c, h), stats = _bn_lstm_by_rows(plain, x, RESETS, mask)
    np.testing.assert_allclose(y, want, **CLOSE)
    np.testing.assert_allclose(carry.c, c, **CLOSE)
    np.testing.assert_allclose(carry.h, h, **CLOSE)
    for place, values in stats.items():
        np.testing.assert_allclose(new[place].mean, [m for m, _ in values], **CLOSE)
        np.testing.assert_allclose(new[place].var, [v for _, v in values], **CLOSE)


@pytest.mark.parametrize("clock", ["row", "segment"])
def test_the_carry_is_that_of_the_last_segment(clock, x64):
    """Given, it is the start of the steps before the first reset, and of no others."""
    layer = recurrent.lstm(H, norm_h=recurrent.per_step(nj.layer_norm(), T, clock=clock))
    params, state = _made(layer)
    x, zero = _x(), jnp.zeros((B, H))
    carry = recurrent.LSTMCarry(c=zero + 1.0, h=zero - 1.0)
    (_, got), _ = layer.apply(
        params, state, x, stats="batch", carry=carry, lengths=LENGTHS, mask=MASK, resets=RESETS
    )
    np.testing.assert_array_equal(got.c[0], 0)  # a reset at its last step, which is skipped
    np.testing.assert_array_equal(got.h[2], -1)  # no step, and resets in the padding are none
    # Row 1, from its reset at step 4: no step counts but those of padding.
    np.testing.assert_array_equal(got.h[1], 0)
    # Of the first two steps of row 0 the given carry is the start.
    (y, _), _ = layer.apply(params, state, x, stats="batch", carry=carry, mask=MASK, resets=RESETS)
    alone = jax.tree.map(lambda v: v[:1], carry)
    (want, _), _ = layer.apply(params, state, x[:1, :2], stats="batch", carry=alone)
    np.testing.assert_allclose(y[:1, :2], want, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("clock", ["row", "segment"])
def test_a_mask_of_padding_is_lengths(clock, x64):
    layer = recurrent.stack([recurrent.bn_gru(H, T, clock=clock), recurrent.bn_gru(H, T)])
    params, state = _made(layer)
    x, mask = _x(), np.arange(T) < LENGTHS[:, None]
    spoiled = np.where(mask[..., None], x, np.nan)
    got = layer.apply(params, state, spoiled, stats="batch", mask=mask)
    want = layer.apply(params, state, x, stats="batch", lengths=LENGTHS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), got, want)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bn_lstm", "bidirectional"])
def test_time_major_and_devices(name, x64):
    """The same numbers with time first, and over four devices with `axis_name`."""
    layer = LAYERS[name]
    first = _time_major(layer)
    params, state = _made(layer)
    x = RNG.normal(size=(4, T, F))
    flags = {"resets": np.r_[RESETS, RESETS[:1]], "mask": np.r_[MASK, MASK[1:2]]}
    (y, _), want = layer.apply(params, state, x, stats="batch", **flags)
    (y_first, _), new = first.apply(
        params, state, x.swapaxes(0, 1), stats="batch", **{n: f.T for n, f in flags.items()}
    )
    np.testing.assert_allclose(y_first.swapaxes(0, 1), y, **CLOSE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), new, want)

    def local(x, resets, mask):
        (y, _), new = layer.apply(
            params, state, x, stats="batch", resets=resets, mask=mask, axis_name="data"
        )
        return y, new

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=(P("data"), P()))
    y_spread, new = jax.jit(mapped)(x, *flags.values())
    np.testing.assert_allclose(y_spread, y, **CLOSE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), new, want)


def _time_major(layer):
    if isinstance(layer, recurrent.Recurrent):
        return dataclasses.replace(layer, time_major=True)
    ways = {name: _time_major(getattr(layer, name)) for name in ("forward", "backward")}
    return dataclasses.replace(layer, **ways)


@pytest.mark.slow
def test_population_statistics_and_info_go_by_the_clock(x64):
    layer = _BN_GRU
    params, state = _made(layer)
    x, segments = _x(), _segments(None, MASK, RESETS)
    batch = {"x": jnp.asarray(x), "resets": RESETS, "mask": MASK}
    got = nj.population_statistics(layer, params, state, [batch])
    accumulating = nj.accumulate_statistics(state)
    _, apart = _apart(layer, params, accumulating, x, segments, stats="batch")
    want = nj.finalize_statistics(apart)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), got, want)
    info = layer.info(params, state, x, stats="batch", resets=RESETS, mask=MASK)
    longest = max(len(steps) for *_, steps in segments)
    lasting = [sum(len(s[2]) > k for s in segments) for k in range(longest)]
    counts = np.reshape(info.moments["norm_h"].count, (T, -1))[:, 0]
    np.testing.assert_array_equal(counts, [*lasting, *[0] * (T - longest)])
    assert info.gates["reset"].shape == (T,)


@pytest.mark.parametrize("clock", ["row", pytest.param("segment", marks=pytest.mark.slow)])
def test_noise_on_the_start_is_drawn_for_each_segment(clock):
    layer = recurrent.rnn(
        64, norm_h=recurrent.per_step(nj.identity(), 4, clock=clock), h0_noise=1.0
    )
    params, state = layer.init(jax.random.key(0), 1)
    x = jnp.zeros((1, 4, 1))
    (y, _), _ = layer.apply(
        params, state, x, stats="running", resets=jnp.ones((1, 4), bool), key=jax.random.key(1)
    )
    assert len({float(v) for v in y[0, :, 0]}) == 4
    # tanh of a rotation of noise of deviation 1.
    assert 0.4 < float(jnp.std(y)) < 0.9


def test_kernel_layers_fall_back_to_the_scan():
    layer = recurrent.bn_lstm(H, T, impl="kernel")
    plain = dataclasses.replace(layer, impl="xla")
    params, state = layer.init(jax.random.key(0), F)
    x = jnp.asarray(_x(), jnp.float32)
    (got, _), _ = layer.apply(params, state, x, stats="batch", resets=RESETS)
    (want, _), _ = plain.apply(params, state, x, stats="batch", resets=RESETS)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["resets", "mask"])
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (np.zeros((B, T), np.float32), "write {}.astype(bool)"),
        (np.zeros((B, T, 1), bool), "write {}[..., 0]"),
        (np.zeros((T, B), bool), "write {}.T"),
        (np.zeros((B,), bool), "must be [batch, time] of shape (3, 6)"),
    ],
)
def test_flags_that_do_not_fit_are_refused(name, flags, says):
    x = jnp.zeros((B, T, F))
    for layer in (recurrent.gru(H), recurrent.bidirectional(recurrent.gru(H))):
        params, state = layer.init(jax.random.key(0), F)
        with pytest.raises((TypeError, ValueError), match=re.escape(says.format(name))):
            unchecked(type(layer).apply)(layer, params, state, x, stats="batch", **{name: flags})


def test_clocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="clock="):
        unchecked(recurrent.per_step)(nj.batch_norm(), T, clock="steps")
    with pytest.raises(ValueError, match="norm_between"):
        recurrent.stack([recurrent.rnn(H)] * 2, norm_between=_segment())
    both = recurrent.lstm(H, norm_x=recurrent.per_step(nj.batch_norm(), T), norm_h=_segment())
    params, state = both.init(jax.random.key(0), F)
    both.apply(params, state, jnp.ones((B, T, F)), stats="running")  # nothing to disagree about
    with pytest.raises(ValueError, match="one clock"):
        both.apply(params, state, jnp.ones((B, T, F)), stats="batch", resets=jnp.asarray(RESETS))
