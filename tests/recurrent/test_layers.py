"""Recurrent layers: equal to Flax without norms, equal to themselves however they are run."""

from __future__ import annotations

import dataclasses
import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import normjax as nj
from normjax import recurrent
from normjax._internal import _single
from tests._support import reference
from tests._support.few import few
from tests.conftest import unchecked

B, T, F, H = 8, 7, 3, 5
LENGTHS = np.array([7, 0, 1, 2, 3, 6, 7, 5])


def _x(dtype=jnp.float32, seed=1, shape=(B, T, F)):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def _bn(**kw):
    return recurrent.per_step(nj.batch_norm(scale_init=0.3, **kw), T)


LAYERS = {
    "lstm": recurrent.lstm(H),
    "bn_lstm": recurrent.bn_lstm(H, T, scale_init=0.3, learn_carry=True),
    "ln_lstm": recurrent.lstm(
        H, norm_x=nj.layer_norm(), norm_h=nj.layer_norm(), norm_c=nj.layer_norm()
    ),
    "bn_sum": recurrent.lstm(H, norm_sum=_bn()),
    "bn_shared": recurrent.lstm(H, norm_h=recurrent.shared(nj.batch_norm(scale_init=0.3))),
    "bn_sequence_wise": recurrent.lstm(H, norm_x=recurrent.sequence_wise(nj.batch_norm())),
    "bn_own_params": recurrent.lstm(
        H, norm_h=recurrent.per_step(nj.batch_norm(scale_init=0.3), T, share_params=False)
    ),
    "rnn": recurrent.rnn(H, recurrent_init="identity"),
    "bn_rnn": recurrent.rnn(H, norm_x=_bn(), norm_h=_bn(use_bias=False)),
    "bn_rnn_sum": recurrent.rnn(H, norm_sum=_bn()),
    "gru": recurrent.gru(H),
    "bn_gru": recurrent.gru(H, norm_x=_bn(), norm_h=_bn(), norm_xn=_bn(), norm_hn=_bn()),
    "stack": recurrent.stack(
        [recurrent.bn_lstm(H, T, scale_init=0.3), recurrent.rnn(H), recurrent.gru(H)],
        norm_between=recurrent.sequence_wise(nj.batch_norm()),
        residual=True,
    ),
    "bidirectional": recurrent.bidirectional(
        recurrent.bn_lstm(H, T, scale_init=0.3), recurrent.gru(H, norm_hn=_bn()), merge="sum"
    ),
}


def _time_major(layer):
    if isinstance(layer, recurrent.Recurrent):
        return dataclasses.replace(layer, time_major=True)
    if hasattr(layer, "layers"):
        return dataclasses.replace(layer, layers=tuple(map(_time_major, layer.layers)))
    ways = {name: _time_major(getattr(layer, name)) for name in ("forward", "backward")}
    return dataclasses.replace(layer, **ways)


# Seconds of compilation each, so the other layers are run by `make test-slow`.
few_layers = pytest.mark.parametrize("layer", few(LAYERS, "bn_lstm", "bn_gru", "ln_lstm"))
one_layer = pytest.mark.parametrize("layer", few(LAYERS, "bn_lstm"))


