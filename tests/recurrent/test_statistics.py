"""Per-step statistics against a NumPy float64 loop: for x, h and c, with and without lengths."""

from __future__ import annotations

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from normjax.base import Call
from normjax.recurrent import _input_terms
from tests._support import reference
from tests._support.few import few
from tests._support.properties import scattered
from tests.conftest import unchecked

B, T, F, H = 16, 12, 3, 5
LENGTHS = np.array([12, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 3, 2, 5])


def _case(layer, dtype, seed=0, steps=T):
    params, state = layer.init(jax.random.key(seed), F, dtype)
    # Away from the start values, so that no beta or gamma could be forgotten unnoticed.
    params = scattered(params, 0.1, seed)
    x = jax.random.normal(jax.random.key(seed + 1), (B, steps, F), dtype)
    return params, state, x


def _norms(params, given=None):
    def one(place):
        p = params[f"norm_{place}"]
        as64 = [None if v is None else np.asarray(v, np.float64) for v in p]
        return reference.StepNorm(*as64, given=None if given is None else given[place])

    return {place: one(place) for place in "xhc"}


def _seen(state, place):
    """Per-step statistics of one batch: an average with decay 0 keeps exactly the last batch."""
    return state[f"norm_{place}"]


@pytest.mark.parametrize("lengths", few({"full": None, "lengths": LENGTHS}, "lengths"))
@pytest.mark.parametrize(
    ("x64_on", "tolerance"), few({"float64": (True, 1e-9), "float32": (False, 1e-5)}, "float64")
)
def test_every_step_equals_the_loop(lengths, x64_on, tolerance, each_schedule):
    with jax.enable_x64(x64_on):
        layer = recurrent.bn_lstm(H, T, scale_init=0.3, decay=0.0)
        params, state, x = _case(layer, jnp.float64 if x64_on else jnp.float32)
        (y, carry), state = layer.apply(params, state, x, stats="batch", lengths=lengths)
        norms = _norms(params)
        want_y, want_h, want_c = reference.lstm(params, np.asarray(x), norms=norms, lengths=lengths)
        # Float32 rounding grows along the sequence, so it is held to the first steps only.
        upto = T if x64_on else 10
        for place in "xhc":
            got = _seen(state, place)
            for t in range(upto):
                mean, var, n = norms[place].seen[t]
                if not np.all(n > 0):  # nobody got this far: the start values stay
                    mean, var = np.zeros_like(mean), np.ones_like(var)
                np.testing.assert_allclose(got.mean[t], mean, rtol=tolerance, atol=tolerance)
                np.testing.assert_allclose(got.var[t], var, rtol=tolerance, atol=tolerance)
        if x64_on:
            np.testing.assert_allclose(y, want_y, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(carry.h, want_h, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(carry.c, want_c, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_allclose(y[:, :upto], want_y[:, :upto], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
def test_running_statistics_and_longer_sequences(x64, lengths):
    """Evaluation uses step t's statistics, and past max_steps the last ones."""
    layer = recurrent.bn_lstm(H, T, scale_init=0.3, decay=0.5, debias=False)
    params, state, x = _case(layer, jnp.float64)
    for seed in range(3):
        _, _, x = _case(layer, jnp.float64, seed)
        _, state = layer.apply(params, state, x, stats="batch")
    _, _, long = _case(layer, jnp.float64, 9, steps=3 * T)
    (y, carry), after = layer.apply(params, state, long, stats="running", lengths=lengths)
    given = {p: list(zip(*map(np.asarray, state[f"norm_{p}"]), strict=True)) for p in "xhc"}
    want, h, _ = reference.lstm(
        params, np.asarray(long), norms=_norms(params, given), lengths=lengths
    )
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(carry.h, h, rtol=1e-9, atol=1e-9)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state, after))


@pytest.mark.parametrize("beyond", ["last", "merge"])
def test_training_past_max_steps(x64, beyond):
    """Longer training sequences leave the last statistics alone, or are merged into them."""
    norm = nj.batch_norm(decay=0.0)
    seq = recurrent.per_step(norm, 4, beyond=beyond)
    params, state = seq.init((1, F), jnp.float64)
    x = jax.random.normal(jax.random.key(0), (9, B, F), jnp.float64)
    y, new = seq.apply(params, state, x, stats="batch")
    np.testing.assert_allclose(new.mean[:3], x[:3].mean(1), rtol=1e-12)
    tail = x[3] if beyond == "last" else x[3:].reshape(-1, F)
    np.testing.assert_allclose(new.mean[3], tail.mean(0), rtol=1e-12)
    np.testing.assert_allclose(new.var[3], tail.var(0), rtol=1e-12)
    want = np.stack([reference.batch_norm(x[t], eps=1e-5) for t in range(9)])
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-12)


def test_beyond_error_refuses():
    seq = recurrent.per_step(nj.batch_norm(), 4, beyond="error")
    params, state = seq.init((1, F))
    with pytest.raises(ValueError, match='write beyond="last"'):
        seq.apply(params, state, jnp.zeros((5, 2, F)), stats="running")


@pytest.mark.parametrize("how", ["pooled", "unbiased", "mean"])
@pytest.mark.parametrize("lengths", few({"full": None, "lengths": LENGTHS}, "lengths"))
def test_population_equals_collected_preactivations(x64, how, lengths):
    """Population statistics are those of the pre-activations that batch mode really saw."""
    layer = recurrent.bn_lstm(H, T, scale_init=0.3)
    params, state, _ = _case(layer, jnp.float64)
    data = [_case(layer, jnp.float64, seed)[2] for seed in range(4)]
    norms = _norms(params)
    for x in data:
        reference.lstm(params, np.asarray(x), norms=norms, lengths=lengths)
    batches = data if lengths is None else [{"x": x, "lengths": lengths} for x in data]
    got = nj.population_statistics(layer, params, state, batches, how=how)
    for place in "xhc":
        # seen: [batches * T] of (mean, var, n)
        mean, var, n = (
            np.stack(v).reshape(4, T, -1).astype(float)
            for v in zip(*norms[place].seen, strict=True)
        )
        some = n.sum(0) > 0
        if how == "pooled":
            want_mean = (n * mean).sum(0) / np.maximum(n.sum(0), 1)
            want_var = (n * (var + (mean - want_mean) ** 2)).sum(0) / np.maximum(n.sum(0), 1)
        else:
            want_mean, want_var = mean.mean(0), var.mean(0)
            if how == "unbiased":  # the same lengths in every batch; of one value there is none
                want_var = np.where(n[0] > 1, (var * n / np.maximum(n - 1, 1)).mean(0), 1)
        got_place = got[f"norm_{place}"]
        np.testing.assert_allclose(
            got_place.mean, np.where(some, want_mean, 0), rtol=1e-9, atol=1e-9
        )
        np.testing.assert_allclose(got_place.var, np.where(some, want_var, 1), rtol=1e-9, atol=1e-9)


def test_population_with_upstream_in_running_mode(x64):
    """As an option, what stands before a norm uses its running statistics meanwhile."""
    layer = recurrent.bn_lstm(H, T, scale_init=0.3, decay=0.5, debias=False)
    params, state, x = _case(layer, jnp.float64)
    _, state = layer.apply(params, state, x, stats="batch")
    data = [_case(layer, jnp.float64, seed)[2] for seed in (5, 6)]
    given = {p: list(zip(*map(np.asarray, state[f"norm_{p}"]), strict=True)) for p in "xhc"}
    norms = _norms(params, given)
    reference.lstm(params, np.concatenate(data), norms=norms)
    got = nj.population_statistics(layer, params, state, data, upstream="running")
    for place in "xhc":
        mean, var, _ = zip(*norms[place].seen, strict=True)
        np.testing.assert_allclose(got[f"norm_{place}"].mean, mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got[f"norm_{place}"].var, var, rtol=1e-9, atol=1e-9)
    default = nj.population_statistics(layer, params, state, data)
    assert not np.allclose(default["norm_h"].mean, got["norm_h"].mean)


def test_shared_statistics_pool_all_steps(x64):
    seq = recurrent.shared(nj.batch_norm(decay=0.0))
    params, state = seq.init((1, F), jnp.float64)
    x = jax.random.normal(jax.random.key(0), (T, B, F), jnp.float64) * 3 + 1
    mask = (np.arange(T)[:, None] < LENGTHS[None, :])[..., None]
    y, state = seq.apply(params, state, x, stats="batch", mask=jnp.asarray(mask))
    mean, var, _ = reference.moments(np.asarray(x), (0, 1), mask)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(state.var, var, rtol=1e-12)
    # While training, each step is still normalized by itself.
    np.testing.assert_allclose(y[0][mask[0, :, 0]].mean(0), np.zeros(F), atol=1e-12)


def test_sequence_wise_takes_time_and_batch_together(x64):
    seq = recurrent.sequence_wise(nj.batch_norm(decay=0.0))
    params, state = seq.init((1, F), jnp.float64)
    x = jax.random.normal(jax.random.key(0), (T, B, F), jnp.float64) * 3 + 1
    mask = (np.arange(T)[:, None] < LENGTHS[None, :])[..., None]
    y, state = seq.apply(params, state, x, stats="batch", mask=jnp.asarray(mask))
    mean = reference.moments(np.asarray(x), (0, 1), mask)[0]
    np.testing.assert_allclose(state.mean, mean, rtol=1e-12)
    want = reference.batch_norm(np.asarray(x), eps=1e-5, axes=(0, 1), mask=mask)
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-12)


