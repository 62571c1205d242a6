"""GRU, stacks, directions, noise and conversions, against loops and other libraries."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from tests._support import reference
from tests._support.few import few
from tests._support.properties import scattered
from tests.conftest import unchecked

B, T, F, H = 8, 7, 3, 5
LENGTHS = np.array([7, 0, 1, 2, 3, 6, 7, 5])


def _x(dtype=jnp.float64, seed=1):
    return jax.random.normal(jax.random.key(seed), (B, T, F), dtype)


def _bn():
    return recurrent.per_step(nj.batch_norm(scale_init=0.3), T)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
def test_gru_equals_the_loop(x64, lengths):
    layer = recurrent.gru(H, norm_x=_bn(), norm_h=_bn(), norm_xn=_bn(), norm_hn=_bn())
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    params = scattered(params, 0.3, 3)
    (y, h), _ = layer.apply(params, state, _x(), stats="batch", lengths=lengths)
    norms = {
        k: reference.StepNorm(*(np.asarray(v) for v in params[f"norm_{k}"]))
        for k in ("x", "h", "xn", "hn")
    }
    want, last = reference.gru(params, np.asarray(_x()), norms=norms, lengths=lengths)
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(h, last, rtol=1e-9, atol=1e-12)


@pytest.mark.standard_numerics
@pytest.mark.parametrize(
    ("layer", "cell"),
    [
        (recurrent.lstm(H), nn.LSTMCell(H)),
        (recurrent.gru(H), nn.GRUCell(H)),
        (recurrent.rnn(H), nn.SimpleCell(H)),
    ],
    ids=["lstm", "gru", "rnn"],
)
def test_without_norms_they_are_flax_cells(layer, cell):
    params, state = layer.init(jax.random.key(0), F)
    params = scattered(params, 0.3, 3)
    (y, _), _ = layer.apply(params, state, _x(jnp.float32), stats="running")
    theirs = recurrent.to_flax(layer, params)
    want = nn.RNN(cell).apply({"params": {"cell": theirs}}, _x(jnp.float32))
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    made = nn.RNN(cell).init(jax.random.key(0), _x(jnp.float32))["params"]["cell"]
    assert jax.tree.map(jnp.shape, dict(made)) == jax.tree.map(jnp.shape, theirs)
    back = recurrent.from_flax(layer, theirs, params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), back, params))


@pytest.mark.parametrize("name", few(["lstm", "gru", "rnn"], "lstm", "gru"))
@pytest.mark.parametrize("directions", few({"1": 1, "2": 2}, "2"))
def test_without_norms_they_are_torch_modules(x64, name, directions):
    torch = pytest.importorskip("torch", reason="torch is absent: make peers")
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[name](
        F, H, num_layers=2, batch_first=True, bidirectional=directions == 2, dtype=torch.float64
    )
    one = getattr(recurrent, name)(H)
    whole = recurrent.bidirectional(one) if directions == 2 else one
    net = recurrent.stack([whole, whole])
    params, state = net.init(jax.random.key(0), F, jnp.float64)
    for i in range(2):
        at = f"layer_{i}"
        for way, suffix in (("forward", f"_l{i}"), ("backward", f"_l{i}_reverse"))[:directions]:
            ours = params[at][way] if directions == 2 else params[at]
            new = recurrent.from_torch(one, module.state_dict(), ours, suffix)
            again = recurrent.to_torch(one, new, suffix)
            np.testing.assert_array_equal(
                again[f"weight_hh{suffix}"], module.state_dict()[f"weight_hh{suffix}"]
            )
            if directions == 2:
                params[at][way] = new
            else:
                params[at] = new
    lengths = np.maximum(LENGTHS, 1)  # torch refuses an empty sequence
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(np.array(_x())), lengths, batch_first=True, enforce_sorted=False
    )
    with torch.no_grad():
        out, _ = module(packed)
        want, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
    (y, _), _ = net.apply(params, state, _x(), stats="running", lengths=lengths)
    np.testing.assert_allclose(y, want.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_a_torch_module_without_biases_has_biases_of_0(x64, name):
    torch = pytest.importorskip("torch", reason="torch is absent: make peers")
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[name](
        F, H, bias=False, batch_first=True, dtype=torch.float64
    )
    layer = getattr(recurrent, name)(H)
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    params = {**params, "bias": jnp.ones_like(params["bias"])}  # what is replaced
    params = recurrent.from_torch(layer, module.state_dict(), params)
    (y, _), _ = layer.apply(params, state, _x(), stats="running")
    with torch.no_grad():
        want, _ = module(torch.from_numpy(np.array(_x())))
    np.testing.assert_allclose(y, want.numpy(), rtol=1e-9, atol=1e-12)


def test_weights_of_torch_that_are_missing_are_named():
    layer = recurrent.rnn(H)
    params, _ = layer.init(jax.random.key(0), F)
    tensors = recurrent.to_torch(layer, params)
    with pytest.raises(ValueError, match=r"lack \['weight_hh_l1', 'weight_ih_l1'\]"):
        recurrent.from_torch(layer, tensors, params, suffix="_l1")
    without = {name: v for name, v in tensors.items() if "bias" not in name}
    assert not np.any(recurrent.from_torch(layer, without, params)["bias"])


def test_the_backward_layer_reverses_only_what_is_not_padding(x64):
    layer = recurrent.bidirectional(recurrent.bn_lstm(H, T, scale_init=0.3))
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    (y, carry), new = layer.apply(params, state, _x(), stats="batch", lengths=LENGTHS)
    one = layer.backward
    turned = jnp.asarray(reference.reverse(np.asarray(_x()), LENGTHS))
    (back, end), kept = one.apply(
        params["backward"], state["backward"], turned, stats="batch", lengths=LENGTHS
    )
    np.testing.assert_array_equal(y[..., H:], reference.reverse(np.asarray(back), LENGTHS))
    np.testing.assert_array_equal(carry[1].h, end.h)
    np.testing.assert_array_equal(new["backward"]["norm_h"].mean, kept["norm_h"].mean)
    (ahead, _), _ = one.apply(
        params["forward"], state["forward"], _x(), stats="batch", lengths=LENGTHS
    )
    np.testing.assert_array_equal(y[..., :H], ahead)


@pytest.mark.parametrize("lift", [recurrent.sequence_wise, lambda n: recurrent.per_step(n, T)])
def test_a_stack_is_its_layers_one_after_another(x64, lift):
    """Norms between layers see no padding; the residual and the zeros past the end hold."""
    between = lift(nj.batch_norm(decay=0.0))
    one = recurrent.lstm(F, norm_x=lift(nj.batch_norm(decay=0.0)))
    net = recurrent.stack([one, one], norm_between=between, residual=True)
    params, state = net.init(jax.random.key(0), F, jnp.float64)
    params = scattered(params, 0.3, 3)
    (y, carry), new = net.apply(params, state, _x(), stats="batch", lengths=LENGTHS)
    live = np.arange(T)[None, :, None] < LENGTHS[:, None, None]
    (first, c0), s0 = one.apply(
        params["layer_0"], state["layer_0"], _x(), stats="batch", lengths=LENGTHS
    )
    first = np.where(live, np.asarray(first) + np.asarray(_x()), 0)
    axes = (0, 1) if lift is recurrent.sequence_wise else 0
    scale, bias = (np.asarray(v) for v in params["norm_0"])
    mean, var, _ = reference.moments(first, axes, live)
    normed = reference.batch_norm(first, scale, bias, eps=1e-5, axes=axes, mask=live)
    normed = jnp.asarray(np.where(live, normed, 0))
    (second, c1), s1 = one.apply(
        params["layer_1"], state["layer_1"], normed, stats="batch", lengths=LENGTHS
    )
    want = np.where(live, np.asarray(second) + np.asarray(normed), 0)
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(new["norm_0"].mean, mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(new["norm_0"].var, var, rtol=1e-9, atol=1e-12)
    got = jax.tree.leaves((carry, new["layer_0"], new["layer_1"]))
    for a, b in zip(got, jax.tree.leaves(((c0, c1), s0, s1)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_population_reaches_every_norm_of_a_stack(x64):
    one = recurrent.bn_lstm(H, T, scale_init=0.3)
    net = recurrent.stack([one, recurrent.bidirectional(one)], norm_between=_bn())
    params, state = net.init(jax.random.key(0), F, jnp.float64)
    batches = [{"x": _x(seed=s), "lengths": LENGTHS} for s in (4, 5)]
    new = nj.population_statistics(net, params, state, batches)
    parts = [
        net.apply(params, nj.accumulate_statistics(state), stats="batch", **batch)[1]
        for batch in batches
    ]
    merged = jax.tree.map(
        lambda a, b: nj.merge(a.measured, b.measured),
        *parts,
        is_leaf=lambda v: isinstance(v, nj.Accumulator),
    )
    norms = jax.tree.leaves(new, is_leaf=lambda v: isinstance(v, nj.Running))
    want = jax.tree.leaves(merged, is_leaf=lambda v: isinstance(v, nj.Moments))
    assert len(norms) == len(want) == 3 * 3 + 1
    for run, m in zip(norms, want, strict=True):
        some = m.count > 0
        np.testing.assert_allclose(run.mean, np.where(some, m.mean, 0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(run.var, np.where(some, m.var, 1), rtol=1e-9, atol=1e-12)


def test_zoneout_holds_units_and_evaluates_to_its_mean(x64):
    """Krueger et al.: h_t = z h_{t-1} + (1 - z) h~_t, and likewise c; the mean without a key."""
    layer = recurrent.lstm(H, zoneout_h=0.3, zoneout_c=0.6)
    plain = recurrent.lstm(H)
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    x = _x()
    carry = recurrent.LSTMCarry(jnp.ones((B, H), jnp.float64), jnp.full((B, H), 0.5, jnp.float64))
    one = x[:, :1]
    (_, new), _ = plain.apply(params, state, one, stats="running", carry=carry)
    (_, mean), _ = layer.apply(params, state, one, stats="running", carry=carry)
    np.testing.assert_allclose(mean.h, 0.3 * carry.h + 0.7 * new.h, rtol=1e-12)
    np.testing.assert_allclose(mean.c, 0.6 * carry.c + 0.4 * new.c, rtol=1e-12)

    def draw(key):
        return layer.apply(params, state, one, stats="batch", carry=carry, key=key)[0][1]

    drawn = jax.vmap(draw)(jax.random.split(jax.random.key(1), 4000))
    for part, old, fresh, rate in ((drawn.h, 0.5, new.h, 0.3), (drawn.c, 1.0, new.c, 0.6)):
        held = np.asarray(part) == old
        assert np.all(held | np.isclose(part, fresh, rtol=1e-12))
        # 4000 * 40 draws: five standard errors.
        assert abs(held.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / held.size)


def test_recurrent_dropout_hides_the_same_units_all_along(x64):
    """Gal and Ghahramani: one mask a sequence on what the recurrent weights see."""
    layer, plain = recurrent.rnn(H, dropout_h=0.5), recurrent.rnn(H)
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    same, _ = layer.apply(params, state, _x(), stats="running")
    want, _ = plain.apply(params, state, _x(), stats="running")
    np.testing.assert_array_equal(same[0], want[0])  # no key, no dropout
    (y, _), _ = layer.apply(params, state, _x(), stats="batch", key=jax.random.key(2))
    # From the outputs, which show h, the factor of each unit follows by linear algebra.
    z = np.arctanh(np.asarray(y[:, 1:])) - np.asarray(_x() @ params["w_x"])[:, 1:]
    z = z - np.asarray(params["bias"])
    seen = z @ np.linalg.inv(np.asarray(params["w_h"]))
    factor = seen / np.asarray(y[:, :-1])
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:, :1], factor.shape), atol=1e-6)
    assert set(np.round(factor, 6).ravel().tolist()) == {0.0, 2.0}


def test_the_normalized_cell_can_be_carried(x64):
    layer = recurrent.lstm(H, norm_c=_bn(), carry_normalized=True)
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    (_, carry), _ = layer.apply(params, state, _x(), stats="batch")
    np.testing.assert_allclose(carry.c.mean(0), params["norm_c"].bias, atol=1e-12)
    plain = recurrent.lstm(H, norm_c=_bn())
    (_, other), _ = plain.apply(params, state, _x(), stats="batch")
    assert np.abs(other.c.mean(0)).min() > 1e-4


def test_dropout_between_layers_scales_what_it_keeps(x64):
    one = recurrent.rnn(H)
    net = recurrent.stack([one, one], dropout=0.5)
    params, state = net.init(jax.random.key(0), F, jnp.float64)
    params["layer_1"] = {**params["layer_1"], "w_h": jnp.zeros((H, H), jnp.float64)}
    (y, _), _ = net.apply(params, state, _x(), stats="batch", key=jax.random.key(1))
    (first, _), _ = one.apply(params["layer_0"], state["layer_0"], _x(), stats="running")
    z = np.arctanh(np.asarray(y)) - np.asarray(params["layer_1"]["bias"])
    factor = z @ np.linalg.inv(np.asarray(params["layer_1"]["w_x"])) / np.asarray(first)
    assert set(np.round(factor, 6).ravel().tolist()) == {0.0, 2.0}


NOISY = {
    "zoneout": recurrent.lstm(H, zoneout_c=0.5),
    "dropout": recurrent.gru(H, dropout_h=0.5),
    "with statistics": recurrent.bn_lstm(H, max_steps=5, zoneout_h=0.5),
    "in a stack": recurrent.stack([recurrent.rnn(H), recurrent.rnn(H, zoneout_h=0.5)]),
    "between": recurrent.stack([recurrent.rnn(H), recurrent.rnn(H)], dropout=0.5),
    "one direction": recurrent.bidirectional(recurrent.rnn(H), recurrent.rnn(H, dropout_h=0.5)),
    "reparametrized": nj.reparam(recurrent.lstm(H, dropout_h=0.5), {"w_h": nj.weight_norm()}),
}


@pytest.mark.parametrize("layer", few(NOISY, "zoneout", "between"))
def test_noise_needs_a_key_unless_the_call_wants_none(layer):
    x = _x(jnp.float32)
    params, state = layer.init(jax.random.key(0), F)
    key, other = jax.random.key(1), jax.random.key(2)

    def run(stats, **how):
        return layer.apply(params, state, x, stats=stats, **how)[0][0]

    for refused in (layer.apply, layer.info):
        with pytest.raises(ValueError, match=r'mode "batch": write apply\(…, key=key\), or noise='):
            refused(params, state, x, stats="batch")
        with pytest.raises(ValueError, match="draw with noise=True"):
            refused(params, state, x, stats="running", noise=True)
    for stats in ("batch", "running"):  # statistics and noise are two questions
        still = run(stats, noise=False)
        np.testing.assert_array_equal(run(stats, noise=False, key=key), still)
        drawn = run(stats, noise=True, key=key)
        assert np.abs(drawn - still).max() > 1e-3
        assert np.abs(drawn - run(stats, noise=True, key=other)).max() > 1e-3
    np.testing.assert_array_equal(run("batch", key=key), run("batch", noise=True, key=key))
    np.testing.assert_array_equal(run("running", key=key), run("running", noise=False))


def test_population_statistics_draw_where_a_batch_brings_a_key():
    layer, x = NOISY["with statistics"], _x(jnp.float32)
    params, state = layer.init(jax.random.key(0), F)
    still = nj.population_statistics(layer, params, state, [x])["norm_h"]
    accumulator = nj.accumulate_statistics(state)
    _, accumulator = layer.apply(params, accumulator, x, stats="batch", noise=False)
    want = nj.finalize_statistics(accumulator)["norm_h"]
    np.testing.assert_allclose(still.var, want.var, rtol=1e-5, atol=1e-7)
    noisy = nj.population_statistics(layer, params, state, [{"x": x, "key": jax.random.key(1)}])[
        "norm_h"
    ]
    assert np.abs(noisy.var - still.var).max() > 1e-4


def test_population_statistics_take_the_keywords_of_apply(monkeypatch):
    """Those that are no arrays too: flags, names and a solver; and `None`, as if left out."""
    layer, x, key = NOISY["with statistics"], _x(jnp.float32), jax.random.key(1)
    params, state = layer.init(jax.random.key(0), F)

    def take(batch, layer=layer, **more):
        return nj.population_statistics(layer, params, state, [batch], **more)

    def same(got, want):
        jax.tree.map(np.testing.assert_array_equal, got, want)

    still, noisy = take({"x": x}), take({"x": x, "key": key})
    same(take({"x": x, "key": key, "noise": True}), noisy)
    for keywords in (
        {"key": key, "noise": False},
        {"key": None},
        {"noise": None},
        {"carry": None, "axis_name": None, "hyper": None, "mask": None},
        {"hyper": {"decay": 0.5}, "solver": "scan"},
    ):
        same(take({"x": x, **keywords}), still)
    with pytest.raises(ValueError, match="noise=True: write apply"):
        take({"x": x, "noise": True})
    with pytest.raises(TypeError, match=r"got a set at \['solver'\] of a batch"):
        take({"x": x, "solver": {1}})

    # A solver as a value, where the first norm alone has statistics.
    layer = recurrent.gru(H, norm_x=recurrent.sequence_wise(nj.batch_norm()))
    params, state = layer.init(jax.random.key(0), F)
    traced, apply = [], type(layer).apply

    def count(*args, **keywords):
        traced.append(keywords.get("solver"))
        return apply(*args, **keywords)

    monkeypatch.setattr(type(layer), "apply", count)
    want = take({"x": x}, layer, upstream="running")
    for solver in ("scan", "newton", recurrent.newton(), recurrent.newton()):
        same(take({"x": x, "solver": solver}, layer, upstream="running"), want)
    assert {"scan", "newton", recurrent.newton()} <= set(traced)
    assert traced.count(recurrent.newton()) == traced.count("newton")  # equal ones share theirs


def test_population_statistics_of_a_function_take_names_beside_arrays():
    """A string is handed on as it is; numbers and flags stay arrays, which compile once."""
    norm = nj.batch_norm()
    params, state = norm.init((1, F))

    def model(params, state, batch, *, stats):
        assert isinstance(batch["name"], str) and isinstance(batch["shift"], jax.core.Tracer)
        assert isinstance(batch["flag"], jax.core.Tracer)
        return norm.apply(params, state, batch["x"] + batch["shift"], stats=stats)

    x = _x(jnp.float32)[:, 0]
    batch = {"x": x, "name": "digits", "shift": 2, "flag": True}
    got = nj.population_statistics(model, params, state, [batch, {**batch, "shift": 4}])
    np.testing.assert_allclose(got.mean, x.mean(0) + 3, rtol=1e-5)


ONE = recurrent.lstm(H)
MISTAKES = [
    (recurrent.stack, ([],), {}, ValueError, "no layer"),
    (recurrent.stack, ([nj.batch_norm()],), {}, TypeError, r"takes layers such as lstm\(100\)"),
    (
        recurrent.stack,
        ([ONE, recurrent.lstm(H, time_major=True)],),
        {},
        ValueError,
        "one time_major",
    ),
    (
        recurrent.stack,
        ([ONE, ONE],),
        {"norm_between": nj.batch_norm()},
        ValueError,
        "keeps statistics, so say which over time",
    ),
    (recurrent.stack, ([ONE],), {"dropout": 1}, ValueError, "a rate below 1"),
    (recurrent.lstm, (H,), {"zoneout_h": 1.5}, ValueError, "zoneout_h=1.5 must be a number in"),
    (
        recurrent.bidirectional,
        (ONE, recurrent.lstm(3)),
        {"merge": "sum"},
        ValueError,
        'write merge="concat"',
    ),
    (recurrent.bidirectional, (ONE,), {"merge": "ad"}, ValueError, "'concat' | 'sum'"),
    (recurrent.to_flax, (recurrent.stack([ONE]), {}), {}, TypeError, "one by one"),
]


@pytest.mark.parametrize(
    "net", [recurrent.stack([ONE, ONE]), recurrent.bidirectional(ONE)], ids=lambda n: n.factory
)
def test_params_and_state_of_one_layer_are_refused(net):
    params, state = ONE.init(jax.random.key(0), F)
    mine = net.init(jax.random.key(0), F)
    for wrong in ((params, mine[1]), (mine[0], state), (mine[0], ())):
        for call in (net.apply, net.info):
            with pytest.raises(ValueError, match=f"{net.factory} needs .* init of this layer"):
                call(*wrong, _x(jnp.float32), stats="running")


@pytest.mark.parametrize(("make", "args", "keywords", "error", "message"), MISTAKES)
def test_mistakes_say_what_to_write(make, args, keywords, error, message):
    with pytest.raises(error, match=message):
        unchecked(make)(*args, **keywords)
