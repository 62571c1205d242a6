"""Population statistics of NNX models: networks of norms, and norms with statistics per step."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx as fnn

import normjax as nj
from normjax import nnx, recurrent
from tests.nnx.test_rnn import EPS, RNG, BNCell, F, H, T, close, draw, loop, same

pytestmark = pytest.mark.standard_numerics


class Net(fnn.Module):
    """Dense, norm, dense, norm: the second norm's input depends on the first one's mode."""

    def __init__(self, second):
        rngs = fnn.Rngs(0)
        self.dense = fnn.Linear(F, 4, rngs=rngs)
        self.first = nnx.Normalize(nj.batch_norm(), 4, rngs=rngs)
        self.second = {
            "normalize": lambda: nnx.Normalize(nj.batch_norm(), 4, rngs=rngs),
            "drop-in": lambda: nnx.BatchNorm(4, rngs=rngs),
            "flax": lambda: fnn.BatchNorm(4, rngs=rngs),
        }[second]()

    def __call__(self, x):
        return self.second(fnn.relu(self.first(self.dense(x))))


@pytest.mark.parametrize(
    ("mode", "upstream", "how", "second"),
    [
        ("train", None, "pooled", "drop-in"),
        ("eval", "running", "unbiased", "drop-in"),
        ("eval", None, "pooled", "drop-in"),
        (None, None, "mean", "normalize"),
    ],
)
def test_population_update(mode, upstream, how, second):
    net, x = Net(second), RNG.normal(size=(20, F)).astype(np.float32)
    net.train()
    net(x)  # statistics that are not the start
    if mode == "eval":
        net.eval()
    elif mode is None:
        net.first.use_running_average = net.second.use_running_average = None
    train = upstream is None
    batches = [x[:5], x[5:14], x[14:]]  # uneven
    kernel, bias = (np.asarray(v[...], np.float64) for v in (net.dense.kernel, net.dense.bias))
    mean, var = (np.asarray(v[...], np.float64) for v in (net.first.mean, net.first.var))
    graph = fnn.graphdef(net)
    nnx.population_update(net, batches, how=how, **({} if train else {"upstream": upstream}))
    assert fnn.graphdef(net) == graph

    z = [b.astype(np.float64) @ kernel + bias for b in batches]
    h = [
        np.maximum(
            (b - (b.mean(0) if train else mean)) / np.sqrt((b.var(0) if train else var) + EPS), 0
        )
        for b in z
    ]
    for layer, parts in ((net.first, z), (net.second, h)):
        whole = np.concatenate(parts)
        want = {
            "pooled": (whole.mean(0), whole.var(0)),
            "unbiased": (
                np.mean([p.mean(0) for p in parts], 0),
                np.mean([p.var(0, ddof=1) for p in parts], 0),
            ),
            "mean": (np.mean([p.mean(0) for p in parts], 0), np.mean([p.var(0) for p in parts], 0)),
        }[how]
        close((layer.mean[...], layer.var[...]), want, 1e-4, 1e-5)


def test_a_mode_at_the_call_does_not_decide_what_a_pass_over_data_normalizes_with():
    net, x = Net("drop-in"), RNG.normal(size=(20, F)).astype(np.float32)

    def frozen(net, x):
        h = fnn.relu(net.first(net.dense(x), stats="running"))
        return net.second(h, use_running_average=True)

    nnx.population_update(net, [x], call=frozen)
    net.eval()
    y = np.asarray(net(x), np.float64)
    used = np.asarray(net.second.var[...]) > 1e-2  # a channel that relu cuts has no spread
    assert used.any()
    close(y.mean(0), 0, 1e-5, 1e-5), close(y.std(0)[used], 1, 1e-3, 0)


def test_noise_of_a_recurrent_layer_in_a_pass_over_data_is_that_of_the_models_mode():
    layer, x = recurrent.bn_lstm(H, max_steps=T, zoneout_h=0.5), draw()
    params, state = layer.init(fnn.Rngs(params=1).params(), F)
    want = nj.population_statistics(layer, params, state, [x])["norm_h"]
    for mode in ("eval", "train"):
        module = nnx.Recurrent(layer, F, rngs=fnn.Rngs(params=1, noise=2))
        getattr(module, mode)()
        nnx.population_update(module, [x])
        same = np.allclose(module.norm_h["var"][...], want.var, rtol=1e-4, atol=1e-5)
        assert same == (mode == "eval")


@pytest.mark.slow
def test_population_of_a_recurrent_layer():
    batches = [draw(), draw(batch=7)]
    layer = recurrent.bn_lstm(H, max_steps=T)
    module = nnx.Recurrent(layer, F, rngs=fnn.Rngs(params=1), stats="batch")
    params, state = layer.init(fnn.Rngs(params=1).params(), F)
    nnx.population_update(module, batches, correction=1)
    want = nj.population_statistics(layer, params, state, batches, correction=1)
    for place in ("norm_x", "norm_h", "norm_c"):
        got = getattr(module, place)
        close((got["mean"][...], got["var"][...]), tuple(want[place]), 1e-4, 1e-5)


def test_population_of_each_step():
    batches = [draw(), draw(batch=7)]
    rnn = nnx.RNN(BNCell(), max_steps=T)
    rnn.train()
    cell = rnn.cell.cell
    feed = [(x, np.minimum(np.arange(len(x)) + 2, T)) for x in batches]
    nnx.population_update(rnn, feed, call=lambda m, b: m(b[0], seq_lengths=b[1]))
    for t in range(T):
        parts = []
        for x, n in feed:
            h = loop(cell, x, n, train=True)[0]
            parts.append((np.full((len(x), H), 0.5) if t == 0 else h[:, t - 1])[t < n])
        z = np.concatenate(parts) @ np.asarray(cell.u.kernel[...], np.float64)
        close((cell.bn.mean[t], cell.bn.var[t]), (z.mean(0), z.var(0)), 1e-4, 1e-5)


def test_population_update_says_what_is_wrong_and_leaves_the_model_as_it_was():
    x = RNG.normal(size=(8, F)).astype(np.float32)
    net = Net("normalize")
    net.train()
    before = fnn.to_pure_dict(fnn.state(net))
    with pytest.raises(ValueError, match="got no batch"):
        nnx.population_update(net, [])
    with pytest.raises(ZeroDivisionError):
        nnx.population_update(net, [x], call=lambda net, x: (net(x), 1 / 0))
    same(fnn.to_pure_dict(fnn.state(net)), before)
    with pytest.raises(ValueError, match=r"BatchNorm at second: make it a normjax\.nnx\.Normalize"):
        nnx.population_update(Net("flax"), [x])
    with pytest.raises(ValueError, match="found no statistics"):
        nnx.population_update(nnx.Normalize(nj.layer_norm(), F, rngs=fnn.Rngs(0)), [x])