def test_an_all_padding_step_changes_nothing(x64):
    """Appending padding to every sequence leaves outputs, carry and statistics as they were."""
    layer = recurrent.bn_lstm(H, T + 4, scale_init=0.3, decay=0.5, debias=False)
    params, state, x = _case(layer, jnp.float64)
    lengths = jnp.asarray(np.clip(LENGTHS, 0, T))
    short = layer.apply(params, state, x, stats="batch", lengths=lengths)
    padded = jnp.pad(x, ((0, 0), (0, 4), (0, 0)), constant_values=jnp.nan)
    long = layer.apply(params, state, padded, stats="batch", lengths=lengths)
    np.testing.assert_allclose(long[0][0][:, :T], short[0][0], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(long[0][0][:, T:], 0)
    ours, theirs = (jax.tree.leaves((out[0][1], out[1])) for out in (long, short))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_nan_under_the_padding_reaches_no_gradient():
    layer = recurrent.bn_lstm(H, T, scale_init=0.3)
    params, state, x = _case(layer, jnp.float32)
    dirty = jnp.where(np.arange(T)[None, :, None] < LENGTHS[:, None, None], x, jnp.nan)

    def loss(params, x):
        (y, carry), _ = layer.apply(params, state, x, stats="batch", lengths=LENGTHS)
        return (y**2).sum() + carry.c.sum()

    clean = jax.grad(loss)(params, jnp.where(jnp.isnan(dirty), 0, dirty))
    grads = jax.grad(loss)(params, dirty)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()


@pytest.mark.parametrize("features", few({"8": 8, "3": 3, "1": 1}, "1"))
@pytest.mark.parametrize(
    "lengths",
    [pytest.param(None, marks=pytest.mark.slow), np.array([6, 1, 4, 3, 6, 2])],
    ids=["full", "lengths"],
)
def test_input_terms_made_ahead_or_in_the_scan_are_the_same(x64, lengths, features, force_schedule):
    """What one CPU does step by step, devices and accelerators do at once: same numbers."""
    norms = {
        "norm_x": recurrent.per_step(nj.batch_norm(), 6, share_params=False),
        "norm_xn": nj.layer_norm(),
        "norm_h": recurrent.per_step(nj.batch_norm(), 6),
    }
    whole = recurrent.sequence_wise(nj.batch_norm())
    layers = (recurrent.gru(4, **norms), recurrent.lstm(4), recurrent.rnn(4, norm_x=whole))
    made = [layer.init(jax.random.key(0), features, jnp.float64) for layer in layers]
    x = jax.random.normal(jax.random.key(1), (6, 6, features), jnp.float64)

    def run(params, x):
        total, states = 0.0, []
        for layer, own, (_, state) in zip(layers, params, made, strict=True):
            (y, _), new = layer.apply(own, state, x, stats="batch", lengths=lengths)
            total, states = total + jnp.sum(jnp.sin(y)), [*states, new]
        return total, states

    found = []
    for schedule in get_args(_input_terms.InputSchedule):
        force_schedule(schedule)
        grad = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
        found.append(grad([params for params, _ in made], x))
    for other in found[1:]:
        for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("features", "told", "axis_name", "schedule"),
    [
        (3, None, None, "in_loop"),
        (8, None, None, "measure_in_loop"),
        (3, None, "devices", "before_loop"),
        (3, "measure_in_loop", "devices", "measure_in_loop"),
    ],
)
def test_input_schedule_by_argument_and_shape(features, told, axis_name, schedule, monkeypatch):
    """And by no machine: a program that is exported is the same wherever it is traced."""
    monkeypatch.setattr(jax, "device_count", lambda: pytest.fail("asked for devices"))
    monkeypatch.setattr(jax, "default_backend", lambda: pytest.fail("asked for a backend"))
    layer = recurrent.lstm(4, norm_x=nj.layer_norm(), input_schedule=told)
    calls = {"norm_x": Call("batch", None, axis_name)}
    assert _input_terms.input_schedule(layer, jnp.ones((9, 4, features)), calls) == schedule


