"""`impl="cudnn"`: cuDNN's packing and semantics by JAX's reference of it, and what is lowered.

There is no GPU here. `rnn.lstm_ref` computes what `rnn.lstm` asks of cuDNN from the same vector of
weights, on a CPU, so that packing, carry and lengths are compared with the scan. What a program
for CUDA holds is seen with a stand-in for the one question to cuDNN, the size of its memory.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.experimental import rnn
from jax.interpreters import mlir
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxlib import gpu_rnn

import normjax as nj
from normjax import recurrent
from normjax.recurrent import _lstm_cudnn
from tests._support import properties

B, T, F, H = 5, 6, 3, 4
LENGTHS = jnp.array([6, 0, 3, 1, 5])
SIZES = "compute_rnn_workspace_reserve_space_sizes"


def make(**how):
    return recurrent.lstm(H, impl="cudnn", **how)


def started(layer):
    params, state = layer.init(jax.random.key(0), F)
    params = jax.tree.map(lambda v: v + 0.1 * jnp.cos(jnp.arange(v.size)).reshape(v.shape), params)
    return params, state, jax.random.normal(jax.random.key(1), (B, T, F))


def loss(layer, params, state, x, **how):
    (y, carry), _ = layer.apply(params, state, x, stats="batch", **how)
    ends = sum(jnp.sum(jnp.sin(v)) for v in jax.tree.leaves(carry))
    return jnp.sum(jnp.cos(y)) + ends, (y, carry)


@pytest.fixture
def fresh():
    """The recurrence keeps no function of another test, and of this one for no other."""
    _lstm_cudnn._recurrence.cache_clear()
    yield
    _lstm_cudnn._recurrence.cache_clear()


@pytest.fixture
def reference(monkeypatch, fresh):
    """JAX's reference in cuDNN's place, on a CPU; returns the lengths' dtype of each call."""
    called = []

    def lstm(x, h, c, weights, lengths, *, precision, dropout, **names):
        called.append(lengths.dtype)
        assert weights.shape == (rnn.get_num_params_in_lstm(**names),)
        unpacked = rnn.unpack_lstm_weights(weights, **names)
        sizes = names["input_size"], names["hidden_size"], names["num_layers"]
        return rnn.lstm_ref(x, h, c, *unpacked, lengths, *sizes, dropout, names["bidirectional"])

    # A function of this test's own: JAX keeps what it traced of one, with the reference inside.
    by_cudnn = _lstm_cudnn._cudnn
    monkeypatch.setattr(_lstm_cudnn, "_cudnn", lambda *args: by_cudnn(*args))
    monkeypatch.setattr(rnn, "lstm", lstm)
    monkeypatch.setattr(_lstm_cudnn, "PLATFORM", "cpu")
    return called


@pytest.fixture
def sizes(monkeypatch):
    """Answers for cuDNN when a program is lowered for CUDA; returns what it was asked."""
    asked = []
    monkeypatch.setattr(gpu_rnn, SIZES, lambda *a: asked.append(a) or (64, 128), raising=False)
    if gpu_rnn._cuda_rnn is None:  # JAX's plugin for CUDA, without which there is nothing to lose
        plugin = types.SimpleNamespace(build_rnn_descriptor=lambda *a: b"")
        for primitive, rule in (
            (rnn.rnn_fwd_p, gpu_rnn._rnn_fwd_lowering),
            (rnn.rnn_bwd_p, gpu_rnn._rnn_bwd_lowering),
        ):
            mlir.register_lowering(
                primitive, functools.partial(rule, plugin, "cu"), platform="cuda"
            )
    return asked


def lowered(function, *args, platforms=("cuda",)):
    """The program, and how often it has cuDNN's forward pass, backward pass, and a loop."""
    text = jax.jit(function).trace(*args).lower(lowering_platforms=platforms).as_text()
    names = "@cudnn_rnn_ffi", "@cudnn_rnn_bwd_ffi", "stablehlo.while"
    return text, tuple(text.count(name) for name in names)


@pytest.mark.parametrize(
    "lengths",
    [pytest.param(None, marks=pytest.mark.slow, id="whole"), pytest.param(LENGTHS, id="padded")],
)
def test_what_cudnn_is_given_makes_the_scans_values_and_gradients(lengths, reference):
    layer = make()
    params, state, x = started(layer)
    k1, k2 = jax.random.split(jax.random.key(2))
    carry = recurrent.LSTMCarry(c=jax.random.normal(k1, (B, H)), h=jax.random.normal(k2, (B, H)))

    def told(layer, params, x, carry):
        total = functools.partial(loss, layer, state=state, lengths=lengths)
        run = jax.value_and_grad(lambda p, x, c: total(p, x=x, carry=c), (0, 1, 2), has_aux=True)
        return run(params, x, carry)

    if lengths is not None:
        x = jnp.where(jnp.arange(T)[None, :, None] < lengths[:, None, None], x, jnp.nan)
    fast = jax.jit(functools.partial(told, layer))(params, x, carry)
    assert reference == [jnp.int32] * 2  # forward, and again before backward
    plain = jax.jit(functools.partial(told, dataclasses.replace(layer, impl="xla")))(
        params, x, carry
    )
    properties.same(fast, plain, rtol=1e-5, atol=1e-6)
    assert np.isfinite(fast[1][0]["w_x"]).all()


