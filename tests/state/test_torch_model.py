"""Whole models from PyTorch and back: torch's own outputs, and its own state to the bit."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import linen, recurrent

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(19)


class Theirs(torch.nn.Module):
    """Convolutions with batch norms, then layer norms and dense layers, and an embedding."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(2, 4, 3)
        self.up = torch.nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "conv": torch.nn.Conv2d(4, 4, (3, 1), groups=2, bias=False),
                    "bn": torch.nn.BatchNorm2d(4),
                }
            )
            for _ in range(2)
        )
        self.norm = torch.nn.LayerNorm(4)
        self.heads = torch.nn.Linear(4, 6)
        self.embed = torch.nn.Embedding(3, 6)

    def forward(self, x, token):
        x = self.up(self.stem(x))
        for layer in self.layers:
            x = torch.relu(layer["bn"](layer["conv"](x)))
        return self.heads(self.norm(x.mean((2, 3)))) + self.embed(token)


class Ours(nn.Module):
    """The same in Flax, channels last."""

    @nn.compact
    def __call__(self, x, token):
        x = nn.Conv(4, (3, 3), padding="VALID", name="stem")(x)
        x = nn.ConvTranspose(
            4, (2, 2), strides=(2, 2), padding="VALID", transpose_kernel=True, name="up"
        )(x)
        for i in range(2):
            x = nn.Conv(
                4, (3, 1), padding="VALID", feature_group_count=2, use_bias=False, name=f"conv_{i}"
            )(x)
            x = nn.relu(linen.Normalize(nj.batch_norm(), stats="running", name=f"bn_{i}")(x))
        x = nn.LayerNorm(epsilon=1e-5, name="norm")(x.mean((1, 2)))
        y = nn.DenseGeneral((2, 3), name="heads")(x).reshape(-1, 6)
        return y + nn.Embed(3, 6, name="embed")(token)


RULES = {"layers.*.conv": "conv_*", "layers.*.bn": "bn_*", "*": "*"}


def shaken(module):
    """Parameters and statistics away from their start."""
    for v in (*module.parameters(), *module.buffers()):
        if v.is_floating_point():
            v.data = v.data + torch.rand(v.shape, generator=torch.manual_seed(v.numel())) / 4
    return module.eval()


def back(module, variables, rules):
    """Our variables in a new module, and its state."""
    arrays = nj.to_torch_state_dict(variables, module.state_dict(), rules)
    return {name: torch.from_numpy(np.array(v)) for name, v in arrays.items()}


def test_a_model_gives_torchs_outputs_and_its_state_back():
    theirs = shaken(Theirs())
    x, token = RNG.normal(size=(2, 7, 6, 2)).astype(np.float32), np.array([0, 2])
    start = Ours().init(jax.random.key(0), x, token)
    variables = nj.from_torch_state_dict(theirs.state_dict(), start, RULES)
    assert jax.tree.structure(variables) == jax.tree.structure(start)
    want = theirs(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(token)).detach().numpy()
    np.testing.assert_allclose(Ours().apply(variables, x, token), want, rtol=2e-5, atol=2e-5)

    other = Theirs().eval()
    other.load_state_dict(back(other, variables, RULES))
    kept = theirs.state_dict()
    for name, v in other.state_dict().items():
        if "num_batches" not in name:
            np.testing.assert_array_equal(v.numpy(), kept[name].numpy(), err_msg=name)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_blocks_of_recurrent_layers(kind):
    theirs = shaken(getattr(torch.nn, kind)(3, 4, bidirectional=True, batch_first=True))
    layer = recurrent.bidirectional(getattr(recurrent, kind.lower())(4))
    params, state = layer.init(jax.random.key(0), 3)
    rules = {"l0": "forward", "l0_reverse": "backward"}
    ours = nj.from_torch_state_dict(theirs.state_dict(), params, rules)
    x = RNG.normal(size=(2, 5, 3)).astype(np.float32)
    (y, _), _ = layer.apply(ours, state, x, stats="running")
    want = theirs(torch.tensor(x))[0].detach().numpy()
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    theirs.load_state_dict(back(theirs, ours, rules))
    np.testing.assert_allclose(theirs(torch.tensor(x))[0].detach().numpy(), want, atol=1e-6)