def test_an_unknown_input_schedule_is_told():
    with pytest.raises(ValueError, match=r"input_schedule='early'.*before_loop"):
        unchecked(recurrent.lstm)(4, input_schedule="early")


@pytest.mark.parametrize("norm", [nj.batch_norm(), nj.decorrelated_batch_norm()], ids=repr)
def test_counts_of_steps(norm):
    """Without padding every step counts the batch; with it, the sequences that reach the step."""
    layer = recurrent.rnn(4, norm_h=recurrent.per_step(norm, 5))
    params, state = layer.init(jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (6, 5, 3))
    info = layer.info(params, state, x, stats="batch")
    assert (np.asarray(info.moments["norm_h"].count) == 6).all()
    lengths = jnp.array([5, 1, 2, 3, 4, 0])
    info = layer.info(params, state, x, stats="batch", lengths=lengths)
    count = np.asarray(info.moments["norm_h"].count)
    np.testing.assert_array_equal(count.reshape(5, -1)[:, 0], [5, 4, 3, 2, 1])


def test_statistics_that_are_no_kind_of_their_own_travel_whole():
    """`ghost_batch_norm` keeps `Running` and measures a bundle: its counts are those it took."""
    norm = recurrent.per_step(nj.ghost_batch_norm(size=4), 5)
    layer = recurrent.rnn(4, norm_h=norm)
    params, state = layer.init(jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (6, 5, 3))
    measured = layer.info(params, state, x, stats="batch").moments["norm_h"]
    np.testing.assert_array_equal(measured.groups.count, np.full((5, 2, 4), 3))
    np.testing.assert_array_equal(measured.whole.count, np.full((5, 4), 6))


