"""A mode given at the call under `nn.remat` and `nn.jit`, by keyword and by position."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

import normjax as nj
from normjax import linen, recurrent
from tests._support.few import few

pytestmark = pytest.mark.standard_numerics

X = 2 + jax.random.normal(jax.random.key(3), (4, 3, 2))
STATIC = {"static_argnums": (2,)}
LIFTS = {
    "remat": nn.remat,
    "jit": nn.jit,
    "both": lambda module, **how: nn.remat(nn.jit(module, **how), **how),
}
MODES = {"stats": ("running", "batch"), "use_running_average": (True, False)}
MODULES = {
    "norm": (linen.Normalize, nj.batch_norm(decay=0.5), "stats"),
    "layer": (
        linen.Recurrent,
        recurrent.rnn(3, norm_h=recurrent.shared(nj.batch_norm())),
        "stats",
    ),
    "drop-in": (linen.BatchNorm, None, "use_running_average"),
}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("lift", few([*LIFTS], "both"))
def test_a_mode_given_at_the_call_reaches_the_module(kind, lift):
    cls, method, name = MODULES[kind]
    fields = () if method is None else (method,)
    plain = cls(*fields)
    by_keyword = LIFTS[lift](cls)(*fields)
    by_position = LIFTS[lift](cls, **STATIC)(*fields)
    variables = by_keyword.init(jax.random.key(0), X, **{name: MODES[name][0]})
    outputs = []
    for mode in MODES[name]:
        want = plain.apply(variables, X, mode, mutable=["batch_stats"])
        for got in (
            by_keyword.apply(variables, X, **{name: mode}, mutable=["batch_stats"]),
            by_position.apply(variables, X, mode, mutable=["batch_stats"]),
        ):
            close(got, want)
        outputs.append(want[0])
    assert np.abs(outputs[0] - outputs[1]).max() > 0.05  # the modes are told apart


def test_gradients_under_remat_are_those_without():
    plain = linen.Normalize(nj.batch_norm())
    variables = plain.init(jax.random.key(0), X, "running")

    def loss(params, module):
        variables_ = {**variables, "params": params}
        y, new = module.apply(variables_, X, stats="batch", mutable=["batch_stats"])
        return (y**3).sum(), new

    got, want = (
        jax.grad(loss, has_aux=True)(variables["params"], module)
        for module in (nn.remat(linen.Normalize)(plain.norm), plain)
    )
    close(got, want)


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


@pytest.mark.parametrize("lift", ["remat", "jit"])
def test_a_recurrent_module_takes_its_other_choices_under_transformations(lift):
    layer = recurrent.lstm(3, zoneout_h=0.5)
    plain, lifted = linen.Recurrent(layer), LIFTS[lift](linen.Recurrent)(layer)
    variables = plain.init(jax.random.key(0), X, "running")
    how = {"stats": "batch", "noise": False, "return_carry": True}
    (carry, y), (want_carry, want) = (m.apply(variables, X, **how) for m in (lifted, plain))
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(carry.c, want_carry.c, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lift", ["remat", "jit"])
def test_other_choices_at_the_call_reach_their_modules(lift):
    class Spectral(nn.Module):
        lift: str

        @nn.compact
        def __call__(self, x, update_stats):
            cls = LIFTS.get(self.lift, lambda module: module)(linen.SpectralNorm)
            return cls(nn.Dense(2), name="norm")(x, update_stats=update_stats)

    plain, lifted = Spectral("none"), Spectral(lift)
    variables = plain.init(jax.random.key(0), X, False)
    for update in (False, True):
        want, got = (
            m.apply(variables, X, update, mutable=["batch_stats"]) for m in (plain, lifted)
        )
        close(got, want)
    run = LIFTS[lift](linen.RNN)(nn.SimpleCell(3))
    variables = run.init(jax.random.key(0), X)
    carry, y = run.apply(variables, X, return_carry=True, reverse=True)
    want_carry, want = linen.RNN(nn.SimpleCell(3)).apply(
        variables, X, return_carry=True, reverse=True
    )
    close((carry, y), (want_carry, want))


def test_a_subclass_sees_the_mode_as_it_was_given():
    seen = []

    class Named(linen.Normalize):
        def __call__(self, x, stats=None, **keywords):
            seen.append(stats)
            return super().__call__(x, stats, **keywords)

    for lift in (lambda module: module, nn.remat, nn.jit):
        module = lift(Named)(nj.batch_norm())
        variables = module.init(jax.random.key(0), X, stats="running")
        module.apply(variables, X, stats="running")
    assert set(seen) == {"running"}
    assert {type(stats) for stats in seen} == {str}


def test_a_wrong_mode_is_still_named():
    module = nn.remat(linen.Normalize)(nj.batch_norm(), stats="batch")
    with pytest.raises(ValueError, match="stats='batch' and called with stats='running'"):
        module.init(jax.random.key(0), X, stats="running")