@pytest.mark.parametrize(
    "kind, cell", [("LSTM", nn.OptimizedLSTMCell), ("GRU", nn.GRUCell), ("RNN", nn.SimpleCell)]
)
def test_the_cells_of_flax(kind, cell):
    theirs = shaken(getattr(torch.nn, kind)(3, 4, batch_first=True))
    x = RNG.normal(size=(2, 5, 3)).astype(np.float32)
    model = nn.RNN(cell(4), name="rnn")
    start = model.init(jax.random.key(0), x)
    rules = {"l0": "cell"}
    variables = nj.from_torch_state_dict(theirs.state_dict(), start, rules)
    want = theirs(torch.tensor(x))[0].detach().numpy()
    np.testing.assert_allclose(model.apply(variables, x), want, rtol=1e-5, atol=1e-5)
    theirs.load_state_dict(back(theirs, variables, rules))
    np.testing.assert_allclose(theirs(torch.tensor(x))[0].detach().numpy(), want, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_attention(bias):
    """The rows of `in_proj_weight` are query, key and value, of all heads."""
    theirs = shaken(torch.nn.MultiheadAttention(6, 2, bias=bias, batch_first=True)).eval()
    ours = nn.MultiHeadDotProductAttention(2, use_bias=bias)
    q, kv = (RNG.normal(size=(3, n, 6)).astype(np.float32) for n in (4, 5))
    variables = ours.init(jax.random.key(0), q, kv)
    rules = {"": "", "out_proj": "out"}
    read = nj.from_torch_state_dict(theirs.state_dict(), variables, rules)
    with torch.no_grad():
        want, _ = theirs(*map(torch.from_numpy, (q, kv, kv)))
    np.testing.assert_allclose(ours.apply(read, q, kv), want, rtol=1e-5, atol=1e-6)
    kept = theirs.state_dict()
    for name, v in back(torch.nn.MultiheadAttention(6, 2, bias=bias), read, rules).items():
        np.testing.assert_array_equal(v, kept[name], err_msg=name)


def test_a_function_renumbers_and_none_leaves_out():
    theirs = {
        "bn1.weight": np.full(2, 3.0),
        "bn1.bias": np.zeros(2),
        "bn1.running_mean": np.ones(2),
        "bn1.running_var": np.ones(2),
        "bn1.num_batches_tracked": np.array(7),
        "extra.weight": np.ones(5),
    }
    ours = {
        "params": {"BatchNorm_0": {"scale": jnp.ones(2), "bias": jnp.ones(2)}},
        "batch_stats": {"BatchNorm_0": {"mean": jnp.zeros(2), "var": jnp.ones(2)}},
    }

    def place(module):
        return f"BatchNorm_{int(module[2:]) - 1}" if module.startswith("bn") else None

    got = nj.from_torch_state_dict(theirs, ours, place)
    assert got["params"]["BatchNorm_0"]["scale"].tolist() == [3.0, 3.0]
    assert got["batch_stats"]["BatchNorm_0"]["mean"].tolist() == [1.0, 1.0]
    assert ours["params"]["BatchNorm_0"]["scale"].tolist() == [1.0, 1.0]
    rules = {"extra": None, "bn1": "BatchNorm_0"}
    again = nj.to_torch_state_dict(got, theirs, rules)
    for name, v in theirs.items():
        np.testing.assert_array_equal(again[name], v)


def test_what_does_not_fit_says_so():
    theirs = {"fc.weight": np.ones((3, 2)), "fc.bias": np.ones(3)}
    ours = {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    with pytest.raises(ValueError, match="no rule matches the torch module 'fc'"):
        nj.from_torch_state_dict(theirs, ours, {"head": "Dense_0"})
    with pytest.raises(ValueError, match="did you mean 'Dense_0'"):
        nj.from_torch_state_dict(theirs, ours, {"fc": "Dense_1"})
    wide = {**theirs, "fc.weight": np.ones((3, 5))}
    with pytest.raises(ValueError, match=r"shape \(5, 3\), and the model has \(2, 3\)"):
        nj.from_torch_state_dict(wide, ours, {"fc": "Dense_0"})
    with pytest.raises(ValueError, match="no counterpart of its size"):
        nj.to_torch_state_dict(ours, wide, {"fc": "Dense_0"})
    more = {**ours, "Norm_0": {"scale": jnp.ones(3)}}
    with pytest.raises(ValueError, match=r"nothing was read into.*Norm_0/scale"):
        nj.from_torch_state_dict(theirs, more, {"fc": "Dense_0"})
    odd = {"fc.in_proj_weight": np.ones((3, 2))}
    with pytest.raises(ValueError, match="no kind that is known"):
        nj.from_torch_state_dict(odd, ours, {"fc": "Dense_0"})