@pytest.mark.standard_numerics
@pytest.mark.parametrize("lengths", few({"full": None, "lengths": LENGTHS}, "lengths"))
@pytest.mark.parametrize("x64", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_without_norms_it_is_flax_lstm(lengths, x64, each_schedule):
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        layer = recurrent.lstm(H, forget_bias=1.0)
        params, state = layer.init(jax.random.key(0), F, dtype)
        rnn = nn.RNN(nn.OptimizedLSTMCell(H, param_dtype=dtype), return_carry=True)

        def flax(p, x):
            cell = {"params": {"cell": recurrent.to_flax(layer, p)}}
            return rnn.apply(cell, x, seq_lengths=lengths)

        def ours(p, x):
            return layer.apply(p, state, x, stats="running", lengths=lengths)[0]

        (c, h), y = flax(params, _x(dtype))
        got, carry = ours(params, _x(dtype))
        tolerance = {"rtol": 1e-12, "atol": 1e-12} if x64 else {"rtol": 1e-5, "atol": 1e-6}
        if lengths is not None:  # Flax leaves what it computed in the padding
            y = np.where(np.arange(T)[None, :, None] < lengths[:, None, None], y, 0)
            some = lengths > 0  # and takes the last step's carry for an empty sequence
            carry, c, h = carry._replace(c=carry.c[some], h=carry.h[some]), c[some], h[some]
        np.testing.assert_allclose(got, y, **tolerance)
        np.testing.assert_allclose(carry.h, h, **tolerance)
        np.testing.assert_allclose(carry.c, c, **tolerance)
        w = _x(dtype, seed=5, shape=(B, T, H))
        grads = (
            [
                jax.grad(lambda p, f=f, at=at: jnp.sum(w * f(p, _x(dtype))[at]))(params)
                for f, at in ((ours, 0), (flax, 1))
            ]
            if lengths is None
            else []
        )
        for a, b in zip(*map(jax.tree.leaves, grads), strict=True) if grads else ():
            np.testing.assert_allclose(a, b, rtol=1e-4 if not x64 else 1e-10, atol=1e-5)


@one_layer
def test_gradient_is_that_of_finite_differences(layer):
    """Forward, backward and second order of every layer, in float64, under padding."""
    with jax.enable_x64(True):
        params, state = layer.init(jax.random.key(0), F, jnp.float64)
        w = _x(jnp.float64, 5, (B, T, H))

        def loss(params, x):
            (y, _), _ = layer.apply(params, state, x, stats="batch", lengths=LENGTHS)
            return jnp.sum(w * y)

        args = (params, _x(jnp.float64))
        keys = iter(jax.random.split(jax.random.key(2), 64))
        v = jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape, a.dtype), args)
        move = lambda s: jax.tree.map(lambda a, d: a + s * d, args, v)  # noqa: E731
        # Five points: norms over the few rows that padding leaves are too curved for three.
        step, value = 2e-5, jax.jit(loss)
        near = value(*move(step)) - value(*move(-step))
        slope = (8 * near - value(*move(2 * step)) + value(*move(-2 * step))) / (12 * step)

        @jax.jit
        def ways(*args):
            grads = [jax.grad(f, argnums=(0, 1))(*args) for f in (loss, jax.checkpoint(loss))]
            return *grads, jax.jvp(loss, args, v)[1]

        grads, again, forward = ways(*args)
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(v), strict=True)
        np.testing.assert_allclose(sum(jnp.vdot(g, d) for g, d in pairs), slope, rtol=1e-6)
        np.testing.assert_allclose(forward, slope, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@one_layer
def test_time_major_jit_and_pickle_change_nothing(layer):
    params, state = layer.init(jax.random.key(0), F)
    (y, carry), new = layer.apply(params, state, _x(), stats="batch", lengths=LENGTHS)
    other = pickle.loads(pickle.dumps(layer))
    assert other == layer and hash(other) == hash(layer) and repr(other) == repr(layer)
    names = {n: getattr(recurrent, n) for n in recurrent.__all__}
    names |= {n: getattr(nj, n) for n in nj.__all__}
    assert eval(repr(layer), names) == layer
    swapped = _time_major(layer)
    run = jax.jit(swapped.apply, static_argnames="stats")
    (y2, carry2), new2 = run(params, state, _x().swapaxes(0, 1), stats="batch", lengths=LENGTHS)
    for a, b in zip(
        jax.tree.leaves((y, carry, new)),
        jax.tree.leaves((y2.swapaxes(0, 1), carry2, new2)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# Each layer by `jit` and `shard_map`; an axis of `pmap` and `vmap` is to a layer as the latter's.
SPREAD = {f"{name}-{how}": (LAYERS[name], how) for name in LAYERS for how in ("jit", "shard_map")}
SPREAD |= {
    f"{name}-{how}": (LAYERS[name], how)
    for name in ("bn_lstm", "stack")
    for how in ("pmap", "vmap")
}


@pytest.mark.parametrize(("layer", "how"), few(SPREAD, "bn_lstm-jit", "bn_lstm-shard_map"))
def test_sharded_equals_unsharded(layer, how):
    """Statistics over all devices, exact though the devices hold unequal numbers of steps."""
    with jax.enable_x64(True):
        params, state = layer.init(jax.random.key(0), F, jnp.float64)
        x, lengths = _x(jnp.float64), jnp.asarray(LENGTHS)
        w = _x(jnp.float64, 5, (B, T, H))

        def loss(params, x, lengths, w, axis_name=None):
            (y, _), new = layer.apply(
                params, state, x, stats="batch", lengths=lengths, axis_name=axis_name
            )
            return jnp.sum(w * y), new

        plain = jax.jit(jax.value_and_grad(loss, has_aux=True))
        want, want_grads = plain(params, x, lengths, w)
        mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
        if how == "jit":
            put = lambda v: jax.device_put(v, NamedSharding(mesh, P("d")))  # noqa: E731
            got, grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
                params, put(x), put(lengths), put(w)
            )
        elif how == "shard_map":

            def total(params, x, lengths, w):
                local, new = loss(params, x, lengths, w, "d")
                return jax.lax.psum(local, "d"), new

            mapped = jax.shard_map(
                total, mesh=mesh, in_specs=(P(), P("d"), P("d"), P("d")), out_specs=(P(), P())
            )
            got, grads = jax.jit(jax.value_and_grad(mapped, has_aux=True))(params, x, lengths, w)
        else:
            split = lambda v: v.reshape(4, B // 4, *v.shape[1:])  # noqa: E731
            local = functools.partial(loss, axis_name="d")
            grad = jax.value_and_grad(local, has_aux=True)
            mapper = functools.partial(jax.pmap if how == "pmap" else jax.vmap, axis_name="d")
            got, grads = mapper(
                lambda x, n, w: jax.tree.map(lambda g: jax.lax.psum(g, "d"), grad(params, x, n, w))
            )(split(x), split(lengths), split(w))
            got = (got[0][0], jax.tree.map(lambda s: s[0] / 4, got[1]))
            grads = jax.tree.map(lambda g: g[0], grads)
        for a, b in zip(
            jax.tree.leaves((got, grads)), jax.tree.leaves((want, want_grads)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@few_layers
def test_bfloat16_compute_keeps_float32_statistics(layer):
    params, state = layer.init(jax.random.key(1), F)
    (y, carry), new = layer.apply(params, state, _x(jnp.bfloat16), stats="batch", lengths=LENGTHS)
    (exact, _), kept = layer.apply(
        params, state, _x(jnp.bfloat16).astype(jnp.float32), stats="batch", lengths=LENGTHS
    )
    assert y.dtype == jnp.bfloat16
    assert all(v.dtype == jnp.bfloat16 for v in jax.tree.leaves(carry))
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(new))
    # A bfloat16 has 8 bits: after seven steps the outputs still agree to a few percent.
    far = np.linalg.norm(y.astype(jnp.float32) - exact)
    assert far < 0.05 * np.linalg.norm(exact)
    # Two roundings of a square: a variance has twice the relative error of a value.
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-7, atol=0.01)


ONES = {name: (layer, (1, 1, F)) for name, layer in LAYERS.items()}
for name in ("bn_lstm", "bidirectional"):
    ONES |= {f"{name}, {s}": (LAYERS[name], s) for s in ((1, T, F), (B, 1, F))}


@pytest.mark.parametrize(("layer", "shape"), few(ONES, "bn_lstm"))
def test_one_of_everything(layer, shape):
    """A batch of 1, one step: finite values and gradients in both modes."""
    params, state = layer.init(jax.random.key(0), F)
    for stats in ("batch", "running"):

        def loss(params, stats=stats):
            (y, carry), _ = layer.apply(params, state, _x(shape=shape), stats=stats)
            return jnp.sum(y**2) + sum(jnp.sum(c) for c in jax.tree.leaves(carry))

        with _single.allowed():
            value, grads = jax.jit(jax.value_and_grad(loss))(params)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_carry_continues_a_sequence(x64):
    layer = recurrent.lstm(H)
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    x = _x(jnp.float64)
    (y, last), _ = layer.apply(params, state, x, stats="running")
    (first, carry), _ = layer.apply(params, state, x[:, :3], stats="running")
    (rest, end), _ = layer.apply(params, state, x[:, 3:], stats="running", carry=carry)
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), y, rtol=1e-12)
    np.testing.assert_allclose(end.c, last.c, rtol=1e-12)


def test_learned_carry_and_noise():
    layer = recurrent.lstm(H, learn_carry=True, h0_noise=0.5)
    params, state = layer.init(jax.random.key(0), F)
    np.testing.assert_array_equal(params["carry"].h, 0)
    with pytest.raises(ValueError, match="key=key"):
        layer.apply(params, state, _x(), stats="running")
    nothing = jnp.zeros((1000,), jnp.int32)
    x = _x(shape=(1000, T, F))
    (_, carry), _ = layer.apply(
        params, state, x, stats="running", lengths=nothing, key=jax.random.key(1)
    )
    assert abs(float(carry.h.std()) - 0.5) < 0.02  # 5000 draws
    np.testing.assert_array_equal(carry.c, 0)
    grads = jax.grad(
        lambda p: layer.apply(p, state, _x(), stats="running", key=jax.random.key(1))[0][0].sum()
    )(params)
    assert np.abs(grads["carry"].h).min() > 0 and np.abs(grads["carry"].c).min() > 0


def test_plain_rnn_equals_the_loop(x64, each_schedule):
    for name, act in {"tanh": np.tanh, "relu": lambda z: np.maximum(z, 0)}.items():
        layer = recurrent.rnn(H, activation=name, norm_sum=_bn())
        params, state = layer.init(jax.random.key(0), F, jnp.float64)
        (y, h), _ = layer.apply(params, state, _x(jnp.float64), stats="batch", lengths=LENGTHS)
        norm = reference.StepNorm(*(np.asarray(v) for v in params["norm_sum"]))
        want, last = reference.rnn(
            params,
            np.asarray(_x(jnp.float64)),
            activation=act,
            norms={"sum": norm},
            lengths=LENGTHS,
        )
        np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(h, last, rtol=1e-9, atol=1e-12)
    clipped = recurrent.rnn(H, activation="clipped_relu")
    params, state = clipped.init(jax.random.key(0), F, jnp.float64)
    (y, _), _ = clipped.apply(params, state, 1e3 * _x(jnp.float64), stats="running")
    assert float(y.max()) == 20.0 and float(y.min()) == 0.0


def test_published_structure_of_bn_lstm():
    """43,010 parameters with the paper's softmax; one bias; forget bias 1; gammas 0.1."""
    layer = recurrent.bn_lstm(100, max_steps=784, learn_carry=True, recurrent_init="identity")
    params, state = layer.init(jax.random.key(0), 1)
    count = sum(v.size for v in jax.tree.leaves(params))
    assert count + 100 * 10 + 10 == 43_010
    assert params["norm_x"].bias is None and params["norm_h"].bias is None
    assert params["norm_c"].bias.shape == (100,)
    for place in ("norm_x", "norm_h", "norm_c"):
        np.testing.assert_array_equal(params[place].scale, np.float32(0.1))
        assert state[place].mean.shape[0] == 784
    i, f, g, o = jnp.split(params["bias"], 4)
    np.testing.assert_array_equal(jnp.concatenate([i, g, o]), 0)
    np.testing.assert_array_equal(f, 1)
    blocks = params["w_h"].reshape(100, 4, 100)
    np.testing.assert_array_equal(blocks[:, 2], np.eye(100, dtype=np.float32))
    gates = blocks[:, jnp.array([0, 1, 3])].reshape(100, 300)
    np.testing.assert_allclose(gates @ gates.T, np.eye(100), atol=1e-5)


def _equations(jaxpr):
    """Equations of a jaxpr and of all that it calls."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [v for p in eqn.params.values() for v in (p if isinstance(p, tuple) else (p,))]
        inner = [getattr(v, "jaxpr", v) for v in inner]
        total += 1 + sum(_equations(v) for v in inner if hasattr(v, "eqns"))
    return total


def test_the_program_does_not_grow_with_time():
    def size(steps):
        layer = recurrent.bn_lstm(H, steps)
        params, state = layer.init(jax.random.key(0), F)
        x = jnp.zeros((B, steps, F))
        step = lambda p: layer.apply(p, state, x, stats="batch")[0][0].sum()  # noqa: E731
        return _equations(jax.make_jaxpr(jax.grad(step))(params).jaxpr)

    assert size(5) == size(50) > 100


MISTAKES = [
    ("lstm", (H,), {"norm_h": nj.batch_norm()}, ValueError, r"per_step\(batch_norm\(\), max"),
    (
        "lstm",
        (H,),
        {"norm_h": recurrent.sequence_wise(nj.batch_norm())},
        ValueError,
        "norm_h sees one step at a time",
    ),
    ("lstm", (H,), {"norm_c": "batch_norm"}, TypeError, "is not a norm: write for example"),
    ("lstm", (0,), {}, ValueError, "hidden=0 must be a positive integer"),
    ("lstm", (H,), {"kernel_init": "ortogonal"}, ValueError, "did you mean 'orthogonal'"),
    ("rnn", (H,), {"activation": "tahn"}, ValueError, "did you mean 'tanh'"),
    ("per_step", (nj.batch_norm(), 0), {}, ValueError, "max_steps=0 must be"),
    ("per_step", (nj.batch_norm, 3), {}, TypeError, "lifts a norm such as batch_norm"),
    ("per_step", (nj.batch_norm(), 3), {"beyond": "lst"}, ValueError, "did you mean 'last'"),
    ("sequence_wise", (nj.batch_norm(axes=(0,)),), {}, ValueError, "leave axes=None"),
]


@pytest.mark.parametrize(("make", "args", "keywords", "error", "message"), MISTAKES)
def test_mistakes_of_structure(make, args, keywords, error, message):
    with pytest.raises(error, match=message):
        unchecked(getattr(recurrent, make))(*args, **keywords)


def test_replace_is_checked_and_lifts():
    layer = recurrent.bn_lstm(H, T)
    plain = dataclasses.replace(layer, norm_h=nj.layer_norm())
    assert plain == dataclasses.replace(layer, norm_h=recurrent.shared(nj.layer_norm()))
    assert dataclasses.replace(layer) == layer
    both = recurrent.bidirectional(layer)
    wrong = [
        (layer, {"hidden": 0}, "positive integer"),
        (layer, {"norm_c": nj.batch_norm()}, "keeps statistics"),
        (layer, {"zoneout_c": 1.0}, "a rate below 1"),
        (layer, {"impl": "kernels"}, "did you mean 'kernel'"),
        (recurrent.stack([layer]), {"dropout": 2.0}, "dropout=2.0"),
        (recurrent.stack([layer]), {"layers": ()}, "at least one"),
        (both, {"merge": "sum", "backward": recurrent.lstm(H + 1)}, "needs equal widths"),
        (layer.norm_h, {"max_steps": 0}, "positive integer"),
    ]
    for value, change, message in wrong:
        with pytest.raises(ValueError, match=message):
            unchecked(dataclasses.replace)(value, **change)


CALLS = [
    ({"x": jnp.zeros((B, F))}, ValueError, r"takes x as \[batch, time, features\]"),
    ({"x": jnp.zeros((B, T, F + 1))}, ValueError, "has 4 features and the layer was made for 3"),
    ({"x": jnp.zeros((B, T, F), int)}, TypeError, "astype"),
    ({"x": jnp.zeros((B, 0, F))}, ValueError, "is empty"),
    ({"lengths": jnp.full((B,), T + 1)}, ValueError, "do not fit sequences of 7 steps"),
    ({"lengths": jnp.ones((B, T), int)}, ValueError, "must be that of the batch"),
    ({"lengths": jnp.ones((B,))}, TypeError, "must be integers"),
    ({"carry": jnp.zeros((B, H))}, ValueError, "must be LSTMCarry of shapes"),
    ({"carry": (jnp.zeros((B, H)),) * 2}, TypeError, r"write carry=LSTMCarry\(c=…, h=…\)"),
    ({"state": {}}, ValueError, "that init of this layer returned"),
    ({"state": ()}, ValueError, "the state has \\[\\], and lstm needs"),
    ({"stats": "train"}, ValueError, 'write stats="batch"'),
    ({"stats": True}, ValueError, 'write stats="batch" .* or stats="running"'),
    ({"hyper": {"decya": 0.5}}, ValueError, "did you mean 'decay'"),
]


@pytest.mark.parametrize(("change", "error", "message"), CALLS)
def test_mistakes_of_a_call(change, error, message):
    layer = recurrent.bn_lstm(H, T)
    params, state = layer.init(jax.random.key(0), F)
    call = {"params": params, "state": state, "x": _x(), "stats": "batch"} | change
    with pytest.raises(error, match=message):
        unchecked(type(layer).apply)(layer, **call)


def test_decay_may_vary_during_training():
    layer = recurrent.bn_lstm(H, T)
    params, state = layer.init(jax.random.key(0), F)
    _, new = layer.apply(params, state, _x(), stats="batch", hyper={"decay": jnp.float32(1.0)})
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_another_layer_made_is_refused():
    x = jnp.ones((2, 3, 1))
    bn, ln = recurrent.bn_lstm(4, 3), recurrent.ln_lstm(4)
    made = {layer: layer.init(jax.random.key(0), 1) for layer in (bn, ln)}
    with pytest.raises(ValueError, match=r"norm_x=.* keeps none and was given .*Running: pass"):
        ln.apply(made[ln][0], made[bn][1], x, stats="running")
    with pytest.raises(ValueError, match=r"norm_x=.* keeps statistics and was given tuple: pass"):
        bn.apply(made[bn][0], made[ln][1], x, stats="batch")
    with pytest.raises(ValueError, match="those of 4 units and this lstm has 8"):
        recurrent.bn_lstm(8, 3).apply(*made[bn], x, stats="batch")


@pytest.mark.parametrize("norm", [None, nj.layer_norm()], ids=["plain", "normalized"])
def test_params_of_another_cell_are_told(norm):
    x = jnp.ones((2, 5, 3))
    cells = {"an lstm": recurrent.lstm, "a gru": recurrent.gru, "an rnn": recurrent.rnn}
    layers = {name: make(4, norm_x=norm, norm_h=norm) for name, make in cells.items()}
    for name, layer in layers.items():
        for other, made in layers.items():
            given = made.init(jax.random.key(0), 3)
            if other == name:
                layer.apply(*given, x, stats="batch")
                continue
            with pytest.raises(ValueError, match=rf"look like those of {other}, with w_h of shape"):
                layer.apply(*given, x, stats="batch")


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (recurrent.lstm(4), "bias"),
        (recurrent.gru(4), "bias_hn"),
        (recurrent.rnn(4, learn_carry=True), "carry"),
    ],
    ids=["bias", "bias_hn", "carry"],
)
def test_a_missing_weight_is_named(layer, name):
    params, state = layer.init(jax.random.key(0), 3)
    del params[name]
    with pytest.raises(ValueError, match=rf"{layer.factory} needs \[.*'{name}'.*\] in params"):
        layer.apply(params, state, jnp.ones((2, 5, 3)), stats="batch")