@pytest.mark.slow
def test_other_transformations_are_the_scans(reference):
    layer = make(learn_carry=True)
    params, state, x = started(layer)

    def told(layer, params, x):
        def total(params, x):
            return loss(layer, params, state, x, lengths=LENGTHS)[0]

        way = jax.tree.map(jnp.cos, (params, x))
        grad = jax.grad(total)
        return (
            jax.jvp(total, (params, x), way)[1],
            jax.jvp(grad, (params, x), way)[1],
            jax.vmap(grad, (None, 0))(params, jnp.stack([x, 2 * x])),
        )

    fast = jax.jit(functools.partial(told, layer))(params, x)
    assert reference
    plain = jax.jit(functools.partial(told, dataclasses.replace(layer, impl="xla")))(params, x)
    properties.same(fast, plain, rtol=1e-4, atol=1e-5)


def test_a_program_has_cudnn_on_cuda_and_the_scan_elsewhere(sizes):
    layer = make(time_major=True)
    params, state, x = started(layer)
    x = x.swapaxes(0, 1)

    def total(params, x):
        return loss(layer, params, state, x, lengths=LENGTHS)[0]

    text, counts = lowered(total, params, x)
    assert counts == (1, 0, 0)
    given = ["5x6x3", "1x5x4", "1x5x4", str(4 * H * (F + H + 2))]
    types_ = ", ".join(f"tensor<{shape}xf32>" for shape in given) + ", tensor<5xi32>"
    assert re.search(rf"@cudnn_rnn_ffi\(.*: \({types_}\) -> \(tensor<5x6x4xf32>", text)
    grad = jax.grad(total, (0, 1))
    # XLA merges the two passes forward of one program.
    assert lowered(grad, params, x)[1] == (2, 1, 0)
    assert set(sizes) == {(F, H, 1, B, T, 0.0, False, True)}
    for platform in ("cpu", "tpu"):
        assert lowered(grad, params, x, platforms=(platform,))[1] == (0, 0, 3)
    assert lowered(grad, params, x, platforms=("cpu", "cuda"))[1] == (2, 1, 3)
    # cuDNN has one set of weights a call, and no forward mode.
    assert lowered(jax.vmap(grad, (None, 0)), params, x[None])[1] == (0, 0, 3)
    assert lowered(lambda p, x: jax.jvp(total, (p, x), (p, x)), params, x)[1] == (1, 0, 1)


def test_composed_layers_have_cudnn_in_each_part(sizes):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    net = recurrent.stack([make(), recurrent.bidirectional(make())])
    params, state = net.init(jax.random.key(0), F)
    x, lengths = jnp.ones((8, T, F)), jnp.arange(8) % (T + 1)

    def total(params, x, lengths):
        return jax.lax.pmean(loss(net, params, state, x, lengths=lengths)[0], "data")

    split = jax.shard_map(
        total, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P(), check_vma=True
    )
    assert lowered(jax.grad(split), params, x, lengths)[1] == (6, 3, 0)
    assert {asked[3] for asked in sizes} == {2}  # the batch of one device


@pytest.mark.parametrize(
    ("name", "tf32"),
    [
        (None, True),
        ("default", True),
        ("tensorfloat32", True),
        ("highest", False),
        ("F32_F32_F32", False),
        ("TF32_TF32_F32_X3", False),
    ],
)
def test_products_are_no_coarser_than_the_scans(name, tf32, sizes):
    layer = make()
    params, state, x = started(layer)
    with jax.default_matmul_precision(name):
        lowered(functools.partial(loss, layer), params, state, x)
    assert {asked[-1] for asked in sizes} == {tf32}


@pytest.mark.parametrize(
    "how",
    [
        {"resets": jnp.zeros((B, T), bool)},
        {"mask": jnp.ones((B, T), bool), "lengths": LENGTHS},
        {"hidden_perturbation": jnp.zeros((B, T, H))},
        {"stats": "running", "solver": "newton"},
        {"dtype": jnp.bfloat16},
        {"info": True},
    ],
    ids=lambda how: next(iter(how)),
)
def test_what_cudnn_does_not_take_is_the_scans(how, sizes):
    layer, how = make(), {"stats": "batch"} | how
    params, state, x = started(layer)
    x = x.astype(how.pop("dtype", x.dtype))
    run = layer.info if how.pop("info", False) else layer.apply
    lowered(lambda x: run(params, state, x, **how), x)
    assert not sizes


def test_a_free_batch_is_the_scans(sizes, monkeypatch):
    # The checker of types that tests run under takes no symbol for an int.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    layer = make()
    params, state, _ = started(layer)
    x = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), T, F), jnp.float32)
    run = jax.jit(lambda x: layer.apply(params, state, x, stats="running")[0])
    jax.export.export(run, platforms=("cpu", "cuda"))(x)
    assert not sizes


def test_lowering_for_cuda_without_a_gpu_says_what_to_do(monkeypatch):
    monkeypatch.delattr(gpu_rnn, SIZES, raising=False)
    layer = recurrent.lstm(H + 1, impl="cudnn")  # JAX keeps the answer for sizes that it knows
    args = started(layer)
    with pytest.raises(RuntimeError, match=r'only where there is a GPU.* write impl="xla"'):
        lowered(functools.partial(loss, layer), *args)


@pytest.mark.parametrize(
    "how",
    [
        {"norm_x": recurrent.sequence_wise(nj.batch_norm())},
        {"norm_h": nj.layer_norm()},
        {"norm_c": nj.layer_norm()},
        {"zoneout_c": 0.1},
        {"dropout_h": 0.1},
        {"carry_normalized": True},
    ],
    ids=lambda how: next(iter(how)),
)
def test_equations_that_are_not_cudnns_are_refused(how):
    with pytest.raises(ValueError, match=r"impl='cudnn' serves .* has \w+=.*: write impl=\"xla\""):
        make(**how)


def test_a_folded_layer_keeps_cudnn():
    layer = make()
    params, state, _ = started(layer)
    assert recurrent.fold(layer, params, state)[0] == layer
