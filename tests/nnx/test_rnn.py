"""NNX cells with statistics per step, inside Flax's RNN and ours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as fnn

import normjax as nj
from normjax import nnx, recurrent
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


class BNCell(fnn.RNNCellBase):
    """tanh(x W + BN(h U)): the norm on the recurrent term, in one of two spellings."""

    def __init__(self, kind="normalize", lift=lambda f: f):
        rngs = fnn.Rngs(0)
        self.w = fnn.Linear(F, H, use_bias=False, rngs=rngs)
        self.u = fnn.Linear(H, H, use_bias=False, rngs=rngs)
        if kind == "normalize":
            self.bn = nnx.Normalize(nj.batch_norm(decay=DECAY), H, rngs=rngs)
        else:
            self.bn = nnx.BatchNorm(H, momentum=DECAY, rngs=rngs)
        self.bn.scale[...] = jnp.linspace(0.5, 1.5, H)
        self.bn.bias[...] = jnp.linspace(-0.3, 0.3, H)
        self.lift = lift

    def __call__(self, carry, x):
        z = self.lift(lambda bn, z: bn(z))(self.bn, self.u(carry))
        h = jnp.tanh(self.w(x) + z)
        return h, h

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.full((*input_shape[:-1], H), 0.5)

    @property
    def num_feature_axes(self):
        return 1


def draw(batch=B, steps=T, lengths=None):
    x = RNG.normal(size=(batch, steps, F)).astype(np.float32)
    if lengths is not None:
        x[np.arange(steps) >= lengths[:, None]] = 1e3  # garbage in the padding
    return x


def kept(cell):
    return {name: np.asarray(getattr(cell.bn, name)[...]) for name in ("mean", "var")}


def loop(cell, x, lengths=None, *, train, start=None, at=0):
    """The cell in float64 NumPy, a step at a time; statistics from the valid rows alone."""
    w, u, scale, bias = (
        np.asarray(v[...], np.float64)
        for v in (cell.w.kernel, cell.u.kernel, cell.bn.scale, cell.bn.bias)
    )
    stats = {name: np.array(v, np.float64) for name, v in kept(cell).items()}
    max_steps = len(stats["mean"])
    h, ys = np.full((len(x), H), 0.5) if start is None else start, []
    for step in range(x.shape[1]):
        z, t = h @ u, min(at + step, max_steps - 1)
        mean, var = stats["mean"][t], stats["var"][t]
        if train:
            valid = z if lengths is None else z[step < lengths]
            if len(valid):
                mean, var = valid.mean(0), ((valid - valid.mean(0)) ** 2).mean(0)
                if at + step < max_steps:
                    stats["mean"][t] = DECAY * stats["mean"][t] + (1 - DECAY) * mean
                    stats["var"][t] = DECAY * stats["var"][t] + (1 - DECAY) * var
        h = np.tanh(x[:, step] @ w + (z - mean) / np.sqrt(var + EPS) * scale + bias)
        ys.append(h)
    return np.stack(ys, 1), stats


def close(got, want, rtol=2e-5, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


# Numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kwargs"),
    [
        pytest.param(
            fnn.OptimizedLSTMCell, {"reverse": True, "keep_order": True}, marks=pytest.mark.slow
        ),
        (fnn.SimpleCell, {"time_major": True}),
    ],
)
def test_a_cell_without_norms_is_flax_to_the_bit(make, kwargs):
    x = draw().swapaxes(0, 1) if kwargs.get("time_major") else draw()
    flax = fnn.RNN(make(F, H, rngs=fnn.Rngs(0)), rngs=fnn.Rngs(0), **kwargs)
    ours = nnx.RNN(make(F, H, rngs=fnn.Rngs(0)), max_steps=2, rngs=fnn.Rngs(0), **kwargs)
    for lengths in (None, LENGTHS):
        how = {"seq_lengths": lengths, "return_carry": True}
        same(ours(x, **how), flax(x, **how))


@pytest.mark.parametrize("kind", ["normalize", "drop-in"])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_a_norm_in_the_cell_against_a_numpy_loop(kind, lengths):
    rnn = nnx.RNN(BNCell(kind), max_steps=T)
    cell, x = rnn.cell.cell, draw(lengths=lengths)
    assert kept(cell)["mean"].shape == (T, H)
    run = fnn.jit(lambda m, x, n: m(x, seq_lengths=n))
    rnn.train()
    want, stats = loop(cell, x, lengths, train=True)
    y = run(rnn, x, lengths)
    valid = np.arange(T) < (np.full(B, T) if lengths is None else lengths)[:, None]
    close(y[valid], want[valid]), close(kept(cell), stats)
    rnn.eval()
    before = kept(cell)
    y = run(rnn, x, lengths)
    close(y[valid], loop(cell, x, train=False)[0][valid]), same(kept(cell), before)


@pytest.mark.parametrize("steps", [2, 9])
def test_inside_flax_rnn_shorter_and_longer_than_max_steps(steps):
    per_step = nnx.PerStepCell(BNCell(), T)
    rnn, cell, x = fnn.RNN(per_step), per_step.cell, draw(steps=steps)
    run = fnn.jit(lambda m, x: m(x))
    rnn.train()
    want, stats = loop(cell, x, train=True)
    close(run(rnn, x), want), close(kept(cell), stats)
    same(kept(cell)["var"][steps:], np.ones((max(T - steps, 0), H)))
    rnn.eval()
    close(run(rnn, x), loop(cell, x, train=False)[0])


def test_padding_inside_flax_rnn_comes_with_the_start():
    x = draw(lengths=LENGTHS)
    ours = nnx.RNN(BNCell(), max_steps=T)
    per_step = nnx.PerStepCell(BNCell(), T)
    flax = fnn.RNN(per_step)
    ours.train(), flax.train()
    last, y = ours(x, seq_lengths=LENGTHS, return_carry=True)
    start = per_step.initialize_carry((B, F), lengths=LENGTHS)
    carry, got = flax(x, initial_carry=start, seq_lengths=LENGTHS, return_carry=True)
    close((got, carry.carry), (y, last)), close(kept(per_step.cell), kept(ours.cell.cell))
    same(carry.step, LENGTHS)


def test_a_sequence_in_pieces_is_the_sequence():
    x, lengths = draw(), np.array([6, 5, 4, 6])
    whole, pieces = nnx.RNN(BNCell(), max_steps=5), nnx.RNN(BNCell(), max_steps=5)
    whole.train(), pieces.train()
    y = fnn.jit(lambda m: m(x, seq_lengths=lengths))(whole)
    carry = pieces.cell.initialize_carry((B, F))
    carry, first = pieces(
        x[:, :2], initial_carry=carry, seq_lengths=np.full(B, 2), return_carry=True
    )
    assert isinstance(carry, nnx.StepCarry)
    second = pieces(x[:, 2:], initial_carry=carry, seq_lengths=lengths - 2)
    valid = np.arange(T) < lengths[:, None]
    close(jnp.concatenate([first, second], 1)[valid], y[valid])
    close(kept(pieces.cell.cell), kept(whole.cell.cell))
    # The carry of the cell alone starts at the first statistics, and comes back as such.
    last = pieces(x[:, :1], initial_carry=jnp.zeros((B, H)), return_carry=True)[0]
    assert last.shape == (B, H)


def test_a_piece_in_which_sequences_have_ended(lengths=LENGTHS):
    x = draw(lengths=lengths)
    rnn = nnx.RNN(BNCell(), max_steps=T)
    want, stats = loop(rnn.cell.cell, x, lengths, train=True)
    rnn.train()
    carry, ys = rnn.cell.initialize_carry((B, F)), []
    for at in (0, 3):  # the second piece has nothing of the sequences of 3 steps and 1
        piece = np.clip(lengths - at, 0, 3)
        carry, y = rnn(x[:, at : at + 3], initial_carry=carry, seq_lengths=piece, return_carry=True)
        ys.append(y)
    valid = np.arange(T) < lengths[:, None]
    close(np.concatenate(ys, 1)[valid], want[valid]), close(kept(rnn.cell.cell), stats)
    close(carry.carry, want[np.arange(B), lengths - 1])
    # All of a piece without lengths counts, whatever the lengths were in the one before.
    assert carry.lengths is None


def test_the_carry_of_an_empty_sequence_is_its_start():
    rnn, start = nnx.RNN(BNCell(), max_steps=T), np.full((B, H), 0.25, np.float32)
    rnn.eval()
    how = {"initial_carry": start, "seq_lengths": np.array([6, 0, 1, 0]), "return_carry": True}
    last, y = rnn(draw(), **how)
    same(last[1], start[1]), same(last[3], start[3])
    same(last[0], y[0, -1]), same(last[2], y[2, 0])


class LSTMCell(fnn.RNNCellBase):
    """The cell of `recurrent.lstm(norm_h=…)`, under the names of its parameters."""

    def __init__(self, params):
        self.w_x, self.w_h, self.bias = (fnn.Param(params[n]) for n in ("w_x", "w_h", "bias"))
        self.norm_h = nnx.Normalize(
            nj.batch_norm(scale_init=0.1), 4 * H, rngs=fnn.Rngs(0), param_dtype=self.w_x.dtype
        )

    def __call__(self, carry, x):
        c, h = carry
        z = x @ self.w_x[...] + self.norm_h(h @ self.w_h[...]) + self.bias[...]
        i, f, g, o = jnp.split(z, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    num_feature_axes = 1


def test_value_gradient_and_statistics_of_the_recurrent_layer(x64):
    layer = recurrent.lstm(H, norm_h=recurrent.per_step(nj.batch_norm(scale_init=0.1), T))
    params, state = layer.init(jax.random.key(0), F, jnp.float64)
    x = draw().astype(np.float64)
    weight = RNG.normal(size=(B, T, H)) * (np.arange(T) < LENGTHS[:, None])[..., None]
    start = (jnp.zeros((B, H)), jnp.full((B, H), 0.1))
    rnn = nnx.RNN(LSTMCell(params), max_steps=T)
    rnn.train()

    def ours(rnn, x):
        (c, _), y = rnn(x, initial_carry=start, seq_lengths=LENGTHS, return_carry=True)
        return jnp.sum(weight * y) + jnp.sum(c**2)

    def theirs(p, x):
        carry = recurrent.LSTMCarry(*start)
        (y, last), new = layer.apply(p, state, x, stats="batch", lengths=LENGTHS, carry=carry)
        return jnp.sum(weight * y) + jnp.sum(last.c**2), new["norm_h"]

    got, (grads, grad_x) = fnn.jit(fnn.value_and_grad(ours, argnums=(0, 1)))(rnn, x)
    (want, new), wanted = jax.jit(jax.value_and_grad(theirs, (0, 1), has_aux=True))(params, x)
    tight = {"rtol": 1e-10, "atol": 1e-12}
    cell = rnn.cell.cell
    close(got, want, **tight)
    close((cell.norm_h.mean[...], cell.norm_h.var[...]), tuple(new), **tight)
    grads = fnn.to_pure_dict(grads)["cell"]["cell"]
    close(grads, _names.to_dict(wanted[0]), **tight), close(grad_x, wanted[1], **tight)


@pytest.mark.parametrize("lift", [fnn.jit, pytest.param(fnn.remat, marks=pytest.mark.slow)])
def test_padding_reaches_norms_under_transformations_of_the_cell(lift):
    x = draw(lengths=LENGTHS)
    found = []
    for how in (lambda f: f, lift):
        rnn = nnx.RNN(BNCell(lift=how), max_steps=T)
        rnn.train()
        for lengths in (None, LENGTHS, np.minimum(LENGTHS, [6, 2, 2, 2])):  # each its own mask
            grad = fnn.grad(lambda m, n: jnp.sum(m(x, seq_lengths=n)[0] ** 2))(rnn, lengths)
            found.append((fnn.to_pure_dict(grad), kept(rnn.cell.cell)))
    for want, got in zip(found[:3], found[3:], strict=True):
        # Without lengths the padding's values of 1e3 take part: the two ways sum gradients in
        # another order, and differ by some 1e-5 of the largest.
        size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want))
        close(got, want, 1e-4, 1e-5 * max(size, 1.0))


def test_bidirectional():
    x = draw(lengths=LENGTHS)
    ahead, back = (nnx.RNN(BNCell(), max_steps=n) for n in (T, 4))
    both = fnn.Bidirectional(ahead, back)
    both.train()
    y = both(x, seq_lengths=LENGTHS)
    alone = nnx.RNN(BNCell(), max_steps=4, reverse=True, keep_order=True)
    alone.train()
    close(y[..., H:], alone(x, seq_lengths=LENGTHS))
    close(kept(back.cell.cell), kept(alone.cell.cell))
    flipped = np.array(x)
    for row, n in zip(flipped, LENGTHS, strict=True):
        row[:n] = row[:n][::-1].copy()
    fresh = nnx.RNN(BNCell(), max_steps=4)
    close(kept(alone.cell.cell), loop(fresh.cell.cell, flipped, LENGTHS, train=True)[1])


def test_mistakes_say_what_to_write():
    cell = nnx.PerStepCell(BNCell(), T)
    with pytest.raises(TypeError, match="write PerStepCell"):
        nnx.PerStepCell(cell, T)
    with pytest.raises(ValueError, match="max_steps=0"):
        nnx.PerStepCell(BNCell(), 0)
    with pytest.raises(TypeError, match="has the step in it"):
        fnn.RNN(cell)(draw(), initial_carry=jnp.zeros((B, H)))
    with pytest.raises(TypeError, match=r"RNN\(cell, max_steps"):
        nnx.RNN(BNCell())
    with pytest.raises(ValueError, match="give it in one place"):
        nnx.RNN(cell, max_steps=T + 1)
    with pytest.raises(ValueError, match="beyond='first'"):
        nnx.RNN(cell, beyond="first")
    rnn = nnx.RNN(cell, beyond="error", max_steps=T)
    rnn.eval()
    with pytest.raises(ValueError, match='beyond="last"'):
        rnn(draw(steps=T + 1))
    first = rnn(draw(), initial_carry=cell.initialize_carry((B, F)), return_carry=True)[0]
    with pytest.raises(ValueError, match=f"a sequence of {T + 1} steps is longer than max_steps"):
        rnn(draw(steps=1), initial_carry=first)
    with pytest.raises(ValueError, match="must be that of the batch"):
        rnn(draw(), seq_lengths=LENGTHS[:2])
    for wrong, error, words in BAD_LENGTHS:
        with pytest.raises(error, match=words):
            rnn(draw(), seq_lengths=wrong)
        with pytest.raises(error, match=words):  # known inside jit too
            fnn.jit(lambda m, n=wrong: m(draw(), seq_lengths=n))(rnn)
    with pytest.raises(TypeError, match=r"lengths.astype\(jnp.int32\)"):
        cell.initialize_carry((B, F), lengths=np.full(B, 2.5))


def test_an_error_in_the_cell_leaves_the_statistics_whole():
    rnn = nnx.RNN(BNCell(), max_steps=T)
    before = kept(rnn.cell.cell)
    with pytest.raises(ValueError, match=r"train\(\)"):
        rnn.cell(rnn.cell.initialize_carry((B, F)), draw()[:, 0])
    same(kept(rnn.cell.cell), before)


@pytest.mark.parametrize(
    ("kind", "lift"),
    [("normalize", lambda f: f), ("drop-in", lambda f: f), ("normalize", fnn.jit)],
)
def test_steps_that_no_sequence_reached_take_the_last_known_statistics(kind, lift):
    x, rnn = draw(), nnx.RNN(BNCell(kind, lift), max_steps=T)
    bn = rnn.cell.cell.bn
    rnn.train()
    fresh = fnn.clone(rnn)
    rnn(x[:, :4]), fresh(x)
    same(bn.mean[4:], 0 * bn.mean[4:]), same(bn.var[4:], 0 * bn.var[4:] + 1)
    then = fnn.clone(rnn)  # training goes on from the start at these steps
    then(x)
    close(*({n: v[4:] for n, v in kept(net.cell.cell).items()} for net in (then, fresh)))
    rnn.eval()
    known, graph, before = fnn.clone(rnn), fnn.graphdef(rnn), kept(rnn.cell.cell)
    for name, value in before.items():
        getattr(known.cell.cell.bn, name)[...] = jnp.array(value).at[4:].set(value[3])
    close(rnn(x), known(x))
    same(kept(rnn.cell.cell), before)
    assert fnn.graphdef(rnn) == graph
    for net in (rnn, known):
        nnx.population_update(net, [x], upstream="running")
    close(*(kept(net.cell.cell) for net in (rnn, known)))


def test_sharding_metadata_of_a_statistic_moves_with_its_features():
    cell, x = BNCell(), draw()
    auto = (jax.sharding.AxisType.Auto,)
    with jax.set_mesh(jax.make_mesh((1,), ("a",), axis_types=auto)):
        cell.bn.mean = fnn.BatchStat(jnp.zeros(H), out_sharding=("a",))
        rnn = nnx.RNN(cell, max_steps=T)
        rnn.train()
        rnn(x)
    spec = fnn.get_partition_spec(fnn.state(cell.bn))
    assert tuple(spec["mean"].get_value()) == (None, "a")
    plain = nnx.RNN(BNCell(), max_steps=T)
    plain.train()
    plain(x)
    close(kept(cell), kept(plain.cell.cell))