LATE = {
    "batch_norm": nj.batch_norm(),
    "decorrelated": nj.decorrelated_batch_norm(),
    "renorm": nj.batch_renorm(),
}
UNEVEN = np.array([6, 4, 6, 2, 6, 3, 6, 5, 6, 1, 6, 6, 6, 2, 6, 4])


@pytest.mark.parametrize("measure", ["running", "population"])
@pytest.mark.parametrize("norm", few(LATE, "batch_norm"))
def test_steps_that_no_sequence_reached_take_the_last_known_statistics(norm, measure):
    layer = recurrent.lstm(H, norm_h=recurrent.per_step(norm, max_steps=10))
    params, state, x = _case(layer, jnp.float32, steps=10)
    if measure == "running":
        _, state = layer.apply(params, state, 3 * x, stats="batch", lengths=UNEVEN)
    else:
        batch = {"x": 3 * x, "lengths": UNEVEN}
        state = nj.population_statistics(layer, params, state, [batch])
    start = layer.init(jax.random.key(0), F)[1]["norm_h"]
    for leaf, initial in zip(state["norm_h"], start, strict=True):
        np.testing.assert_array_equal(leaf[6:], initial[6:])  # tells these steps from the others
    known = jax.tree.map(lambda leaf: leaf.at[6:].set(leaf[5]), state)
    (want, _), _ = layer.apply(params, known, x, stats="running")
    (got, _), after = layer.apply(params, state, x, stats="running")
    np.testing.assert_array_equal(got, want)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    y, _ = layer.norm_h.apply(params["norm_h"], state["norm_h"], x @ params["w_x"], stats="running")
    other, _ = layer.norm_h.apply(
        params["norm_h"], known["norm_h"], x @ params["w_x"], stats="running"
    )
    np.testing.assert_array_equal(y, other)


@dataclasses.dataclass(frozen=True, repr=False)
class PositiveBatchNorm(type(nj.batch_norm())):
    """A user's norm that counts positive values alone: another count in each step."""

    def measure(self, params, x, call):
        return nj.moments(x, 0, mask=x > 0)


def test_counts_that_depend_on_the_data_are_those_of_each_step():
    norm = PositiveBatchNorm()
    layer = recurrent.rnn(3, norm_h=recurrent.per_step(norm, 4))
    params, state = layer.init(jax.random.key(0), 2)
    x = jax.random.normal(jax.random.key(1), (6, 4, 2))
    counts = layer.info(params, state, x, stats="batch").moments["norm_h"].count
    (y, _), new = layer.apply(params, state, x, stats="batch")
    # The hidden state before each step, by hand.
    h = jnp.concatenate([jnp.zeros((6, 1, 3)), y[:, :-1]], axis=1)
    want = ((h @ params["w_h"]) > 0).sum(0)
    np.testing.assert_array_equal(counts, want)
    # Nothing is positive in step 0: its statistics do not move.
    np.testing.assert_array_equal(new["norm_h"].var[0], 1.0)
    assert (np.asarray(new["norm_h"].var[1:]) != 1).any()
