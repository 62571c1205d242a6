"""Padding reaches the norms in a cell of Linen's RNN, whatever transforms the cell."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import linen
from normjax._flax import _padding
from tests.linen.test_rnn import DECAY, LENGTHS, RNG, B, BNCell, F, H, T, close, draw

__all__ = ["RNG"]  # starts anew for each test of this module, too
pytestmark = pytest.mark.standard_numerics


class Term(nn.Module):
    @nn.compact
    def __call__(self, z):
        norm = linen.Normalize(nj.batch_norm(decay=DECAY), name="bn", stats="batch")
        return norm(nn.Dense(H, use_bias=False, name="u")(z))


TERMS = {"none": Term, "jit": nn.jit(Term), "remat": nn.remat(Term)}


class Compiled(nn.RNNCellBase):
    """The cell with its norm behind a transformation that keeps traces."""

    lift: str

    @nn.compact
    def __call__(self, carry, x):
        term = TERMS[self.lift](name="term")
        h = jnp.tanh(nn.Dense(H, use_bias=False, name="w")(x) + term(carry))
        return h, h

    initialize_carry = BNCell.initialize_carry
    features = H
    num_feature_axes = 1


@pytest.mark.parametrize("lift", ["jit", pytest.param("remat", marks=pytest.mark.slow)])
def test_padding_reaches_norms_under_transformations_of_the_cell(lift):
    x = draw(lengths=LENGTHS)
    plain, lifted = (linen.RNN(Compiled(lift=k)) for k in ("none", lift))
    variables = plain.init(jax.random.key(0), x)

    def loss(params, module, lengths):
        y, new = module.apply(
            {**variables, "params": params}, x, seq_lengths=lengths, mutable=["batch_stats"]
        )
        return jnp.sum(y[0] ** 2), new  # the longest sequence: no padding in it

    for lengths in (None, LENGTHS, np.minimum(LENGTHS, [6, 2, 2, 2])):  # each its own mask
        want, got = (
            jax.grad(loss, has_aux=True)(variables["params"], m, lengths) for m in (plain, lifted)
        )
        close(got, want, 1e-4, 1e-5)


def test_a_compiled_function_in_the_cell_is_not_served_from_another_step():
    norm = nj.batch_norm()
    params, _ = norm.init((1, F))

    @jax.jit
    def mean(x):
        mask = _padding.mask(None, x.shape, "f")
        return norm.moments(params, x, mask=mask).mean

    x = jnp.asarray(draw()[:, 0])
    close(mean(x), x.mean(0))
    for valid in ([True, True, False, False], [True, False, True, False]):
        with _padding.step(jnp.array(valid)):
            close(mean(x), x[np.array(valid)].mean(0))
    close(mean(x), x.mean(0))
    assert not _padding.in_step()


class Odd(nn.RNNCellBase):
    """A cell with a norm on x and one on something that is not the batch."""

    mask: bool = True

    @nn.compact
    def __call__(self, carry, x):
        first = jnp.arange(B)[:, None] < B - 1
        norm = nj.batch_norm(decay=0.0)
        linen.Normalize(norm, stats="batch", name="of_x")(x, mask=first)
        table = jnp.array([[1.0], [2.0], [6.0]])
        own = jnp.array([[True], [True], [False]]) if self.mask else None
        linen.Normalize(norm, stats="batch", name="of_table")(table, mask=own)
        return carry, x

    initialize_carry = BNCell.initialize_carry
    features = 1
    num_feature_axes = 1


def test_the_mask_of_a_call_and_of_the_loop():
    x = draw()
    variables = linen.RNN(Odd()).init(jax.random.key(0), x)
    run = {"seq_lengths": LENGTHS, "mutable": ["batch_stats"]}
    _, new = jax.jit(lambda v: linen.RNN(Odd()).apply(v, x, **run))(variables)
    kept = new["batch_stats"]["cell"]
    want = np.array([x[:3, t][t < LENGTHS[:3]].mean(0) for t in range(T)])
    close(kept["of_x"]["mean"], want)  # neither the last row nor padding
    close(kept["of_table"]["mean"], np.full((T, 1), 1.5))
    with pytest.raises(ValueError, match="does not start with that: give the mask"):
        linen.RNN(Odd(mask=False)).apply(variables, x, **run)
    rnn = linen.RNN(Odd(mask=False))
    jax.eval_shape(lambda: rnn.apply(variables, x, mutable=["batch_stats"]))
