"""Every recurrent cell and preset on the accelerator: values, carry, state, gradients, padding."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from tests._support import accelerator, reference
from tests._support.properties import scattered

pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("default")]

B, T, F, H = 8, 6, 3, 16
LENGTHS = [6, 1, 1, 2, 3, 6, 0, 5]
LAYERS = {
    "rnn": recurrent.rnn(H),
    "lstm": recurrent.lstm(H),
    "gru": recurrent.gru(H),
    "bn_lstm": recurrent.bn_lstm(H, T),
    "bn_lstm_before_loop": recurrent.bn_lstm(H, T, input_schedule="before_loop"),
    "bn_lstm_sum": recurrent.bn_lstm_ablations(H, T)["sum"],
    "bn_lstm_shared": recurrent.bn_lstm_ablations(H, T)["shared"],
    "bn_gru": recurrent.bn_gru(H, T),
    "vertical_frame_wise": recurrent.vertical_bn_lstm(H, T),
    "vertical_sequence_wise": recurrent.vertical_bn_lstm(H),
    "deep_speech_rnn": recurrent.deep_speech_rnn(H),
    "ln_lstm": recurrent.ln_lstm(H),
    "ln_gru": recurrent.ln_gru(H),
    "rms_lstm": recurrent.rms_lstm(H),
    "wn_lstm": recurrent.wn_lstm(H),
    "bidirectional": recurrent.bidirectional(recurrent.lstm(H)),
    "stack": recurrent.stack([recurrent.bn_lstm(H, T), recurrent.ln_lstm(H)]),
}


def start(layer):
    params, state = layer.init(jax.random.key(0), F)
    return scattered(params, 0.2, 3), state, jax.random.normal(jax.random.key(1), (B, T, F))


def through(layer, params, state, x, **how):
    """Outputs, carry and state, and the gradients of params and x."""

    def loss(params, x):
        (y, carry), after = layer.apply(params, state, x, **how)
        ends = sum(jnp.sum(jnp.sin(v)) for v in jax.tree.leaves(carry))
        return jnp.sum(jnp.cos(y)) + ends, (y, carry, after)

    return jax.grad(loss, (0, 1), has_aux=True)(params, x)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    layer = LAYERS[name]
    args = accelerator.made(lambda: start(layer))

    def told(params, state, x):
        lengths = jnp.array(LENGTHS)
        batch = through(layer, params, state, x, stats="batch")
        running = layer.apply(params, batch[1][2], x, stats="running", lengths=lengths)[0]
        padded = through(layer, params, state, x, stats="batch", lengths=lengths)
        return {"batch": batch, "running": running, "padded": padded}

    accelerator.close(jax.jit(told)(*args), accelerator.exact(told, *args), 1e-4)


CELLS = {
    "rnn": ("rnn", ""),
    "lstm": ("lstm", ""),
    "gru": ("gru", ""),
    "bn_lstm": ("lstm", ("x", "h", "c")),
    "bn_gru": ("gru", ("x", "h", "xn", "hn")),
}


@pytest.mark.parametrize("name", CELLS)
def test_cell_against_a_loop_of_numpy(name):
    layer, (cell, places) = LAYERS[name], CELLS[name]
    params, state, x = accelerator.made(lambda: start(layer))
    run = jax.jit(functools.partial(layer.apply, stats="batch", lengths=jnp.array(LENGTHS)))
    (y, _), _ = run(params, state, x)
    norms = {p: reference.StepNorm(*params[f"norm_{p}"]) for p in places}
    want, *_ = getattr(reference, cell)(params, x, norms=norms, lengths=LENGTHS)
    accelerator.close(y, want, 2e-5)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
def test_cudnn(lengths):
    layer = recurrent.lstm(H, impl="cudnn")
    params, state, x = accelerator.made(lambda: start(layer))
    carry = recurrent.LSTMCarry(*np.random.default_rng(0).normal(size=(2, B, H)).astype(np.float32))

    def told(layer, params, state, x, carry):
        def loss(params, x, carry):
            how = {} if lengths is None else {"lengths": jnp.array(lengths)}
            (y, last), _ = layer.apply(params, state, x, stats="batch", carry=carry, **how)
            ends = sum(jnp.sum(jnp.sin(v)) for v in jax.tree.leaves(last))
            return jnp.sum(jnp.cos(y)) + ends, (y, last)

        return jax.grad(loss, (0, 1, 2), has_aux=True)(params, x, carry)

    plain = functools.partial(told, dataclasses.replace(layer, impl="xla"))
    fast = jax.jit(functools.partial(told, layer))
    if jax.default_backend() == "gpu":
        assert "cudnn_rnn" in fast.lower(params, state, x, carry).as_text()
    got = fast(params, state, x, carry)
    accelerator.close(got, jax.jit(plain)(params, state, x, carry), 1e-4)
    accelerator.close(got, accelerator.exact(plain, params, state, x, carry), 1e-4)


def test_population_statistics():
    layer = LAYERS["bn_lstm"]
    args = accelerator.made(lambda: start(layer))

    def told(params, state, x):
        return nj.population_statistics(layer, params, state, [x, x + 1])

    accelerator.close(jax.jit(told)(*args), accelerator.exact(told, *args), 1e-4)
