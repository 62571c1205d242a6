"""Linen's RNN with statistics per step: against Flax's, our recurrent layers, and NumPy loops."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import linen, recurrent
from normjax.state import _names

pytestmark = pytest.mark.standard_numerics

B, T, F, H = 4, 6, 3, 5
LENGTHS = np.array([6, 3, 1, 5])
BAD_LENGTHS = [
    (LENGTHS.astype(np.float32), TypeError, r"seq_lengths.astype\(jnp.int32\)"),
    (LENGTHS + 1, ValueError, "seq_lengths from 2 to 7 do not fit sequences of 6 steps"),
    (jnp.array(LENGTHS - 2), ValueError, "seq_lengths from -1 to 4 do not fit"),
]
RNG = np.random.default_rng(0)
EPS, DECAY = 1e-5, 0.8


class BNCell(nn.RNNCellBase):
    """tanh(x W + BN(h U)): the norm on the recurrent term, in one of two spellings."""

    features: int = H
    train: bool = False
    kind: str = "normalize"

    @nn.compact
    def __call__(self, carry, x):
        z = nn.Dense(self.features, use_bias=False, name="u")(carry)
        if self.kind == "normalize":
            norm = linen.Normalize(nj.batch_norm(decay=DECAY), name="bn")
            z = norm(z, stats="batch" if self.train else "running")
        else:
            kind = {"ours": linen.BatchNorm, "flax": nn.BatchNorm}[self.kind]
            z = kind(momentum=DECAY, name="bn")(z, use_running_average=not self.train)
        h = jnp.tanh(nn.Dense(self.features, use_bias=False, name="w")(x) + z)
        return h, h

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.full((*input_shape[:-1], self.features), 0.5)

    @property
    def num_feature_axes(self):
        return 1


def draw(batch=B, steps=T, lengths=None):
    x = RNG.normal(size=(batch, steps, F)).astype(np.float32)
    if lengths is not None:
        x[np.arange(steps) >= lengths[:, None]] = 1e3  # garbage in the padding
    return x


def start(x, **fields):
    """Variables with a scale and bias that are not 1 and 0, at statistics that are not either."""
    variables = linen.RNN(BNCell(), **fields).init(jax.random.key(0), x)
    cell = variables["params"]["cell"]
    cell["bn"] = {"scale": jnp.linspace(0.5, 1.5, H), "bias": jnp.linspace(-0.3, 0.3, H)}
    shape = variables["batch_stats"]["cell"]["bn"]["mean"].shape
    variables["batch_stats"]["cell"]["bn"] = {
        "mean": jnp.asarray(RNG.normal(size=shape), jnp.float32),
        "var": jnp.asarray(RNG.uniform(0.5, 2, size=shape), jnp.float32),
    }
    return variables


def loop(variables, x, lengths=None, *, train):
    """The cell in float64 NumPy, a step at a time; statistics from the valid rows alone."""
    variables = jax.tree.map(lambda v: np.array(v, np.float64), variables)
    p, kept = variables["params"]["cell"], variables["batch_stats"]["cell"]["bn"]
    x, max_steps = np.asarray(x, np.float64), len(kept["mean"])
    h, ys = np.full((len(x), H), 0.5), []
    for t in range(x.shape[1]):
        z, at = h @ p["u"]["kernel"], min(t, max_steps - 1)
        mean, var = kept["mean"][at], kept["var"][at]
        if train:
            valid = z if lengths is None else z[t < lengths]
            if len(valid):
                mean, var = valid.mean(0), ((valid - valid.mean(0)) ** 2).mean(0)
                if t < max_steps:
                    kept["mean"][at] = DECAY * kept["mean"][at] + (1 - DECAY) * mean
                    kept["var"][at] = DECAY * kept["var"][at] + (1 - DECAY) * var
        z = (z - mean) / np.sqrt(var + EPS) * p["bn"]["scale"] + p["bn"]["bias"]
        h = np.tanh(x[:, t] @ p["w"]["kernel"] + z)
        ys.append(h)
    return np.stack(ys, 1), kept


def close(got, want, rtol=2e-5, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


# Numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "kwargs"),
    [
        pytest.param(nn.LSTMCell(H), {}, marks=pytest.mark.slow),
        (nn.OptimizedLSTMCell(H), {"reverse": True}),
        (nn.GRUCell(H), {"reverse": True, "keep_order": True, "unroll": 2}),
        (nn.SimpleCell(H), {"time_major": True}),
    ],
)
def test_a_cell_without_norms_is_flax_to_the_bit(cell, kwargs):
    flax, ours = nn.RNN(cell, **kwargs), linen.RNN(cell, **kwargs)
    x = draw().swapaxes(0, 1) if kwargs.get("time_major") else draw()
    variables = flax.init(jax.random.key(0), x)
    same(ours.init(jax.random.key(0), x), variables)
    for lengths in (None, LENGTHS):
        how = {"seq_lengths": lengths, "return_carry": True}
        same(ours.apply(variables, x, **how), flax.apply(variables, x, **how))
    if kwargs.get("time_major"):
        same(*(jax.grad(lambda v, m=m: m.apply(v, x).sum())(variables) for m in (ours, flax)))


@pytest.mark.parametrize("kind", ["normalize", "ours"])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_a_norm_in_the_cell_against_a_numpy_loop(kind, lengths):
    x = draw(lengths=lengths)
    variables = start(x)
    train, test = (linen.RNN(BNCell(train=t, kind=kind)) for t in (True, False))
    run = jax.jit(lambda v, n: train.apply(v, x, seq_lengths=n, mutable=["batch_stats"]))
    y, new = run(variables, lengths)
    want, kept = loop(variables, x, lengths, train=True)
    valid = np.arange(T) < (np.full(B, T) if lengths is None else lengths)[:, None]
    close(y[valid], want[valid]), close(new["batch_stats"]["cell"]["bn"], kept)
    y = test.apply({**variables, **new}, x, seq_lengths=lengths)
    close(y[valid], loop({**variables, **new}, x, train=False)[0][valid])


@pytest.mark.parametrize("steps", [2, 9])
def test_sequences_shorter_and_longer_than_max_steps(steps):
    variables = start(draw())
    x, lengths = draw(steps=steps), np.minimum([9, 4, 9, 1], steps)
    y, new = linen.RNN(BNCell(train=True)).apply(
        variables, x, seq_lengths=lengths, mutable=["batch_stats"]
    )
    want, kept = loop(variables, x, lengths, train=True)
    valid = np.arange(steps) < lengths[:, None]
    close(y[valid], want[valid]), close(new["batch_stats"]["cell"]["bn"], kept)
    for name in ("mean", "var"):
        before = variables["batch_stats"]["cell"]["bn"][name]
        same(new["batch_stats"]["cell"]["bn"][name][steps:], before[steps:])
    y = linen.RNN(BNCell()).apply(variables, x)
    close(y, loop(variables, x, train=False)[0])


def test_max_steps_of_init():
    for fields, steps in (({}, T), ({"max_steps": 9}, 9), ({"max_steps": 2}, 2)):
        shapes = jax.eval_shape(linen.RNN(BNCell(), **fields).init, jax.random.key(0), draw())
        assert shapes["batch_stats"]["cell"]["bn"]["mean"].shape == (steps, H)
    variables = linen.RNN(BNCell(), max_steps=9).init(jax.random.key(0), draw())
    kept = variables["batch_stats"]["cell"]["bn"]
    same((kept["mean"], kept["var"]), (jnp.zeros((9, H)), jnp.ones((9, H))))
    # The parameters do not depend on it: they are those of one step.
    same(variables["params"], linen.RNN(BNCell()).init(jax.random.key(0), draw())["params"])


class LSTMCell(nn.RNNCellBase):
    """The cell of `recurrent.lstm(norm_h=…)`, under the names of its parameters."""

    stats: str = "batch"

    @nn.compact
    def __call__(self, carry, x):
        c, h = carry
        w_x = self.param("w_x", nn.initializers.normal(), (F, 4 * H), x.dtype)
        w_h = self.param("w_h", nn.initializers.normal(), (H, 4 * H), x.dtype)
        bias = self.param("bias", nn.initializers.normal(), (4 * H,), x.dtype)
        norm = linen.Normalize(
            nj.batch_norm(scale_init=0.1), name="norm_h", param_dtype=x.dtype, stats=self.stats
        )
        i, f, g, o = jnp.split(x @ w_x + norm(h @ w_h) + bias, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        dtype = jnp.result_type(float)
        return jnp.zeros((*input_shape[:-1], H), dtype), jnp.full(
            (*input_shape[:-1], H), 0.1, dtype
        )

    @property
    def num_feature_axes(self):
        return 1


@pytest.mark.parametrize("lengths", [pytest.param(None, marks=pytest.mark.slow), LENGTHS])
def test_value_gradient_and_statistics_of_the_recurrent_layer(x64, lengths):
    layer = recurrent.lstm(H, norm_h=recurrent.per_step(nj.batch_norm(scale_init=0.1), T))
    x = draw().astype(np.float64)
    weight = RNG.normal(size=(B, T, H))
    if lengths is not None:
        weight = weight * (np.arange(T) < lengths[:, None])[..., None]
    module = linen.RNN(LSTMCell())
    variables = module.init(jax.random.key(0), x)
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    params = _names.from_dict(params, variables["params"]["cell"])
    carry = recurrent.LSTMCarry(c=jnp.zeros((B, H)), h=jnp.full((B, H), 0.1))

    def ours(p, x):
        (last, y), new = module.apply(
            {**variables, "params": {"cell": p}},
            x,
            seq_lengths=lengths,
            return_carry=True,
            mutable=["batch_stats"],
        )
        return jnp.sum(weight * y) + jnp.sum(last[0] ** 2), new["batch_stats"]["cell"]["norm_h"]

    def theirs(p, x):
        (y, last), new = layer.apply(p, state, x, stats="batch", lengths=lengths, carry=carry)
        return jnp.sum(weight * y) + jnp.sum(last.c**2), new["norm_h"]

    (got, kept), grads = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(
        variables["params"]["cell"], x
    )
    (want, new), wanted = jax.jit(jax.value_and_grad(theirs, (0, 1), has_aux=True))(params, x)
    tight = {"rtol": 1e-10, "atol": 1e-12}
    close(got, want, **tight), close(kept, new._asdict(), **tight)
    close(grads[0], _names.to_dict(wanted[0]), **tight), close(grads[1], wanted[1], **tight)


def test_reversed_sequences_and_bidirectional():
    x = draw(lengths=LENGTHS)
    variables = start(x)
    flipped = np.array(x)
    for row, n in zip(flipped, LENGTHS, strict=True):
        row[:n] = row[:n][::-1].copy()

    def run(x, **how):
        rnn = linen.RNN(BNCell(train=True), **how)
        how = {"seq_lengths": LENGTHS, "mutable": ["batch_stats"]}
        return jax.jit(lambda v, x: rnn.apply(v, x, **how))(variables, x)

    (want, new), (got, got_new) = run(flipped), run(x, reverse=True)
    valid = np.arange(T) < LENGTHS[:, None]
    close(np.asarray(got)[valid], np.asarray(want)[valid]), close(got_new, new)
    kept, _ = run(x, reverse=True, keep_order=True)
    for row, back, n in zip(kept, want, LENGTHS, strict=True):
        close(row[:n], back[:n][::-1])

    both = nn.Bidirectional(
        linen.RNN(BNCell(train=True), max_steps=4), linen.RNN(BNCell(train=True))
    )
    found = both.init(jax.random.key(0), x)
    y, new = both.apply(found, x, seq_lengths=LENGTHS, mutable=["batch_stats"])
    parts = []
    for name, steps, how in (
        ("forward_rnn", 4, {}),
        ("backward_rnn", T, {"reverse": True, "keep_order": True}),
    ):
        assert new["batch_stats"][name]["cell"]["bn"]["mean"].shape == (steps, H)
        own = {kind: found[kind][name] for kind in found}
        part, moved = linen.RNN(BNCell(train=True), **how).apply(
            own, x, seq_lengths=LENGTHS, mutable=["batch_stats"]
        )
        parts.append(part), close(new["batch_stats"][name], moved["batch_stats"])
    close(y, np.concatenate(parts, -1))


def test_time_major_and_more_than_one_batch_axis():
    x = draw(batch=8)
    lengths = np.array([6, 3, 1, 5, 2, 4, 0, 6])
    variables = start(x)
    train = linen.RNN(BNCell(train=True), return_carry=True)
    (carry, y), new = train.apply(variables, x, seq_lengths=lengths, mutable=["batch_stats"])
    (again, y2), new2 = train.apply(
        variables, x.swapaxes(0, 1), seq_lengths=lengths, time_major=True, mutable=["batch_stats"]
    )
    close((again, y2.swapaxes(0, 1), new2), (carry, y, new))
    (again, y2), new2 = train.apply(
        variables,
        x.reshape(2, 4, T, F),
        seq_lengths=lengths.reshape(2, 4),
        mutable=["batch_stats"],
    )
    close((again.reshape(8, H), y2.reshape(8, T, H), new2), (carry, y, new))
    close(carry[0], y[0, 5]), close(carry[1], y[1, 2])
    same(carry[6], jnp.full(H, 0.5))  # no step: its start


# Population -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_population_statistics_of_each_step():
    batches = [draw(), draw(batch=7)]
    module = linen.RNN(LSTMCell())
    variables = module.init(jax.random.key(0), batches[0])
    new = linen.population_update(
        lambda v, x: module.apply(v, x, mutable=["batch_stats"]), variables, batches
    )
    layer = recurrent.lstm(H, norm_h=recurrent.per_step(nj.batch_norm(), T))
    params, state = layer.init(jax.random.key(0), F)
    params = _names.from_dict(params, variables["params"]["cell"])
    feed = [
        {"x": x, "carry": recurrent.LSTMCarry(jnp.zeros((len(x), H)), jnp.full((len(x), H), 0.1))}
        for x in batches
    ]
    want = nj.population_statistics(layer, params, state, feed)
    close(new["cell"]["norm_h"], want["norm_h"]._asdict())


# Mistakes ---------------------------------------------------------------------------------------


def test_inside_flax_rnn_training_names_ours_and_evaluation_works():
    x = draw()
    variables = start(x)
    for kind in ("normalize", "ours"):
        cells = {t: BNCell(train=t, kind=kind) for t in (True, False)}
        for cell in cells.values():
            with pytest.raises(ValueError, match=r"write normjax\.linen\.RNN\(cell\)"):
                nn.RNN(cell).init(jax.random.key(0), x)
        with pytest.raises(ValueError, match=r"write normjax\.linen\.RNN\(cell\)"):
            nn.RNN(cells[True]).apply(variables, x, mutable=["batch_stats"])
        with pytest.raises(ValueError, match=r"write normjax\.linen\.RNN\(cell\)"):
            nn.RNN(cells[False]).apply(variables, x)
        # Where Flax is told to hand the statistics in, those of each step or one set of them:
        y = nn.RNN(cells[False], variable_axes={"batch_stats": 0}).apply(variables, x)
        close(y, loop(variables, x, train=False)[0])
        one = jax.tree.map(lambda v: v[0], variables["batch_stats"])
        rnn = nn.RNN(cells[False], variable_broadcast=("params", "batch_stats"))
        all_steps = jax.tree.map(lambda v: jnp.stack([v] * T), one)
        y = rnn.apply({**variables, "batch_stats": one}, x)
        close(y, loop({**variables, "batch_stats": all_steps}, x, train=False)[0])


def test_other_scans_and_forgotten_statistics_are_told_the_usual():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return linen.Normalize(nj.batch_norm(), stats="batch")(x), None

    layers = nn.scan(
        Block, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3
    )()
    variables = layers.init(jax.random.key(0), draw(), None)
    assert variables["batch_stats"]["Normalize_0"]["mean"].shape == (3, F)
    layers.apply(variables, draw(), None, mutable=["batch_stats"])
    with pytest.raises(ValueError, match=r"mutable=\[\"batch_stats\"\]"):
        layers.apply(variables, draw(), None)

    variables = start(draw())
    with pytest.raises(ValueError, match="pass the 'batch_stats' that init returned"):
        linen.RNN(BNCell()).apply({"params": variables["params"]}, draw())
    with pytest.raises(ValueError, match=r"mutable=\[\"batch_stats\"\]"):
        linen.RNN(BNCell(train=True)).apply(variables, draw())


def test_mistakes_say_what_to_write():
    x = draw()
    variables = start(x)
    with pytest.raises(ValueError, match="leave it out of variable_axes"):
        linen.RNN(BNCell(), variable_axes={"batch_stats": 0})
    with pytest.raises(ValueError, match="leave it out of variable_axes"):
        linen.RNN(BNCell(), variable_carry=("memory", "batch_stats"))
    with pytest.raises(ValueError, match="max_steps=0"):
        linen.RNN(BNCell(), max_steps=0)
    with pytest.raises(ValueError, match="beyond='first'"):
        linen.RNN(BNCell(), beyond="first")
    with pytest.raises(ValueError, match=f"write max_steps={T}"):
        linen.RNN(BNCell(), max_steps=T + 1).apply(variables, x)
    strict = linen.RNN(BNCell(), beyond="error")
    strict.apply(variables, x[:, :2])
    with pytest.raises(ValueError, match='beyond="last"'):
        strict.apply(variables, draw(steps=T + 1))
    with pytest.raises(ValueError, match="must be that of the batch"):
        linen.RNN(BNCell()).apply(variables, x, seq_lengths=LENGTHS[:2])
    for wrong, error, words in BAD_LENGTHS:
        with pytest.raises(error, match=words):
            linen.RNN(BNCell()).apply(variables, x, seq_lengths=wrong)
        with pytest.raises(error, match=words):  # known inside jit too
            jax.jit(lambda x, n=wrong: linen.RNN(BNCell()).apply(variables, x, seq_lengths=n))(x)


def test_a_batch_norm_never_takes_statistics_of_other_features():
    x = draw(batch=T)[:, 0]  # as many rows as steps: the shapes would broadcast
    module = linen.BatchNorm(use_running_average=True)
    variables = module.init(jax.random.key(0), x)
    per_step = jax.tree.map(lambda v: jnp.stack([v] * T), variables["batch_stats"])
    with pytest.raises(ValueError, match="init with the shape of this x"):
        module.apply({**variables, "batch_stats": per_step}, x)


@pytest.mark.parametrize("kind", ["normalize", "ours"])
def test_steps_that_no_sequence_reached_take_the_last_known_statistics(kind):
    short = np.minimum(LENGTHS, 4)
    x = draw()
    train, evaluate = (
        linen.RNN(BNCell(train=mode, kind=kind), max_steps=T) for mode in (True, False)
    )
    variables = train.init(jax.random.key(0), x)
    _, new = train.apply(variables, x, seq_lengths=short, mutable=["batch_stats"])
    variables = {**variables, **new}
    stats = variables["batch_stats"]["cell"]["bn"]
    (
        np.testing.assert_array_equal(stats["mean"][4:], 0),
        np.testing.assert_array_equal(stats["var"][4:], 1),
    )
    known = {name: leaf.at[4:].set(leaf[3]) for name, leaf in stats.items()}
    known = {**variables, "batch_stats": {"cell": {"bn": known}}}
    want = evaluate.apply(known, x)
    same(evaluate.apply(variables, x), want)
    # A collection that may be written to changes nothing in evaluation.
    y, unchanged = evaluate.apply(variables, x, mutable=["batch_stats"])
    close(y, want), same(unchanged["batch_stats"], variables["batch_stats"])
    # Training goes on from the start at these steps.
    first, then = (
        train.apply(v, x, mutable=["batch_stats"])[1]["batch_stats"]["cell"]["bn"]
        for v in (train.init(jax.random.key(0), x), variables)
    )
    close({name: leaf[4:] for name, leaf in then.items()}, {n: v[4:] for n, v in first.items()})
    population = [
        linen.population_update(lambda v, x: evaluate.apply(v, x, mutable=["batch_stats"]), v, [x])
        for v in (variables, known)
    ]
    close(*population)


class Ensemble(nn.RNNCellBase):
    """A cell with a recurrent layer, and with two norms side by side in a lifted `vmap`."""

    stats: str = "running"

    @nn.compact
    def __call__(self, carry, x):
        axes = {"params": 0, "batch_stats": 0}
        norms = nn.vmap(
            linen.Normalize,
            in_axes=-1,
            out_axes=-1,
            variable_axes=axes,
            split_rngs={"params": True},
        )
        x = norms(nj.batch_norm(decay=0.0), stats=self.stats)(jnp.stack([x, -2 * x], -1))
        layer = recurrent.bn_gru(2, max_steps=2)
        return carry, linen.Recurrent(layer, stats=self.stats)(x.swapaxes(1, 2))

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(input_shape[:-1])

    @property
    def num_feature_axes(self):
        return 1


def test_steps_without_data_of_norms_in_a_transformation_and_in_a_layer():
    x = draw()
    train, evaluate = (linen.RNN(Ensemble(stats), max_steps=T) for stats in ("batch", "running"))
    variables = train.init(jax.random.key(0), x)
    _, new = train.apply(variables, x[:, :4], mutable=["batch_stats"])
    variables = {**variables, **new}
    want = evaluate.apply(variables, x)
    y, unchanged = evaluate.apply(variables, x, mutable=["batch_stats"])
    close(y, want), same(unchanged, {"batch_stats": variables["batch_stats"]})
    fewer = {**variables, "batch_stats": jax.tree.map(lambda v: v[:4], variables["batch_stats"])}
    close(linen.RNN(Ensemble(), max_steps=4).apply(fewer, x), want)
